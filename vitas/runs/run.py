"""What the stages of a run share: the data, the run folder and who may write in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vitas.config import UserError
from vitas.data import decoded
from vitas.data.device import DeviceImages
from vitas.data.splits import Split
from vitas.files import write_atomically
from vitas.models.supernet import Supernet
from vitas.recipe import Recipe, dump
from vitas.report.terminal import say
from vitas.report.tracking import Tracker, Untracked
from vitas.runs import claims
from vitas.sections import MAY_CHANGE
from vitas.train.stop import StopRequest


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    recipe: Recipe
    accelerator: Accelerator
    tracker: Tracker | Untracked
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
    def skips(self) -> dict[str, float]:
        """For each budget the skip probability: the recipe's, or the one calibrated to it."""
        return self.recipe.skip_probabilities(self.num_classes)

    @property
    def writer(self) -> str:
        """A name of this rank of this run, for `Store`: no two of one name are at work at the same time."""
        place = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:8]
        return f"{self.recipe.name}-{place}-{self.accelerator.process_index}"

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

    def on_device(self, images: decoded.Cached, order: np.ndarray | None = None) -> DeviceImages:
        """Decoded images on this rank's device."""
        source = self.recipe.data
        return DeviceImages(images, self.accelerator.device, mean=source.mean, std=source.std, order=order)

    def new_supernet(self, **how: Any) -> Supernet:
        """The supernet with its first weights, the same on all ranks; its sharing is the recipe's if not said."""
        settings = self.recipe.supernet
        torch.manual_seed(self.recipe.seed)
        how = {"sharing": settings.sharing, "attention": settings.attention} | how
        return Supernet(self.recipe.space, self.num_classes, **how)

    def settings(self, *sections: str) -> dict[str, Any]:
        """What decides the outcome of a stage: its sections, images, classes. Where and how fast it runs does not."""
        images = self.recipe.data.model_dump(mode="json", exclude=claims.HOW_READ)
        chosen = {name: getattr(self.recipe, name).model_dump(mode="json", exclude=claims.HOW) for name in sections}
        return {"seed": self.recipe.seed, "data": images, "classes": self._classes, **chosen}

    def claim(self, stage: str, settings: dict[str, Any], *, named: str = "the run") -> Path:
        """The folder of a stage, whose contents were made with just these settings.

        A training that is not done may take over what `sections.MAY_CHANGE` names.

        Raises:
            UserError: There is work in it that was done with others.
        """
        folder = self.folder / stage
        settings = claims.plain(settings)
        before = claims.made_with(folder)
        done = (folder / "model.safetensors").is_file()
        for key, old, new in claims.differences(self.with_classes(before), settings) if before else ():
            section, _, setting = key.rpartition(".")
            if done or section not in claims.TRAININGS or setting not in MAY_CHANGE:
                raise UserError(
                    f"{folder}: made with {key}: {old}, and the recipe now says {new}; "
                    f"give {named} another name, or delete {folder}"
                )
        if self.accelerator.is_main_process:
            write_atomically(self.folder / "recipe.yaml", dump(self.recipe))
            claims.sign(folder, settings)
        return folder

    def checksum(self, file: Path) -> str:
        """The sum of a file that the main process wrote."""
        return self.main_first(lambda _: hashlib.sha256(file.read_bytes()).hexdigest())

    def with_classes(self, made_with: dict[str, Any]) -> dict[str, Any]:
        """Settings of earlier versions did not say which classes: these, for all that is known."""
        return {"classes": self._classes} | made_with

    @property
    def _classes(self) -> dict[str, str]:
        return {str(number): name for number, name in enumerate(self.train.classes)}
