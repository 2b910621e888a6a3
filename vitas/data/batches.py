"""From splits to the micro-batches of a rank.

Every draw comes from (seed, epoch, image), so that batches depend neither on the number of ranks or
workers nor on where a run was resumed. (A stream is read by shards, so its order does depend on both counts.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitas.data.images import first_readable
from vitas.data.plan import Plan
from vitas.data.splits import Split, Unreadable
from vitas.data.stream import Stream


class Batch(NamedTuple):
    """One micro-batch: images (B, 3, H, W) uint8 in any layout, labels (B,), and what was replaced as unreadable."""

    images: torch.Tensor
    labels: torch.Tensor
    unreadable: dict[str, str]


@dataclass(frozen=True)
class TrainingData:
    """The images that one training sees."""

    split: Split
    size: int
    """Number of images, unreadable ones included."""
    transform: Callable[[torch.Tensor], torch.Tensor]
    seed: int
    """Seed of order and augmentation."""
    workers: int
    shuffle_buffer: int
    pin_memory: bool
    mean: Sequence[float]
    """Of each channel, in [0, 1]; with `std` it normalises the pixels, where the model is."""
    std: Sequence[float]

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return len(self.split.classes)

    @property
    def unreadable(self) -> Unreadable:
        """The account of images that could not be read."""
        return self.split.unreadable

    def batches(self, plan: Plan) -> DataLoader[Batch]:
        """The micro-batches of a rank."""
        return loader(
            self.split,
            self.transform,
            plan,
            seed=self.seed,
            workers=self.workers,
            shuffle_buffer=self.shuffle_buffer,
            pin_memory=self.pin_memory,
        )


def loader(split: Split, transform: Callable[..., Any], plan: Plan, *, seed: int, workers: int, shuffle_buffer: int,
           pin_memory: bool) -> DataLoader[Batch]:  # fmt: skip
    """An endless stream of this rank's micro-batches, from step `plan.start` to `plan.stop`."""
    if split.streamed:  # no more workers than this rank has shards
        workers = min(workers, max(1, split.dataset.num_shards // plan.world))
    options: dict[str, Any] = {"num_workers": min(workers, allowed_cores()), "pin_memory": pin_memory}
    options["worker_init_fn"] = outlive_a_stop
    if split.streamed:
        stream = Stream(split, transform, plan, seed, shuffle_buffer)
        return DataLoader(stream, batch_size=plan.micro_batch, collate_fn=_collate, **options)
    rows = _Rows(split, transform, seed)
    batches = _micro_batches(len(rows), plan, seed)
    return DataLoader(rows, batch_sampler=batches, collate_fn=_collate, **options)  # pyright: ignore[reportArgumentType]


def allowed_cores() -> int:
    """The cores that this process may use: those of its job, not all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def outlive_a_stop(_: int) -> None:
    """A worker that is told to end, with its rank, gives it a minute to take its last step and save."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the terminal


def _micro_batches(size: int, plan: Plan, seed: int) -> Iterator[list[tuple[int, int]]]:
    """(epoch, row) of each image of each of this rank's micro-batches.

    A step's images are the same whatever the ranks. Each micro-batch is laid out so that image i and image -1-i,
    which timm's Mixup mixes, are neighbours in the step's order: so are the pairs, then, whatever the ranks.
    """
    per_epoch = size // plan.batch_size
    order, order_of = np.empty(0), -1
    for step in range(plan.start, plan.stop):
        epoch, position = divmod(step, per_epoch)
        if epoch != order_of:
            order, order_of = np.random.default_rng([seed, epoch]).permutation(size), epoch
        images = order[position * plan.batch_size : (position + 1) * plan.batch_size]
        for turn in range(plan.accumulation):
            first = (turn * plan.world + plan.rank) * plan.micro_batch
            rows = images[first : first + plan.micro_batch]
            yield [(epoch, int(row)) for row in (*rows[0::2], *rows[1::2][::-1])]


class _Rows(Dataset[Any]):
    """An indexed split as a torch dataset over (epoch, row)."""

    def __init__(self, split: Split, transform: Callable[..., Any], seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self) -> int:
        assert self.split.indices is not None
        return len(self.split.indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, dict[str, str]]:
        epoch, row = key
        others = ((row + step) % len(self) for step in range(len(self)))
        return first_readable(map(self.split.example, others), self.transform, [self.seed, epoch, row], self.split)


def _collate(samples: list[tuple[torch.Tensor, int, dict[str, str]]]) -> Batch:
    images, labels, unreadable = zip(*samples, strict=True)
    merged = {name: reason for reasons in unreadable for name, reason in reasons.items()}
    rows = torch.stack([image.permute(1, 2, 0) for image in images])  # as they lie; the device transposes
    return Batch(rows.permute(0, 3, 1, 2), torch.tensor(labels), merged)
