"""Where a training goes on, and under which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from vitas.sections import MAY_CHANGE, Training
from vitas.train import checkpoint
from vitas.train.alone import broadcast
from vitas.train.state import TrainingState


class Last(NamedTuple):
    """What the last checkpoint says; of a training that begins, a step of zero."""

    step: int
    """Steps done."""
    left_out: int
    """Those of them that were left out, because their loss was not finite."""
    validated: int
    """The last of them that a validation followed."""
    state: TrainingState | None
    change: dict[str, list[Any]]
    """Settings that are others from here on: `[before, now]`."""
    facts: dict[str, Any]
    """What the manifests of later checkpoints shall say: the settings that may change, and all changes so far."""


def find_last(accelerator: Accelerator, folder: Path, settings: Training) -> Last:
    """The last checkpoint that is whole. All ranks call it."""
    # The main process finds it for all, who must not differ in what they take for whole.
    found: list[Path | None] = [checkpoint.latest(folder) if accelerator.is_main_process else None]
    last = broadcast(accelerator, found)[0]
    now = {name: getattr(settings, name) for name in MAY_CHANGE}
    if last is None:
        return Last(0, 0, 0, None, {}, {"settings": now, "changes": []})
    said = checkpoint.manifest(last)
    change = {name: [before, now[name]] for name, before in said["settings"].items() if before != now[name]}
    changes = said["changes"] + ([{"step": said["step"], **change}] if change else [])
    return Last(
        said["step"],
        said["left_out"],
        said.get("validated", 0),  # earlier versions knew no validation
        checkpoint.load(last),
        change,
        {"settings": now, "changes": changes},
    )
