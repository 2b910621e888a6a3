"""What the stages of a run share: the data, the run folder and who may write in it."""

from __future__ import annotations

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
from vitas.data import decoded, sources
from vitas.files import write_atomically
from vitas.models.supernet import Supernet
from vitas.recipe import Recipe
from vitas.report.terminal import say
from vitas.report.tracking import Tracker
from vitas.search.scoring import correct
from vitas.train.stop import StopRequest


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    recipe: Recipe
    accelerator: Accelerator
    tracker: Tracker
    stop: StopRequest
    train: sources.Split
    test: sources.Split

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

    def cached(self, split: sources.Split, name: str, image_size: int) -> decoded.Cached:
        """The images of a split at one size, decoded once for all ranks."""
        work = partial(
            decoded.decoded, split, self.folder / "cache" / f"{name}_{image_size}", image_size, self.recipe.data
        )
        return self.main_first(lambda main: work(write=main))

    def correct(
        self, model: nn.Module, images: decoded.Cached, batch_size: int, *, shared: bool = False
    ) -> torch.Tensor:
        """`vitas.search.scoring.correct` on this rank's device: of all images, or of this rank's part of them."""
        source, rank, world = self.recipe.data, self.accelerator.process_index, self.accelerator.num_processes
        part = {"rank": rank, "world": world} if shared else {}
        device = self.accelerator.device
        return correct(model, images, mean=source.mean, std=source.std, batch_size=batch_size, device=device, **part)

    def new_supernet(self) -> Supernet:
        """The supernet with its first weights, the same on all ranks."""
        settings = self.recipe.supernet
        torch.manual_seed(self.recipe.seed)
        return Supernet(self.recipe.space, self.num_classes, sharing=settings.sharing, attention=settings.attention)

    def settings(self, *sections: str) -> dict[str, Any]:
        """What decides the outcome of a stage: its sections, and the images. Where and how fast it runs does not."""
        how = {"checkpoint_every", "keep_checkpoints", "micro_batch_size", "grad_checkpointing", "compile"}
        images = self.recipe.data.model_dump(mode="json", exclude={"workers", "test", "holdout"})
        chosen = {name: getattr(self.recipe, name).model_dump(mode="json", exclude=how) for name in sections}
        return {"seed": self.recipe.seed, "data": images, **chosen}

    def claim(self, stage: str, settings: dict[str, Any]) -> Path:
        """The folder of a stage, whose contents were made with just these settings.

        Raises:
            UserError: There is work in it that was done with others.
        """
        folder = self.folder / stage
        file = folder / "settings.yaml"
        settings = json.loads(json.dumps(settings))
        damaged = f"damaged: delete it to trust what is in {folder}, or all of {folder}"
        before = read_yaml(file, otherwise=damaged) if file.is_file() else settings
        if not isinstance(before, dict):
            raise UserError(f"{file}: {damaged}")
        if before != settings:
            old, new = _flat(before), _flat(settings)
            key = next(key for key in (*new, *old) if old.get(key) != new.get(key))
            raise UserError(
                f"{folder}: made with {key}: {old.get(key)}, and the recipe now says {new.get(key)}; "
                f"give the run another name, or delete {folder}"
            )
        if self.accelerator.is_main_process and not file.is_file():
            write_atomically(file, yaml.safe_dump(settings, sort_keys=False))
        return folder


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, part in values.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
