"""What the stages of a run share: the data, the run folder and who may write in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from vitas.config import UserError, read_yaml
from vitas.data import decoded
from vitas.data.splits import Split
from vitas.files import write_atomically
from vitas.models.supernet import Supernet
from vitas.recipe import MAY_CHANGE, Recipe, dump
from vitas.report.terminal import say
from vitas.report.tracking import Tracker
from vitas.search.scoring import correct
from vitas.train.stop import StopRequest

HOW = {
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "micro_batch_size",
    "grad_checkpointing",
    "compile",
    "on_nonfinite",
}
"""Settings of a training that do not decide its outcome."""


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    recipe: Recipe
    accelerator: Accelerator
    tracker: Tracker
    stop: StopRequest
    train: Split
    test: Split

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.folder

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.train.classes)

    @property
    def skip(self) -> float:
        """The skip probability of the supernet: the recipe's, or the one calibrated to its budget."""
        return self.recipe.skip_probability(self.num_classes)

    def say(self, text: str) -> None:
        """Prints a line once, not once a rank."""
        if self.accelerator.is_main_process:
            say(text)

    def main_first(self, work: Callable[[bool], Any]) -> Any:
        """`work(True)` on the main process, then `work(False)` on the others, which find what it wrote."""
        if self.accelerator.is_main_process:
            result = work(True)
            self.accelerator.wait_for_everyone()
            return result
        self.accelerator.wait_for_everyone()
        return work(False)

    def cached(self, split: Split, name: str, image_size: int) -> decoded.Cached:
        """The images of a split at one size, decoded once for all ranks."""
        work = partial(
            decoded.decoded, split, self.folder / "cache" / f"{name}_{image_size}", image_size, self.recipe.data
        )
        return self.main_first(lambda main: work(write=main))

    def correct(
        self, model: nn.Module, images: decoded.Cached, batch_size: int, *, shared: bool = False
    ) -> torch.Tensor:
        """`vitas.search.scoring.correct` on this rank's device: of all images, or of this rank's part of them."""
        source = self.recipe.data
        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        part = {"rank": rank, "world": world} if shared else {}
        device = self.accelerator.device
        return correct(model, images, mean=source.mean, std=source.std, batch_size=batch_size, device=device, **part)

    def new_supernet(self) -> Supernet:
        """The supernet with its first weights, the same on all ranks."""
        settings = self.recipe.supernet
        torch.manual_seed(self.recipe.seed)
        return Supernet(self.recipe.space, self.num_classes, sharing=settings.sharing, attention=settings.attention)

    def settings(self, *sections: str) -> dict[str, Any]:
        """What decides the outcome of a stage: its sections, images, classes. Where and how fast it runs does not."""
        images = self.recipe.data.model_dump(mode="json", exclude={"workers", "test", "holdout"})
        chosen = {name: getattr(self.recipe, name).model_dump(mode="json", exclude=HOW) for name in sections}
        return {"seed": self.recipe.seed, "data": images, "classes": self._classes, **chosen}

    def claim(self, stage: str, settings: dict[str, Any]) -> Path:
        """The folder of a stage, whose contents were made with just these settings.

        A training that is not done may take over what `recipe.MAY_CHANGE` names.

        Raises:
            UserError: There is work in it that was done with others.
        """
        folder = self.folder / stage
        file = folder / "settings.yaml"
        settings = json.loads(json.dumps(settings))
        before = self._made_with(folder) or settings
        done = (folder / "model.safetensors").is_file()
        for key, old, new in _differences(before, settings):
            if done or key.rpartition(".")[2] not in MAY_CHANGE:
                raise UserError(
                    f"{folder}: made with {key}: {old}, and the recipe now says {new}; "
                    f"give the run another name, or delete {folder}"
                )
        if self.accelerator.is_main_process:
            write_atomically(self.folder / "recipe.yaml", dump(self.recipe))
            if not file.is_file() or before != settings:
                write_atomically(file, yaml.safe_dump(settings, sort_keys=False))
        return folder

    def supernet_weights(self, purpose: str) -> Path:
        """The file of the trained supernet, for a stage that needs it for `purpose`.

        Raises:
            UserError: There is none, or it was trained on other images, or is of another space.
        """
        folder = self.folder / "supernet"
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{weights}: No such file or directory: {purpose} needs a supernet; add stage supernet")
        settings = self.recipe.supernet
        needed = self.settings("space") | {
            "holdout": self.recipe.data.holdout,
            "supernet": {"sharing": settings.sharing, "attention": settings.attention},
        }
        made_with = self._made_with(folder)
        # Another seed or hold-out would score candidates on images that the supernet trained on.
        for key, old, new in _differences(made_with, needed) if made_with else ():
            if key in _flat(needed):
                raise UserError(
                    f"{folder}: trained with {key}: {old}, and the recipe now says {new}; "
                    f"give the run another name, or train the supernet again"
                )
        return weights

    def checksum(self, file: Path) -> str:
        """The sum of a file that the main process wrote."""
        return self.main_first(lambda _: hashlib.sha256(file.read_bytes()).hexdigest())

    def _made_with(self, folder: Path) -> dict[str, Any]:
        file = folder / "settings.yaml"
        if not file.is_file():
            return {}
        damaged = f"damaged: delete it to trust what is in {folder}, or all of {folder}"
        found = read_yaml(file, otherwise=damaged)
        if not isinstance(found, dict):
            raise UserError(f"{file}: {damaged}")
        # Earlier versions did not say which classes: these, for all that is known.
        return {"classes": self._classes} | found

    @property
    def _classes(self) -> dict[str, str]:
        return {str(number): name for number, name in enumerate(self.train.classes)}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, with both values."""
    old, new = _flat(before), _flat(now)
    keys = [key for key in dict.fromkeys((*new, *old)) if key.rpartition(".")[2] not in HOW]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, part in values.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
