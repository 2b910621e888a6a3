"""How well models do on decoded images: the unit of the search's work is a candidate on a slice of the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from itertools import islice
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vitas.data.device import DeviceImages, even_parts
from vitas.models.fast import fast
from vitas.models.supernet import Supernet
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained

PRECISIONS = {"no": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Accelerate's names, and ours for a budget; None is float32."""

MOST_SLICES, SLICE = 20, 64
"""Images are cut into at most so many slices, of no fewer images."""


A = TypeVar("A")
B = TypeVar("B")
Logits = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) to logits (B, classes)."""


class Tally(NamedTuple):
    """What a model got right."""

    top1: int
    """Images whose class was its first guess."""
    top5: int
    """Images whose class was among its first five."""
    loss: float
    """Sum of the cross-entropy, in nats."""
    images: int

    @classmethod
    def sum(cls, parts: Iterable[Tally]) -> Tally:
        """Of all parts."""
        top1, top5, loss, images = zip(*parts, strict=True)
        return cls(sum(top1), sum(top5), sum(loss), sum(images))


@torch.inference_mode()
def tally(
    model: Logits, images: DeviceImages, start: int, stop: int, *, batch_size: int, precision: str = "no"
) -> Tally:
    """What `model` gets right of the images [start, stop)."""
    sums = torch.zeros(3, dtype=torch.float64, device=images.device)
    with autocast(images.device, precision):
        for pixels, labels in images.batches(start, stop, batch_size) if start < stop else ():
            logits = model(pixels).float()
            hits = logits.topk(min(5, logits.shape[-1])).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
            sums += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), loss])
    top1, top5, loss = sums.tolist()
    return Tally(int(top1), int(top5), loss, stop - start)


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    """Threads that compute a batch each, alone.

    Several threads in one product cut it in another way than fewer do, which shows in the last bits of a score; and
    on small networks they wait for each other most of the time.
    """
    all_there = Barrier(threads)
    pool = ThreadPoolExecutor(threads, initializer=_alone)
    list(pool.map(lambda _: all_there.wait(), range(threads)))
    torch.set_num_threads(threads)  # torch takes the last number for that of threads to come
    return pool


def _alone() -> None:
    torch.get_num_threads()  # else torch sets this thread's number itself, when it first computes
    torch.set_num_threads(1)


def autocast(device: torch.device, precision: str) -> Any:
    """A context in which models compute in a precision of Accelerate's name."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def slices(images: int) -> list[tuple[int, int]]:
    """The slices of so many images: first and one past the last image of each."""
    return even_parts(0, images, min(MOST_SLICES, -(-images // SLICE)))


class Scorer:
    """Scores candidates in a supernet: the one function through which all go, on every rank.

    Args:
        net: The trained supernet, on the device, in evaluation mode.
        images: The images, in an order of which any stretch is a fair sample.
        batch_size: Images of one forward; None until someone says.
        precision: Accelerate's name of it.
    """

    def __init__(self, net: Supernet, images: DeviceImages, *, batch_size: int | None, precision: str) -> None:
        self.net, self.images, self.batch_size, self.precision = net, images, batch_size, precision
        self.slices = slices(len(images))
        self._last: tuple[tuple[Architecture, int], dict[str, Logits]] | None = None

    def sides(self, architecture: Architecture, batch_size: int) -> Mapping[str, Logits]:
        """What gives the logits of a candidate, for each side of the supernet; the last one's are kept."""
        if self._last is None or self._last[0] != (architecture, batch_size):
            self._last = None  # its memory is free before more is taken
            logits = self._across(lambda side: self._logits(architecture, side, batch_size), self.net.sides)
            self._last = (architecture, batch_size), dict(zip(self.net.sides, logits, strict=True))
        return self._last[1]

    def _logits(self, architecture: Architecture, side: str, batch_size: int) -> Logits:
        with autocast(self.images.device, self.precision):
            return fast(self.net.extract(architecture, side), batch_size)

    def score(self, architecture: Architecture, first: int, length: int) -> dict[str, Any]:
        """A line of the store: of each side, right answers and loss on each of `length` slices from `first` on."""
        assert self.batch_size
        size = self.batch_size
        began = time.perf_counter()
        line: dict[str, Any] = {"key": architecture.key, "first": first, "batch_size": size, "hits": {}, "loss": {}}
        with explained(lambda: f"scores: out of memory at architecture {architecture.model_dump_json()}; "
                               f"lower evolve.batch_size from {size}"):  # fmt: skip
            for side, logits in self.sides(architecture, size).items():
                found = self._tallies(logits, self.slices[first : first + length], size)
                line["hits"][side] = [part.top1 for part in found]
                line["loss"][side] = [part.loss for part in found]
        return line | {"seconds": time.perf_counter() - began}

    def fastest_batch(self, architecture: Architecture) -> int:
        """The images of a forward at which most are scored in a second: 16, 32, ... until twice as many gain nothing.

        On a CPU more than a few only cost memory; a GPU wants many.
        """
        most = max(stop - start for start, stop in self.slices)
        size, rate = min(16, most), 0.0
        while True:
            logits = self.sides(architecture, size)[self.net.sides[0]]
            seconds = []
            for _ in range(4):  # the first one warms up
                began = time.perf_counter()
                self._tallies(logits, [(0, size)], size)
                seconds.append(time.perf_counter() - began)
            last, rate = rate, size / min(seconds[1:])
            if rate < 1.05 * last:
                return size // 2
            if 2 * size > most:
                return size
            size *= 2

    def _tallies(self, logits: Logits, cuts: Sequence[tuple[int, int]], size: int) -> list[Tally]:
        """What is right in each of several stretches of the images."""

        def of(start: int, stop: int) -> Tally:
            return tally(logits, self.images, start, stop, batch_size=size, precision=self.precision)

        if self.images.device.type != "cpu":
            return [of(*cut) for cut in cuts]
        batches = [self.images.cuts(*cut, size) for cut in cuts]
        found = iter(self._across(lambda batch: of(*batch), [batch for part in batches for batch in part]))
        return [Tally.sum(islice(found, len(part))) for part in batches]

    def _across(self, work: Callable[[A], B], arguments: Sequence[A]) -> list[B]:
        """What `work` makes of each argument; on a CPU on all threads, each for itself."""
        on_cpu = self.images.device.type == "cpu"
        return list((_workers(torch.get_num_threads()).map if on_cpu else map)(work, arguments))
