"""Metrics: one JSON line each, always; to wandb and other trackers as well, if asked."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vitas.config import RankError, UserError, one_line
from vitas.files import read_lines, write_atomically
from vitas.recipe import Recipe
from vitas.report import sinks
from vitas.report.login import wandb_mode
from vitas.report.names import *  # noqa: F403
from vitas.report.names import MODEL, OF_TIME, STAGE, STEP, kind
from vitas.report.outlook import Outlook
from vitas.report.sinks import Shown, Sink
from vitas.report.terminal import Bar, progress, say


class Tracker:
    """Writes each metric once, on the main process; on the others it does nothing.

    A run that is resumed forgets the steps it will repeat (`rewind`), and a line that is in the file already is not
    written again: so the file tells each step once. What is new goes to wandb and other trackers, which are opened for
    the first of it, one run of theirs a stage; what a resumed stage repeats is not sent again.

    Raises:
        UserError: On all ranks: wandb is to be online, and cannot be; or a tracker is not installed.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.file = recipe.folder / "metrics.jsonl"
        self.main = accelerator.is_main_process
        self.lines: dict[str, dict[str, Any]] | None = None
        self.sinks: list[Sink] = []
        self.sent = _Sent(recipe)
        self.outlook = Outlook(recipe.folder)
        problem: list[Any] = [None]
        if self.main:
            try:
                self.sinks = self._sinks()
            except UserError as error:
                problem[0] = error
        if error := broadcast_object_list(problem)[0]:
            raise error

    def _sinks(self) -> list[Sink]:
        mode, why = wandb_mode(self.recipe.tracking.wandb)
        if mode:
            where = "" if mode == "online" else f", in {self.recipe.folder}/wandb"
            say(f"wandb: {mode}{where}{why and f': {why}'}")
        found: list[Sink] = [sinks.Wandb(self.recipe, mode)] if mode else []
        return found + [sinks.Other(self.recipe, name) for name in self.recipe.tracking.others]

    def log(self, stage: str, step: int, **values: Any) -> bool:
        """One line of metrics for one step of one stage, if it is new; says whether it is."""
        line = {STAGE: stage, STEP: step, **values}
        if not self.main or _identity(line) in self._known():
            return False
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        self._known()[_identity(line)] = line
        if self.sent.covers(stage, line):
            return False
        model = f"{values[MODEL].replace(' ', '_').replace('/', '_')}/" if MODEL in values else ""
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        axis, group = f"{kind(stage)}/{STEP}", f"{kind(stage)}/{model}"
        figures = {axis: step} | {group + name: value for name, value in numbers.items()}
        # Final figures are looked up, not plotted.
        summary = {model.lower() + name: value for name, value in numbers.items()} if stage == "evaluate" else {}
        self._send(stage, lambda sink: sink.log(step, figures, summary))
        return True

    @property
    def shows(self) -> bool:
        """Whether there is anybody to show anything to."""
        return bool(self.sinks)

    def show(self, stage: str, step: int, **things: Shown) -> None:
        """Sends what is not a number to the trackers that can show it."""
        if self.main:
            named = {f"{kind(stage)}/{name}": thing for name, thing in things.items()}
            self._send(stage, lambda sink: sink.show(step, named))

    def keep(self, stage: str, files: list[Path], *, weights: bool = False) -> None:
        """Sends files to the trackers that keep files, as what this stage has made, if the recipe wants that."""
        if self.main and self.recipe.tracking.artifacts in ("weights", *["best"] * (not weights)):
            self._send(stage, lambda sink: sink.keep(stage, files))

    def progress(self, stage: str, total: int, unit: str, *, show: bool, initial: int = 0) -> Bar:
        """A progress bar of a stage, which shows the time left of the run as well, and is noted for who watches it."""
        bar = progress(stage, total, unit, show=show, initial=initial)
        return self.outlook.follow(bar, stage) if show else bar

    def find(self, stage: str, **values: Any) -> dict[str, Any] | None:
        """What else the line of a stage with these values says, if there is one; all ranks call it, and are told."""
        wanted = {STAGE: stage, **values}
        lines = self._known().values() if self.main else ()
        found = next((line for line in lines if wanted.items() <= line.items()), None)
        rest = found and {name: value for name, value in found.items() if name not in (*wanted, STEP)}
        return broadcast_object_list([rest])[0]

    def lines_of(self, stage: str) -> list[dict[str, Any]]:
        """All lines of a stage, on the main process."""
        return [line for line in self._known().values() if line[STAGE] == stage] if self.main else []

    def rewind(self, stage: str, step: int, validated: int | None = None) -> None:
        """Forgets what this stage logged after `step`, its validations after `validated`, and what is damaged."""
        last = step if validated is None else validated

        def stays(line: dict[str, Any]) -> bool:
            return line[STAGE] != stage or line[STEP] <= (last if MODEL in line else step)

        if self.main and self.file.is_file():
            lines = self._read()
            self.sent.note(stage, lines, anew=step == 0)
            kept = filter(stays, lines)
            write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))
            self.lines = None

    def finish(self) -> None:
        """Closes the trackers, and notes that the run is done."""
        for sink in list(self.sinks):
            with self._going_on(sink):
                sink.close()
        if self.main:
            self.outlook.end()

    def _send(self, stage: str, work: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            with self._going_on(sink):
                if sink.stage != stage:
                    sink.close()
                    sink.open(stage, self.sent.opened(stage))
                work(sink)

    def _read(self) -> list[dict[str, Any]]:
        def is_sound(line: dict[str, Any]) -> bool:
            return isinstance(line.get(STAGE), str) and isinstance(line.get(STEP), int)

        return read_lines(self.file, is_sound, tell=say)

    def _known(self) -> dict[str, dict[str, Any]]:
        if self.lines is None:
            self.lines = {_identity(line): line for line in self._read()}
        return self.lines

    @contextmanager
    def _going_on(self, sink: Sink) -> Iterator[None]:
        """What befalls a tracker, its service or its server does not end a training: all is in `metrics.jsonl`."""
        try:
            yield
        except Exception as error:
            why = one_line(error) or type(error).__name__
            if sink.name == "wandb" and not sink.opened and self.recipe.tracking.wandb == "online":
                raise RankError(f"wandb: {why}; tracking.wandb=offline does without the server") from error
            say(f"warning: {sink.name}: {why}; the run goes on without it, and all metrics are in {self.file}")
            self.sinks.remove(sink)


class _Sent:
    """What trackers were sent of each stage before it was resumed, and the name of its run there.

    What they have cannot be taken back: a stage that goes on from its last checkpoint sends only what comes after.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.file = recipe.folder / "trackers.json"
        settings = recipe.model_dump_json(exclude={"name", "output", "stages", "tracking"})
        self.of = hashlib.sha256(settings.encode()).hexdigest()[:12]
        try:
            self.stages: dict[str, dict[str, Any]] = dict(json.loads(self.file.read_text()))
        except (OSError, ValueError, TypeError):
            self.stages = {}

    def covers(self, stage: str, line: dict[str, Any]) -> bool:
        """Whether a line was sent before."""
        return line[STEP] <= self.stages.get(stage, {}).get("models" if MODEL in line else "steps", -1)

    def note(self, stage: str, lines: list[dict[str, Any]], *, anew: bool) -> None:
        """Takes the lines of a stage, before some are forgotten, for sent; one that begins anew is another run."""
        if not (mark := self.stages.get(stage)):
            return
        if anew and mark.get("of") != self.of:
            del self.stages[stage]
            return
        for name in ("steps", "models"):
            steps = [line[STEP] for line in lines if line[STAGE] == stage and (name == "models") == (MODEL in line)]
            mark[name] = max([mark.get(name, -1), *steps])
        write_atomically(self.file, json.dumps(self.stages))

    def opened(self, stage: str) -> str:
        """The name of a stage's run, the same as long as it is that one."""
        if stage not in self.stages:
            self.stages[stage] = {"id": secrets.token_hex(6), "of": self.of}
            write_atomically(self.file, json.dumps(self.stages))
        return self.stages[stage]["id"]


class Untracked:
    """A tracker of what is not worth a line in the metrics of a run."""

    shows = False

    def log(self, stage: str, step: int, **values: Any) -> bool:
        """Does nothing."""
        return False

    def show(self, stage: str, step: int, **things: Shown) -> None:
        """Does nothing."""

    def keep(self, stage: str, files: list[Path], *, weights: bool = False) -> None:
        """Does nothing."""

    def lines_of(self, stage: str) -> list[dict[str, Any]]:
        """Finds nothing."""
        return []

    def rewind(self, stage: str, step: int, validated: int | None = None) -> None:
        """Does nothing."""

    def progress(self, stage: str, total: int, unit: str, *, show: bool, initial: int = 0) -> Bar:
        """A progress bar."""
        return progress(stage, total, unit, show=show, initial=initial)

    def find(self, stage: str, **values: Any) -> None:
        """Finds nothing."""


def _identity(line: dict[str, Any]) -> str:
    """What makes a line another one: all but figures of time."""
    return json.dumps({name: value for name, value in line.items() if name not in OF_TIME})
