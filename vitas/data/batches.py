"""From splits to the micro-batches of a rank.

Every draw comes from (seed, epoch, image), so that batches depend neither on the number of ranks or
workers nor on where a run was resumed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitas.data.images import first_readable
from vitas.data.plan import Plan
from vitas.data.splits import Split, Unreadable
from vitas.data.stream import Order, Stream


class Batch(NamedTuple):
    """One micro-batch: images (B, 3, H, W) uint8 in any layout, labels (B,), and what was replaced as unreadable."""

    images: torch.Tensor
    labels: torch.Tensor
    unreadable: dict[str, str]


@dataclass(frozen=True)
class TrainingData:
    """The images that one training sees."""

    split: Split
    transform: Callable[[torch.Tensor], torch.Tensor]
    seed: int
    """Seed of order and augmentation."""
    workers: int
    readers: int
    """Of a stream."""
    shuffle_buffer: int
    """Images among which a stream's are shuffled, over all readers."""
    pin_memory: bool
    mean: Sequence[float]
    """Of each channel, in [0, 1]; with `std` it normalises the pixels, where the model is."""
    std: Sequence[float]

    @property
    def size(self) -> int:
        """Number of images, unreadable ones included."""
        return len(self.split.indices)

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        return len(self.split.classes)

    @property
    def unreadable(self) -> Unreadable:
        """The account of images that could not be read."""
        return self.split.unreadable

    def stream_in_words(self, plan: Plan) -> str:
        """How a stream is read: by how many readers and workers, and what of that is not as the recipe says."""
        order = Order(self.split, plan.batch_size, readers=self.readers, buffer=self.shuffle_buffer, seed=self.seed)
        most = min(self.workers, allowed_cores())
        workers = Stream(order, self.transform, plan).workers(most)
        words = f"{self.size:,} images in {len(order.counts):,} shards, {order.readers} readers"
        if workers < most:
            words += f"; {workers} workers on each rank, not {most}, which do not share its readers evenly"
        if order.readers % plan.world:
            words += f"; {plan.world} ranks share them unevenly, and some shards are read twice"
        return words

    def batches(self, plan: Plan) -> Iterable[Batch]:
        """The micro-batches of a rank."""
        return loader(
            self.split,
            self.transform,
            plan,
            seed=self.seed,
            workers=self.workers,
            readers=self.readers,
            shuffle_buffer=self.shuffle_buffer,
            pin_memory=self.pin_memory,
        )


def loader(split: Split, transform: Callable[..., Any], plan: Plan, *, seed: int, workers: int, readers: int,
           shuffle_buffer: int, pin_memory: bool) -> Iterable[Batch]:  # fmt: skip
    """This rank's micro-batches, from step `plan.start` to `plan.stop`."""
    workers = min(workers, allowed_cores())
    options: dict[str, Any] = {"worker_init_fn": outlive_a_stop}
    if split.streamed:
        order = Order(split, plan.batch_size, readers=readers, buffer=shuffle_buffer, seed=seed)
        stream = Stream(order, transform, plan)
        workers = stream.workers(workers)
        parts = DataLoader(stream, batch_size=None, collate_fn=_part, num_workers=workers, **options)
        return _merged(parts, max(1, workers), plan.micro_batch, pin_memory)
    rows = _Rows(split, transform, seed)
    options |= {"num_workers": workers, "pin_memory": pin_memory}
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

    A step's images are the same whatever the ranks, and so are the pairs that are mixed (`_mixed`).
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
            yield [(epoch, int(row)) for row in rows[_mixed(len(rows))]]


def _mixed(size: int) -> np.ndarray:
    """An order of a micro-batch in which image i and image -1-i, which timm's Mixup mixes, were neighbours before.

    Neighbours in a step stay neighbours in its micro-batches, however many ranks there are.
    """
    places = np.arange(size)
    return np.concatenate([places[0::2], places[1::2][::-1]])


class _Rows(Dataset[Any]):
    """An indexed split as a torch dataset over (epoch, row)."""

    def __init__(self, split: Split, transform: Callable[..., Any], seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self) -> int:
        return len(self.split.indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, dict[str, str]]:
        epoch, row = key
        others = ((row + step) % len(self) for step in range(len(self)))
        return first_readable(map(self.split.example, others), self.transform, [self.seed, epoch, row], self.split)


def _part(placed: list[tuple[int, Any]]) -> tuple[list[int], Batch | None]:
    """What one worker gives of a micro-batch, with the places of its images in it."""
    return [place for place, _ in placed], _collate([sample for _, sample in placed]) if placed else None


def _merged(parts: Iterable[Any], workers: int, size: int, pin_memory: bool) -> Iterator[Batch]:
    """Micro-batches from the parts that the workers give in turn."""
    parts = iter(parts)
    while of_all := list(islice(parts, workers)):
        places = np.concatenate([there for there, _ in of_all])
        order = torch.from_numpy(np.argsort(places)[_mixed(size)])
        batches = [batch for _, batch in of_all if batch is not None]
        images, labels = (torch.cat([batch[part] for batch in batches])[order] for part in (0, 1))
        if pin_memory:
            images, labels = images.pin_memory(), labels.pin_memory()
        yield Batch(images, labels, {name: why for batch in batches for name, why in batch.unreadable.items()})


def _collate(samples: list[tuple[torch.Tensor, int, dict[str, str]]]) -> Batch:
    images, labels, unreadable = zip(*samples, strict=True)
    merged = {name: reason for reasons in unreadable for name, reason in reasons.items()}
    rows = torch.stack([image.permute(1, 2, 0) for image in images])  # as they lie; the device transposes
    return Batch(rows.permute(0, 3, 1, 2), torch.tensor(labels), merged)
