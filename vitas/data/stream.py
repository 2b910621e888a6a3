"""The order of a stream: a fixed number of readers, side by side, whatever the ranks and workers.

An epoch puts the shards in an order drawn for it, one after the other, and cuts that row of images into equal parts,
one for each reader. A reader shuffles its part in blocks. Each step takes as many images of each reader. Where a reader
is at a step follows from the step alone: nothing is read before it but the rest of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from vitas.data.plan import Plan
from vitas.data.shards import Shards
from vitas.data.splits import Split

FETCHERS = 4
"""Blocks that a worker fetches ahead at the same time, while it decodes those before."""

Example = tuple[str, Any, int]


class Sample(NamedTuple):
    """One image of a step, not decoded yet."""

    examples: Iterator[Example]
    """It, and those of its block that stand in for it if it cannot be read."""
    key: list[int]
    """Of all draws for it."""


class Order:
    """Which images of a stream each step takes.

    Args:
        split: The stream.
        batch_size: Images of a step.
        readers: How many readers there are, at most; they divide the batch, and are no more than the shards.
        buffer: Images among which a step's are drawn, over all readers.
        seed: Of the order.
    """

    def __init__(self, split: Split, batch_size: int, *, readers: int, buffer: int, seed: int) -> None:
        assert isinstance(split.dataset, Shards)
        self.split, self.seed = split, seed
        self.counts = np.diff(np.searchsorted(split.indices, split.starts))
        most = min(readers, int((self.counts > 0).sum()))
        self.readers = max(count for count in range(1, most + 1) if batch_size % count == 0)
        self.each = batch_size // self.readers
        """Images of a reader in a step."""
        self.per_epoch = len(split.indices) // batch_size
        """Steps."""
        self.block = max(1, buffer // self.readers)

    def of_rank(self, plan: Plan) -> range:
        """The readers of a rank; two ranks may share one, if they do not divide them."""
        local = plan.batch_size // plan.world
        first = plan.rank * local
        return range(first // self.each, -(-(first + local) // self.each))

    def workers(self, plan: Plan, most: int) -> int:
        """How many workers of a rank are of use: so many that each has as many readers."""
        readers = len(self.of_rank(plan))
        return max((count for count in range(1, most + 1) if readers % count == 0), default=0)

    def samples(self, reader: int, start: int, stop: int, pool: Executor) -> Iterator[Sample]:
        """The images of one reader, from step `start` to step `stop`, fetched ahead in `pool`."""
        low, high = self._part(reader)
        for epoch in range(start // self.per_epoch, -(-stop // self.per_epoch)):
            first, last = (min(max(step - epoch * self.per_epoch, 0), self.per_epoch) * self.each
                           for step in (start, stop))  # fmt: skip
            blocks = range(first // self.block, -(-last // self.block))
            for number, examples in zip(blocks, _ahead(self._blocks(epoch, reader, blocks), pool), strict=True):
                order = np.random.default_rng([self.seed, epoch, reader, number]).permutation(len(examples))
                shuffled = [examples[place] for place in order]
                begin = number * self.block
                for place in range(max(first - begin, 0), min(last - begin, len(shuffled))):
                    key = [self.seed, epoch, reader, begin + place]
                    stand_ins = self._between(epoch, low, high)  # hardly ever asked for
                    yield Sample(chain(_round(shuffled, place), stand_ins), key)

    def examples(self, key: list[int]) -> Iterator[Example]:
        """Those of the sample with this key, fetched once more."""
        _, epoch, reader, place = key
        step = epoch * self.per_epoch + place // self.each
        with ThreadPoolExecutor(1) as pool:
            return next(islice(self.samples(reader, step, step + 1, pool), place % self.each, None)).examples

    def _blocks(self, epoch: int, reader: int, blocks: range) -> Iterator[list[Example]]:
        """Some successive blocks of a reader in an epoch, as they lie in the shards."""
        low, high = self._part(reader)
        begin, end = low + blocks.start * self.block, min(low + blocks.stop * self.block, high)
        examples = self._between(epoch, begin, end)
        for _, block in groupby(range(begin, end), lambda place: (place - low) // self.block):
            yield [next(examples) for _ in block]

    def _part(self, reader: int) -> tuple[int, int]:
        """First and one past the last place of a reader in an epoch's order of shards."""
        low, high = (len(self.split.indices) * part // self.readers for part in (reader, reader + 1))
        return low, high

    def _between(self, epoch: int, begin: int, end: int) -> Iterator[Example]:
        """The images at the places [begin, end) of an epoch's order of shards."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.counts))
        ends = np.cumsum(self.counts[order])
        for place in range(int(np.searchsorted(ends, begin, "right")), len(order)):
            start = int(ends[place] - self.counts[order[place]])
            if start >= end:
                return
            shard = int(order[place])
            yield from self.split.examples(shard, self.split.rows_of(shard)[max(begin - start, 0) : end - start])


class Stream(IterableDataset[Any]):
    """What a rank takes of an order, dealt to its workers by whole readers: of each micro-batch each gives a part.

    Args:
        order: Of the images.
        image: What a sample's examples and key become, in the worker.
        plan: Of the rank.
    """

    def __init__(self, order: Order, image: Callable[[Iterator[Example], list[int]], Any], plan: Plan) -> None:
        self.order, self.image, self.plan = order, image, plan

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        """For each micro-batch the images that are this worker's, each with its place in it."""
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        plan, each = self.plan, self.order.each
        local = plan.batch_size // plan.world
        mine = self.order.of_rank(plan)[number::workers]
        pool = ThreadPoolExecutor(FETCHERS)
        try:
            samples = {reader: self.order.samples(reader, plan.start, plan.stop, pool) for reader in mine}
            for _ in range(plan.start, plan.stop):
                # All of a reader, also where another rank takes some of them.
                now = {reader: list(islice(its, each)) for reader, its in samples.items()}
                for first in range(plan.rank * local, (plan.rank + 1) * local, plan.micro_batch):
                    places = (place for place in range(first, first + plan.micro_batch) if place // each in now)
                    yield [(place - first, self.image(*now[place // each][place % each])) for place in places]
        finally:  # what is still being fetched is not waited for
            pool.shutdown(wait=False, cancel_futures=True)


def _round(block: list[Example], start: int) -> Iterator[Example]:
    """A block from one of its images on, once around."""
    return (block[(start + step) % len(block)] for step in range(len(block)))


def _ahead(items: Iterator[Any], pool: Executor) -> Iterator[Any]:
    """The items, each made in the pool while the one before is used."""
    coming = pool.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = pool.submit(next, items, None)
        yield item
