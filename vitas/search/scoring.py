"""How well models do on decoded images: the unit of the search's work is a candidate on a slice of the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitas.data.device import DeviceImages
from vitas.models.fast import fast
from vitas.models.supernet import Supernet
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained

PRECISIONS = {"no": None, "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Accelerate's names, and ours for a budget; None is float32."""

MOST_SLICES, SLICE = 20, 64
"""Images are cut into at most so many slices, of no fewer images."""


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


@torch.inference_mode()
def tally(
    model: Logits,
    images: DeviceImages,
    start: int,
    stop: int,
    *,
    batch_size: int,
    precision: str = "no",
) -> Tally:
    """What `model` gets right of the images [start, stop)."""
    sums = torch.zeros(3, dtype=torch.float64, device=images.device)
    with _autocast(images.device, precision):
        for pixels, labels in images.batches(start, stop, batch_size) if start < stop else ():
            logits = model(pixels).float()
            hits = logits.topk(min(5, logits.shape[-1])).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
            sums += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), loss])
    top1, top5, loss = sums.tolist()
    return Tally(int(top1), int(top5), loss, stop - start)


def _autocast(device: torch.device, precision: str) -> Any:
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def slices(images: int) -> list[tuple[int, int]]:
    """The slices of so many images: first and one past the last image of each."""
    count = min(MOST_SLICES, -(-images // SLICE))
    return list(pairwise(np.linspace(0, images, count + 1).round().astype(int).tolist()))


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
            with _autocast(self.images.device, self.precision):
                logits = {side: fast(self.net.extract(architecture, side), batch_size) for side in self.net.sides}
            self._last = (architecture, batch_size), logits
        return self._last[1]

    def score(self, architecture: Architecture, first: int, length: int) -> dict[str, Any]:
        """A line of the store: of each side, right answers and loss on each of `length` slices from `first` on."""
        assert self.batch_size
        size = self.batch_size
        began = time.perf_counter()
        line: dict[str, Any] = {"key": architecture.key, "first": first, "batch_size": size, "hits": {}, "loss": {}}
        with explained(lambda: f"evolve: out of memory at architecture {architecture.model_dump_json()}; "
                               f"lower evolve.batch_size from {size}"):  # fmt: skip
            for side, logits in self.sides(architecture, size).items():
                cuts = self.slices[first : first + length]
                found = [tally(logits, self.images, *cut, batch_size=size, precision=self.precision) for cut in cuts]
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
                tally(logits, self.images, 0, size, batch_size=size, precision=self.precision)
                seconds.append(time.perf_counter() - began)
            last, rate = rate, size / min(seconds[1:])
            if rate < 1.05 * last:
                return size // 2
            if 2 * size > most:
                return size
            size *= 2
