"""The micro-batches of a rank, on its device, normalised there and mixed as the settings say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.data import Mixup
from torch import Tensor

from vitas.config import RankError, SourceLost, UserError, words_of
from vitas.data.batches import Batch, TrainingData
from vitas.data.device import Normaliser
from vitas.sections import Training
from vitas.train.alone import gather
from vitas.train.memory import PRECISIONS


class Feed:
    """Takes micro-batches from the loader to the device, and keeps the account of unreadable images."""

    def __init__(self, accelerator: Accelerator, data: TrainingData, settings: Training) -> None:
        self.accelerator = accelerator
        self.data = data
        self.last: Batch | None = None
        self.lost = ""
        self.found: dict[str, str] = {}
        """Images that this rank could not read, and has not told the others of."""
        self.normalise = Normaliser(data.mean, data.std, accelerator.device)
        augment, smoothing = settings.augment, settings.label_smoothing
        mixes = augment.mixup or augment.cutmix
        self.mixup = (
            Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=data.num_classes)
            if mixes
            else None
        )

    def take(self, batches: Iterator[Batch], step: int) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) and labels, (B,) or with Mixup (B, classes), of the next micro-batch.

        If they cannot be had, `lost` says why, and the last ones stand in: other ranks have to be told first.

        Raises:
            RankError: The images of this rank are not what the recipe says; or even the first cannot be had.
        """
        try:
            batch = self.last if self.lost and self.last else next(batches)
            self.last = batch
            known = self.data.unreadable.reasons
            self.found |= {name: why for name, why in batch.unreadable.items() if name not in known}
        except SourceLost as error:
            self.lost = words_of(error)
            if self.last is None:
                raise SourceLost(self.lost) from None
            batch = self.last
        except UserError as error:
            raise RankError(words_of(error)) from None
        device = self.accelerator.device
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.labels))
        images = self.normalise(images)
        if self.mixup:
            np.random.seed(draw(self.data.seed, step))  # timm's Mixup draws from numpy: the same on every rank
            images, labels = self.mixup(images, labels)
        half = PRECISIONS[self.accelerator.mixed_precision]
        if half and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            images = images.to(half)  # its engine casts weights, not inputs
        return images, labels

    def share_found(self) -> None:
        """Tells all ranks which images any of them could not read. All ranks call it.

        Raises:
            UserError: There are too many of them.
        """
        everyone: list[dict[str, str]] = gather(self.accelerator, [self.found])
        self.found = {}
        self.data.unreadable.add({name: why for found in everyone for name, why in found.items()})
        self.data.unreadable.keep()


def draw(*key: int) -> int:
    """A seed of 32 bits from any numbers, such as (seed, step)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
