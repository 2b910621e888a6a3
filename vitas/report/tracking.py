"""Metrics: one JSON line each, always; to wandb as well, if asked. Metric names live here only."""

from __future__ import annotations

import base64
import configparser
import json
import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vitas.config import RankError, UserError, one_line
from vitas.files import expanded, read_lines, write_atomically
from vitas.recipe import Recipe
from vitas.report.terminal import say

STAGE, STEP, EPOCH = "stage", "step", "epoch"

LOSS, LR, IMAGES_PER_SECOND, LEFT_OUT = "loss", "lr", "images_per_second", "left_out"

TOP1, TOP5, THROUGHPUT, TEST_IMAGES = "top1", "top5", "throughput", "test_images"

BEST, SCORED = {TOP1: "best_top1", LOSS: "best_loss"}, "scored"

MODEL, INPUTS = "model", "inputs"

HOLDOUT, TEST, SECONDS, IMAGES = "holdout", "test", "seconds", "images"
"""Images of a validation, whose figures are called `test_top1`, ...; how long it took; a short name of the images."""

TAU, RHO, REGRET, CEILING = "tau", "rho", "regret", "ceiling"

PATIENCE = 5
"""Seconds that the wandb server has to answer before a run goes on without it."""


class Tracker:
    """Writes each metric once, on the main process; on the others it does nothing.

    A run that is resumed forgets the steps it will repeat (`rewind`), and a line that is in the file already is not
    written again: so the file tells each step once. What is new goes to wandb, which is opened for the first of it.

    Raises:
        UserError: On all ranks: wandb is to be online, and cannot be.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.file = recipe.folder / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self.lines: set[str] | None = None
        self.wandb: Any = None
        self.drawn: set[str] = set()
        chosen: list[Any] = [None, None]
        if self.main:
            try:
                chosen[0], why = wandb_mode(recipe.tracking.wandb)
                if chosen[0]:
                    where = "" if chosen[0] == "online" else f", in {recipe.folder}/wandb"
                    say(f"wandb: {chosen[0]}{where}{why and f': {why}'}")
            except UserError as error:
                chosen[1] = error
        self.mode, error = broadcast_object_list(chosen)
        if error:
            raise error

    def log(self, stage: str, step: int, **values: Any) -> None:
        """One line of metrics for one step of one stage, if it is new."""
        line = json.dumps({STAGE: stage, STEP: step, **values})
        if not self.main or line in self._known():
            return
        with self.file.open("a") as lines:
            lines.write(line + "\n")
        self._known().add(line)
        if self.mode:
            group = f"{stage}/{values[MODEL].replace(' ', '_').replace('/', '_')}" if MODEL in values else stage
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            with self._going_on():
                self.wandb = self.wandb or self._open()
                if stage not in self.drawn:
                    self.drawn.add(stage)
                    self.wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/{STEP}")
                self.wandb.log({f"{stage}/{STEP}": step} | {f"{group}/{key}": value for key, value in numbers.items()})

    def find(self, stage: str, **values: Any) -> dict[str, Any] | None:
        """What else the line of a stage with these values says, if there is one; all ranks call it, and are told."""
        wanted = {STAGE: stage, **values}
        lines = map(json.loads, self._known() if self.main else ())
        found = next((line for line in lines if wanted.items() <= line.items()), None)
        rest = found and {name: value for name, value in found.items() if name not in (*wanted, STEP)}
        return broadcast_object_list([rest])[0]

    def rewind(self, stage: str, step: int, validated: int | None = None) -> None:
        """Forgets what this stage logged after `step`, its validations after `validated`, and what is damaged."""
        last = step if validated is None else validated

        def stays(line: dict[str, Any]) -> bool:
            return line[STAGE] != stage or line[STEP] <= (last if MODEL in line else step)

        if self.main and self.file.is_file():
            kept = filter(stays, self._read())
            write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
            self.lines = None

    def finish(self) -> None:
        """Closes wandb."""
        if self.wandb:
            with self._going_on():
                self.wandb.finish()

    def _read(self) -> list[dict[str, Any]]:
        def is_sound(line: dict[str, Any]) -> bool:
            return isinstance(line.get(STAGE), str) and isinstance(line.get(STEP), int)

        return read_lines(self.file, is_sound, tell=say)

    def _known(self) -> set[str]:
        if self.lines is None:
            self.lines = set(map(json.dumps, self._read()))
        return self.lines

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """What befalls wandb, its service or its server does not end a training: all is in `metrics.jsonl`."""
        try:
            yield
        except Exception as error:
            why = one_line(error) or type(error).__name__
            if self.wandb is None and self.recipe.tracking.wandb == "online":
                raise RankError(f"wandb: {why}; tracking.wandb=offline does without the server") from error
            say(f"warning: wandb: {why}; the run goes on without it, and all metrics are in {self.file}")
            self.mode = self.wandb = None

    def _open(self) -> Any:
        import wandb

        recipe = self.recipe
        # One wandb run a segment, grouped by name: offline segments cannot be appended to.
        return wandb.init(
            project=recipe.tracking.project,
            name=recipe.name,
            group=recipe.name,
            dir=str(recipe.folder),
            config=recipe.model_dump(mode="json"),
            mode=self.mode,
        )


class Untracked:
    """A tracker of what is not worth a line in the metrics of a run."""

    def log(self, stage: str, step: int, **values: Any) -> None:
        """Does nothing."""

    def rewind(self, stage: str, step: int, validated: int | None = None) -> None:
        """Does nothing."""

    def find(self, stage: str, **values: Any) -> None:
        """Finds nothing."""


def wandb_mode(asked: str) -> tuple[str | None, str]:
    """`online`, `offline` or None for no wandb at all; and why it is offline, if nobody asked for that.

    Chosen before wandb starts, because a failed start cannot be retried offline. `WANDB_MODE` overrules `asked`.

    Raises:
        UserError: Online is asked for, and not possible.
    """
    if asked == "never":
        return None, ""
    modes = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": None}
    told = os.environ.get("WANDB_MODE")
    if told and told not in modes:
        raise UserError(f"WANDB_MODE: expected online, offline or disabled, got {told}")
    settings = _wandb_settings()
    if asked == "auto" and not told:
        told = settings.get("mode")  # of the commands `wandb offline` and `wandb online`
    asked = modes.get(told, asked) if told else asked
    if asked not in ("auto", "online"):
        return asked, ""
    problem = _problem(settings)
    if problem and asked == "online":
        raise UserError(f"tracking.wandb: online: {problem}; tracking.wandb=offline does without the server")
    return ("offline", problem) if problem else ("online", "")


def _wandb_settings() -> dict[str, str]:
    """What wandb's commands have left in its files. wandb itself is not asked: what it reads first, it keeps."""
    files = configparser.ConfigParser(interpolation=None)
    try:
        files.read([
            expanded(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")) / "settings",
            expanded(os.environ.get("WANDB_DIR", ".")) / "wandb" / "settings",
        ])  # fmt: skip
        return dict(files["default"])
    except (OSError, ValueError, KeyError, configparser.Error):
        return {}


def _problem(settings: dict[str, str]) -> str:
    """Why wandb cannot be online: no login, no answer, or a key that is not taken; empty if it can."""
    import wandb

    usual = wandb.Settings().base_url
    url = (os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or usual).rstrip("/")
    # Logins from before wandb moved to its present address stand under the old one.
    hosts = [urlsplit(url).netloc] + ["api.wandb.ai"] * (url == usual)
    key = os.environ.get("WANDB_API_KEY") or settings.get("api_key") or _netrc_key(hosts)
    if not key and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return f"not logged in to {url} (wandb login)"
    login = {"Authorization": f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"} if key else {}
    question = b'{"query": "{viewer {id}}"}'
    try:
        request = Request(f"{url}/graphql", question, {"Content-Type": "application/json"} | login)
        urlopen(request, timeout=PATIENCE).close()
    except HTTPError as error:
        return f"{url} does not take the key (wandb login)" if error.code in (401, 403) else ""
    except (OSError, ValueError, HTTPException) as error:
        return f"{url} cannot be reached: {one_line(getattr(error, 'reason', error))}"
    return ""


def _netrc_key(hosts: list[str]) -> str | None:
    named = os.environ.get("NETRC")
    for file in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            entries = netrc.netrc(expanded(file))
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
        for host in hosts:
            if found := entries.authenticators(host):
                return found[2]
    return None
