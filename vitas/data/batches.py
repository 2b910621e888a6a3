"""From splits to the micro-batches of a rank.

Every draw comes from (seed, epoch, image), so that batches depend neither on the number of ranks or
workers nor on where a run was resumed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, starmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vitas.data import dali
from vitas.data.augment import TrainTransform
from vitas.data.images import first_readable
from vitas.data.plan import Plan
from vitas.data.splits import Split, Unreadable
from vitas.data.stream import Example, Order, Stream


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
    dali: torch.device | None = None
    """Where NVIDIA DALI decodes; without, the workers do."""

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
        workers = order.workers(plan, most)
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
            dali_on=self.dali,
        )


def loader(split: Split, transform: Callable[..., Any], plan: Plan, *, seed: int, workers: int, readers: int,
           shuffle_buffer: int, pin_memory: bool, dali_on: torch.device | None = None) -> Iterable[Batch]:  # fmt: skip
    """This rank's micro-batches, from step `plan.start` to `plan.stop`."""
    most = min(workers, allowed_cores())
    ordinary = partial(first_readable, transform=transform, split=split)
    image, collate, joined = ordinary, _collate, partial(_joined, pin_memory=pin_memory)
    if dali_on:
        image, collate, joined = partial(dali.undecoded, transform=transform, split=split), list, _listed
    options: dict[str, Any] = {"worker_init_fn": outlive_a_stop}
    if split.streamed:
        source = Order(split, plan.batch_size, readers=readers, buffer=shuffle_buffer, seed=seed)
        workers = source.workers(plan, most)
        options |= {"num_workers": workers, "collate_fn": partial(_part, collate)}
        parts = DataLoader(Stream(source, image, plan), batch_size=None, **options)
        batches: Any = starmap(joined, _merged(parts, max(1, workers), plan.micro_batch))
    else:
        source = _Rows(split, image, seed)
        options |= {"num_workers": most, "collate_fn": collate, "pin_memory": pin_memory and not dali_on}
        options |= {"batch_sampler": _micro_batches(len(source), plan, seed)}
        batches = DataLoader(source, **options)
    if not dali_on:
        return batches
    assert isinstance(transform, TrainTransform)

    def again(key: list[int]) -> dali.Decoded:
        return ordinary(source.examples(key), key)

    return starmap(Batch, dali.decoded(batches, again, transform.image_size, dali_on, max(1, most)))


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

    def __init__(self, split: Split, image: Callable[[Iterator[Example], list[int]], Any], seed: int) -> None:
        self.split, self.image, self.seed = split, image, seed

    def __len__(self) -> int:
        return len(self.split.indices)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        of_all_draws = [self.seed, *key]
        return self.image(self.examples(of_all_draws), of_all_draws)

    def examples(self, key: list[int]) -> Iterator[Example]:
        """The image with this key, and those that stand in for it if it cannot be read."""
        row = key[-1]
        return map(self.split.example, ((row + step) % len(self) for step in range(len(self))))


def _part(collate: Callable[[list[Any]], Any], placed: list[tuple[int, Any]]) -> tuple[list[int], Any]:
    """What one worker gives of a micro-batch, with the places of its images in it."""
    return [place for place, _ in placed], collate([sample for _, sample in placed]) if placed else None


def _merged(parts: Iterable[Any], workers: int, size: int) -> Iterator[tuple[list[Any], np.ndarray]]:
    """Micro-batches as the parts that the workers give in turn, and the order of the images in these."""
    parts = iter(parts)
    while of_all := list(islice(parts, workers)):
        places = np.concatenate([there for there, _ in of_all])
        yield [part for _, part in of_all if part is not None], np.argsort(places)[_mixed(size)]


def _joined(parts: list[Batch], order: np.ndarray, pin_memory: bool) -> Batch:
    where = torch.from_numpy(order)
    images = torch.cat([part.images for part in parts])[where]
    labels = torch.cat([part.labels for part in parts])[where]
    if pin_memory:
        images, labels = images.pin_memory(), labels.pin_memory()
    return Batch(images, labels, {name: why for batch in parts for name, why in batch.unreadable.items()})


def _listed(parts: list[list[Any]], order: np.ndarray) -> list[Any]:
    samples = [sample for part in parts for sample in part]
    return [samples[place] for place in order]


def _collate(samples: list[tuple[torch.Tensor, int, dict[str, str]]]) -> Batch:
    images, labels, unreadable = zip(*samples, strict=True)
    merged = {name: reason for reasons in unreadable for name, reason in reasons.items()}
    rows = torch.stack([image.permute(1, 2, 0) for image in images])  # as they lie; the device transposes
    return Batch(rows.permute(0, 3, 1, 2), torch.tensor(labels), merged)
