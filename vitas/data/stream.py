"""Images that come in shards, without an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from vitas.data import keyed
from vitas.data.images import first_readable
from vitas.data.plan import Plan
from vitas.data.splits import Split


class Stream(IterableDataset[Any]):
    """A streamed split: shards in an order drawn for each epoch, dealt to ranks and workers, shuffled in a buffer."""

    def __init__(self, split: Split, transform: Callable[..., Any], plan: Plan, seed: int, buffer: int) -> None:
        self.split, self.transform, self.plan, self.seed, self.buffer = split, transform, plan, seed, buffer

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int, dict[str, str]]]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        # torch's loader takes batches from the workers in turn: after a resume, from the one whose turn it was.
        taken, left = (step * self.plan.accumulation for step in (self.plan.start, self.plan.stop - self.plan.start))
        worker = (number + taken) % workers
        first = -(-(taken - worker) // workers) * self.plan.micro_batch
        last = first + -(-(left - number) // workers) * self.plan.micro_batch
        parts = (self.plan.rank * workers + worker, self.plan.world * workers)
        rng = np.random.default_rng([self.seed, *parts])
        examples = self._raw(*parts)
        held = list(islice(examples, self.buffer))
        for position, example in enumerate(islice(examples, last)):
            chosen = int(rng.integers(len(held)))
            picked, held[chosen] = held[chosen], example
            if position >= first:  # what comes before is drawn, but not decoded
                key = [self.seed, *parts, position]
                yield first_readable((picked, *held), self.transform, key, self.split)

    def _raw(self, part: int, parts: int) -> Iterator[tuple[str, Any, int]]:
        shards = self.split.dataset.num_shards
        for epoch in range(2**31):
            order = np.random.default_rng([self.seed, epoch]).permutation(shards)
            if shards % parts == 0:  # whole shards: nothing is read in vain
                mine: Iterator[Any] = (
                    example for shard in order[part::parts] for example in self.split.examples(shard)
                )
            else:
                every = (example for shard in order for example in self.split.examples(shard))
                mine = (example for number, example in enumerate(every) if number % parts == part)
            yield from mine


def count_images(split: Split, known: int | None, file: Path, *, write: bool = True) -> int:
    """The number of images, unreadable ones included.

    Of a stream it follows from the `known` number of all training images; if that is not known, the stream is read
    through once, and the number remembered in `file`. Without `write` it is read from there, whatever it is of.
    """
    if split.indices is not None:
        return len(split.indices)
    if split.origin.images is not None:
        known = len(split.origin.images)
    if known is not None:
        return known - known // split.stride if split.stride else known
    if not write:
        return keyed.read(file)
    key = split.key()
    count = keyed.read(file, key)
    if not isinstance(count, int):
        shards = range(split.dataset.num_shards)
        counts = [sum(1 for _ in split.examples(shard)) for shard in tqdm(shards, desc="count images", leave=False)]
        count = sum(counts)
        keyed.write(file, key, count)
    return count
