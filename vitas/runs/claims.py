"""What the work in a folder was made with, so that other settings do not go on with it unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vitas.config import Section, UserError, read_yaml
from vitas.data.splits import Split
from vitas.files import write_atomically
from vitas.recipe import Recipe
from vitas.sections import Retraining, SupernetTraining

HOW = {
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "validate_every",
    "micro_batch_size",
    "grad_checkpointing",
    "compile",
    "on_nonfinite",
    "from",
    "architecture",
    "search",
}
"""Settings of a training that do not decide its outcome: where, how fast and how safely it runs, and the names of what
stands beside them in full."""


HOW_READ = {"workers", "test", "holdout", "examples", "patience", "max_unreadable"}
"""Settings of the data that do not decide what a training sees; the hold-out is told where it matters."""

TRAININGS = (SupernetTraining.section, Retraining.section)
"""The sections that `HOW` is about."""


def made_with(folder: Path) -> dict[str, Any]:
    """The settings that the work in a folder was made with; none if there is none.

    Raises:
        UserError: They are damaged.
    """
    file = folder / "settings.yaml"
    if not file.is_file():
        return {}
    damaged = f"damaged: delete it to trust what is in {folder}, or all of {folder}"
    found = read_yaml(file, otherwise=damaged)
    if not isinstance(found, dict):
        raise UserError(f"{file}: {damaged}")
    return found


def sign(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings that the work in a folder is made with."""
    if made_with(folder) != (settings := plain(settings)):
        write_atomically(folder / "settings.yaml", yaml.safe_dump(settings, sort_keys=False))


def images(split: Split) -> dict[str, Any]:
    """Which images a split holds, as settings: what stays when their files are copied."""
    return {name: value for name, value in split.key().items() if name in ("source", "rows", "labels", "classes")}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as they come back from a file."""
    return json.loads(json.dumps(settings))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, with both values."""
    new, old = _flat(now), _flat(before)
    old = {key: value for key, value in _defaults(before).items() if key in new} | old
    keys = dict.fromkeys((*new, *old))
    return [(key, old.get(key), new.get(key)) for key in keys if _decides(key) and old.get(key) != new.get(key)]


def missing_or_other(before: dict[str, Any], needed: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """`differences` in what is needed alone."""
    keys = _flat(needed)
    return [difference for difference in differences(before, needed) if difference[0] in keys]


def _defaults(made_with: dict[str, Any]) -> dict[str, Any]:
    """Of the sections in what an earlier version wrote, all defaults: what it had no setting for it did as they say."""
    sections = {name: Recipe.model_fields[name].annotation for name in made_with if name in Recipe.model_fields}
    kinds = {name: kind for name, kind in sections.items() if isinstance(kind, type) and issubclass(kind, Section)}
    return _flat(plain({name: kind.model_construct().model_dump(mode="json") for name, kind in kinds.items()}))


def _decides(key: str) -> bool:
    section, _, setting = key.rpartition(".")
    return setting not in (HOW if section in TRAININGS else HOW_READ if section == "data" else ())


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, part in values.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
