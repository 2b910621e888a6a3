"""Where metrics go besides `metrics.jsonl`: wandb, and what else Accelerate knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vitas.config import UserError
from vitas.recipe import Recipe, dump
from vitas.report.names import STEP, kind
from vitas.report.terminal import say, verbose


class Distribution(NamedTuple):
    """Values whose histogram is shown."""

    values: Sequence[float]


class Rows(NamedTuple):
    """A table, a dictionary a row."""

    rows: Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """A PNG file."""

    png: bytes
    caption: str


Shown = Distribution | Rows | Picture


class Sink(Protocol):
    """A tracker, which has one run a stage."""

    name: str
    stage: str | None
    """Whose run is open."""
    opened: bool
    """Whether one ever was."""

    def open(self, stage: str, key: str) -> None:
        """Opens the run of a stage, or goes on with it: with that of the same key."""

    def log(self, step: int, figures: Mapping[str, float], summary: Mapping[str, float]) -> None:
        """Takes figures, of which one is the axis, and final ones."""

    def show(self, step: int, things: dict[str, Shown]) -> None:
        """Takes what is not a number, if it can show it."""

    def keep(self, stage: str, files: list[Path]) -> None:
        """Takes files, if it keeps files."""

    def close(self) -> None:
        """Closes the open run, if there is one."""


class Wandb:
    """wandb: a group a run of ours, a job type a kind of stage.

    Online a stage that is resumed goes on in its wandb run; offline it is another one of the group, because segments
    cannot be appended to.
    """

    name = "wandb"

    def __init__(self, recipe: Recipe, mode: str) -> None:
        self.recipe, self.mode = recipe, mode
        self.run: Any = None
        self.stage: str | None = None
        self.opened = False

    def open(self, stage: str, key: str) -> None:
        """See `Sink`."""
        import wandb

        recipe, online = self.recipe, self.mode == "online"
        self.run = wandb.init(
            project=recipe.tracking.project,
            name=f"{recipe.name}/{stage}",
            group=recipe.name,
            job_type=kind(stage),
            id=key if online else None,
            resume="allow" if online else None,
            dir=str(recipe.folder),
            config=recipe.model_dump(mode="json"),
            mode=self.mode,  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(silent=not verbose()),
        )
        self.run.define_metric(f"{kind(stage)}/*", step_metric=f"{kind(stage)}/{STEP}")
        self.stage, self.opened = stage, True
        if online and self.run.url and not verbose():
            say(f"{stage}: {self.run.url}")

    def log(self, step: int, figures: Mapping[str, float], summary: Mapping[str, float]) -> None:
        """See `Sink`."""
        self.run.log(dict(figures))
        if summary:
            self.run.summary.update(summary)

    def show(self, step: int, things: dict[str, Shown]) -> None:
        """See `Sink`."""
        import wandb
        from PIL import Image

        def shown(thing: Shown) -> Any:
            if isinstance(thing, Distribution):
                return wandb.Histogram(thing.values, num_bins=min(64, max(1, len(set(thing.values)))))
            if isinstance(thing, Picture):
                return wandb.Image(Image.open(BytesIO(thing.png)), caption=thing.caption)
            columns: list[Any] = list(dict.fromkeys(name for row in thing.rows for name in row))
            return wandb.Table(columns, [[row.get(name) for name in columns] for row in thing.rows])

        axis = f"{kind(self.stage or '')}/{STEP}"
        self.run.log({axis: step} | {name: shown(thing) for name, thing in things.items()})

    def keep(self, stage: str, files: list[Path]) -> None:
        """See `Sink`."""
        import wandb

        artifact = wandb.Artifact(f"{self.recipe.name}-{stage.replace('/', '-')}", type=kind(stage))
        for file in files:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)

    def close(self) -> None:
        """See `Sink`."""
        if self.run:
            self.run.finish()
        self.run = self.stage = None


class Other:
    """A tracker of Accelerate's. Those that write to disk do so in the run folder.

    Raises:
        UserError: It is not installed.
    """

    def __init__(self, recipe: Recipe, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        if name not in map(str, get_available_trackers()):
            raise UserError(f"tracking.with: {name}: is not installed")
        self.recipe, self.name, self.kind = recipe, name, LOGGER_TYPE_TO_CLASS[name]
        self.run: Any = None
        self.stage: str | None = None
        self.opened = False

    def open(self, stage: str, key: str) -> None:
        """See `Sink`."""
        recipe = self.recipe
        if self.kind.requires_logging_directory:
            self.run = self.kind(stage, recipe.folder / self.name)
        elif self.name == "mlflow":
            self.run = self.kind(recipe.tracking.project, run_name=f"{recipe.name}/{stage}")
        else:
            self.run = self.kind(recipe.tracking.project)
        self.run.start()
        if self.name == "tensorboard":  # whose table of settings is a run of its own
            self.run.log({"recipe": dump(recipe)}, step=0)
        else:
            self.run.store_init_configuration({"stage": stage} | _flat(recipe.model_dump(mode="json")))
        self.stage, self.opened = stage, True

    def log(self, step: int, figures: Mapping[str, float], summary: Mapping[str, float]) -> None:
        """See `Sink`."""
        axis = f"{kind(self.stage or '')}/{STEP}"
        self.run.log({name: value for name, value in figures.items() if name != axis}, step=step)

    def show(self, step: int, things: dict[str, Shown]) -> None:
        """Does nothing: what trackers can show differs."""

    def keep(self, stage: str, files: list[Path]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """See `Sink`."""
        if self.run:
            self.run.finish()
        self.run = self.stage = None


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value if isinstance(value, (bool, int, float)) else str(value)
    return found
