"""Which images each rank reads, in micro-batches that follow from the global batch."""

from __future__ import annotations

from dataclasses import dataclass

from vitas.config import UserError
from vitas.sections import Training


@dataclass(frozen=True)
class Plan:
    """Which images each rank reads, from where to where."""

    batch_size: int
    """Images of an optimizer step, over all ranks and micro-batches."""
    accumulation: int
    """Micro-batches of a rank in an optimizer step."""
    start: int
    """First optimizer step."""
    stop: int
    """One past the last optimizer step."""
    rank: int = 0
    world: int = 1

    @property
    def micro_batch(self) -> int:
        """Images of one micro-batch on one rank."""
        return self.batch_size // (self.accumulation * self.world)


def make_plan(settings: Training, images: int, stage: str, ranks: int) -> tuple[Plan, int]:
    """The plan of rank 0, with micro-batch and accumulation from the global batch; also the steps of an epoch.

    Raises:
        UserError: The batch does not divide over the ranks, or is larger than the data.
    """
    batch = settings.batch_size
    if batch > images:
        raise UserError(f"{stage}.batch_size: expected at most {images}, the number of training images, got {batch}")
    if batch % ranks:
        raise UserError(f"{stage}.batch_size: expected a multiple of the {ranks} ranks, got {batch}")
    local = batch // ranks
    even = 2 if settings.augment.mixup or settings.augment.cutmix else 1
    fitting = [size for size in range(1, local + 1)
               if local % size == 0 and size % even == 0 and size <= settings.micro_batch_size]  # fmt: skip
    if not fitting:
        raise UserError(f"{stage}.batch_size: expected an even number of images on each of {ranks} ranks, got {batch}")
    steps_per_epoch = images // batch
    plan = Plan(
        batch_size=batch,
        accumulation=local // fitting[-1],
        start=0,
        stop=max(1, round(settings.epochs * steps_per_epoch)),
        world=ranks,
    )
    return plan, steps_per_epoch
