"""Decoded images where models see them: on the device, normalised there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitas.data.decoded import Cached

SHARE_OF_MEMORY = 0.5
"""Of a device's free memory, what its images may take: models need the rest."""


class Normaliser:
    """Takes pixels (B, 3, H, W) from 0 to 255 to float32, less the mean and by the standard deviation of each channel.

    Args:
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
        device: Where the pixels are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.scale, self.shift = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (std, mean))

    def __call__(self, images: Tensor) -> Tensor:
        """Contiguous, whatever the layout of the pixels."""
        return (
            images.to(torch.float32, memory_format=torch.contiguous_format, copy=True).sub_(self.shift).div_(self.scale)
        )


class DeviceImages:
    """Decoded images in one order, on `device`.

    Where they fit they are copied to it once, as bytes. Otherwise the next batch is read and copied while the one
    before is computed; a CPU reads them where they are.

    Args:
        cached: The images.
        device: Where they are wanted.
        mean: Of each channel, in [0, 1]; with `std` it normalises pixels.
        std: Of each channel, in [0, 1].
        order: Which image comes first, second, ...; as they are if left out.
    """

    def __init__(
        self,
        cached: Cached,
        device: torch.device,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        order: np.ndarray | None = None,
    ) -> None:
        self.cached, self.device = cached, device
        self.order = np.arange(len(cached.labels)) if order is None else order
        self.labels = torch.from_numpy(cached.labels[self.order]).to(device)
        self.normalise = Normaliser(mean, std, device)
        self.resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if cached.images.nbytes < SHARE_OF_MEMORY * free:
                self.resident = torch.empty(cached.images.shape, dtype=torch.uint8, device=device)
                for start in range(0, len(self), 1024):
                    self.resident[start : start + 1024] = self._read(start, start + 1024)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def in_words(self) -> str:
        """How many images there are, and where."""
        where = "read ahead from disk" if self.device.type == "cuda" else "in place"
        if self.resident is not None:
            where = f"resident on the device ({self.resident.nbytes / 1e9:.2g} GB)"
        return f"{len(self):,} images, {where}"

    def cuts(self, start: int, stop: int, batch_size: int) -> list[tuple[int, int]]:
        """First and one past the last image of even batches of at most `batch_size`."""
        return even_parts(start, stop, -(-(stop - start) // batch_size))

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [start, stop) as float32 (B, 3, H, W), and labels (B,), cut as `cuts` says."""
        for images, first, last in self._raw(self.cuts(start, stop, batch_size)):
            yield self.normalise(images), self.labels[first:last]

    def _raw(self, parts: list[tuple[int, int]]) -> Iterator[tuple[Tensor, int, int]]:
        if self.resident is not None:
            yield from ((self.resident[first:last], first, last) for first, last in parts)
        elif self.device.type != "cuda":
            yield from ((self._read(first, last).to(self.device), first, last) for first, last in parts)
        else:
            copies: Any = torch.cuda.Stream(self.device)

            def ahead(first: int, last: int) -> Tensor:
                with torch.cuda.stream(copies):
                    return self._read(first, last).pin_memory().to(self.device, non_blocking=True)

            with ThreadPoolExecutor(1) as reader:
                coming = reader.submit(ahead, *parts[0])
                for (first, last), following in zip(parts, [*parts[1:], None], strict=True):
                    images = coming.result()
                    now = torch.cuda.current_stream(self.device)
                    now.wait_stream(copies)
                    images.record_stream(now)
                    if following:
                        coming = reader.submit(ahead, *following)
                    yield images, first, last

    def _read(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.cached.images[self.order[start:stop]])


def even_parts(start: int, stop: int, count: int) -> list[tuple[int, int]]:
    """First and one past the last of `count` parts of [start, stop), whose sizes differ by one at most."""
    return list(pairwise(np.linspace(start, stop, count + 1).round().astype(int).tolist()))


def stratified(labels: np.ndarray) -> np.ndarray:
    """(N,) An order of images any stretch of which holds the classes in their proportions; always the same one."""
    shuffled = np.random.default_rng(len(labels)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return by_class[np.argsort(place, kind="stable")]
