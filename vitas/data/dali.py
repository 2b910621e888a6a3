"""Training images that NVIDIA DALI decodes, crops, resizes and mirrors on a device.

Which images, crops, flips and erased rectangles there are stays our own: the workers draw them, of the size that a
JPEG's header says, with the transform and the key of the ordinary way. DALI gets bytes, boxes and flips. Its pixels
differ from the ordinary ones by the rounding of the resize and, on a GPU, by that of another decoder. What is no plain
JPEG the workers decode in the ordinary way. So does the rank with what DALI cannot decode: what counts as unreadable
does not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitas.config import UserError
from vitas.data.augment import TrainTransform
from vitas.data.images import Jpeg, first_readable, jpeg_or_pixels
from vitas.data.splits import Split

AHEAD = 2
"""Micro-batches that DALI is given before the first of them is used."""

DAMAGED = ("Failed to decode", "nvImageCodec failure")
"""What DALI's errors say of files, and not of the device."""


class Undecoded(NamedTuple):
    """A JPEG that DALI is to decode, and what was drawn for it."""

    content: bytes
    box: tuple[int, int, int, int]
    """Top, left, height and width of the crop."""
    mirrored: bool
    erased: list[tuple[Any, np.ndarray]]
    """Slices of (3, S, S) pixels, and the uint8 noise that takes their place."""


Image = Undecoded | np.ndarray
"""What a worker gives: a JPEG for DALI, or finished pixels (S, S, 3) uint8."""

Sample = tuple[Image, int, dict[str, str], list[int]]
"""An image, its label, what was replaced as unreadable, and the key of all draws for it."""

Decoded = tuple[Tensor, int, dict[str, str]]
"""Pixels (3, S, S) uint8, the label, and what was replaced as unreadable."""


def check() -> None:
    """Raises a UserError if the package is not installed."""
    if not find_spec("nvidia") or not find_spec("nvidia.dali"):
        raise UserError("data.decoder: dali needs the package: pip install 'vitas[dali]'")


def undecoded(examples: Any, key: list[int], transform: Callable[..., Any], split: Split) -> Sample:
    """The first image whose header can be read, with its draws; of what is no plain JPEG the pixels. In a worker."""
    return *first_readable(examples, key, partial(_drawn, transform), split, jpeg_or_pixels), key


def _drawn(transform: Callable[..., Any], image: Jpeg | Tensor) -> Image:
    if isinstance(image, Tensor):
        return transform(image).permute(1, 2, 0).numpy()
    assert isinstance(transform, TrainTransform)
    box, mirrored = transform.drawn(image.height, image.width)
    return Undecoded(image.content, box, mirrored, [(where, noise.numpy()) for where, noise in transform.erased()])


def decoded(batches: Iterable[list[Sample]], again: Callable[[list[int]], Decoded], size: int, device: torch.device,
            threads: int) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:  # fmt: skip
    """Images (B, 3, S, S) uint8 on the device, labels (B,), and what was replaced as unreadable.

    Args:
        batches: Micro-batches from the workers, none larger than the first.
        again: The sample of a key in the ordinary way, for one that DALI cannot decode.
        size: S.
        device: A GPU, or the CPU.
        threads: Of DALI on the CPU.
    """
    ahead: deque[tuple[list[Sample], Future[list[Tensor | None]]]] = deque()
    with ThreadPoolExecutor(1) as pool:  # draws stay in this thread: their generators are the process's
        decoder = _Decoder(size, device, threads)
        for samples in batches:
            jpegs = [image for image, *_ in samples if isinstance(image, Undecoded)]
            ahead.append((samples, pool.submit(decoder, jpegs, len(samples))))
            if len(ahead) > AHEAD:
                yield _merged(*ahead.popleft(), again, device)
        while ahead:
            yield _merged(*ahead.popleft(), again, device)


def _merged(samples: list[Sample], crops: Future[list[Tensor | None]], again: Callable[[list[int]], Decoded],
            device: torch.device) -> tuple[Tensor, Tensor, dict[str, str]]:  # fmt: skip
    """A micro-batch of DALI's crops and the workers' pixels, each at its place, with what is erased."""
    images, labels, unreadable = [], [], {}
    each = iter(crops.result())
    for image, label, reasons, key in samples:
        crop = next(each) if isinstance(image, Undecoded) else torch.from_numpy(image).to(device)
        if crop is not None and crop.is_cuda:
            crop.record_stream(torch.cuda.current_stream(device))  # its memory is another's
        if crop is None:
            ordinary, label, reasons = again(key)
            crop = ordinary.permute(1, 2, 0).to(device)
        elif isinstance(image, Undecoded):
            for where, noise in image.erased:
                crop.permute(2, 0, 1)[where] = torch.from_numpy(noise).to(device)
        images.append(crop)
        labels.append(label)
        unreadable |= reasons
    return torch.stack(images).permute(0, 3, 1, 2), torch.tensor(labels), unreadable


class _Decoder:
    """Crops (S, S, 3) uint8 of JPEGs, on the device; None of those that DALI cannot decode. Used in one thread."""

    def __init__(self, size: int, device: torch.device, threads: int) -> None:
        self.size, self.device, self.threads = size, device, threads
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pipeline: Any = None

    def __call__(self, images: list[Undecoded], most: int) -> list[Tensor | None]:
        if not images:
            return []
        try:
            return list(self._run(images, most))
        except RuntimeError as error:
            if not any(words in str(error) for words in DAMAGED):
                raise
            self.pipeline = None  # of no use after an error
        return [crop for image in images for crop in self([image], most)] if len(images) > 1 else [None]

    def _run(self, images: list[Undecoded], most: int) -> Tensor:
        from nvidia.dali.plugin.pytorch import feed_ndarray  # pyright: ignore[reportMissingImports]

        self.pipeline = self.pipeline or self._built(most)
        (found,) = self.pipeline.run(
            jpegs=[np.frombuffer(image.content, np.uint8) for image in images],
            start=np.array([image.box[:2] for image in images], np.int32),
            shape=np.array([image.box[2:] for image in images], np.int32),
            mirrored=np.array([image.mirrored for image in images], np.int32),
        )
        with torch.cuda.stream(self.stream):  # training's own stream is seldom idle
            crops = torch.empty(len(images), self.size, self.size, 3, dtype=torch.uint8, device=self.device)
            feed_ndarray(found.as_tensor(), crops, cuda_stream=self.stream)
        if self.stream:
            self.stream.synchronize()  # the copy, before DALI or training goes on with either
        return crops

    def _built(self, most: int) -> Any:
        from nvidia.dali import fn, types  # pyright: ignore[reportMissingImports]
        from nvidia.dali.pipeline import Pipeline  # pyright: ignore[reportMissingImports]

        where = ("cpu", None) if self.stream is None else ("mixed", self.device.index or 0)
        with Pipeline(most, self.threads, where[1], prefetch_queue_depth=1) as pipeline:
            start, shape = (fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("start", "shape"))
            images = fn.decoders.image_slice(
                fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1),
                device=where[0],
                start=start,
                shape=shape,
                axis_names="HW",
                adjust_orientation=False,  # none is turned
                jpeg_fancy_upsampling=True,  # as libjpeg does by itself
            )
            images = fn.resize(images, size=(self.size, self.size), interp_type=types.INTERP_CUBIC, antialias=True)
            mirrored = fn.external_source(name="mirrored", dtype=types.INT32, ndim=0)
            pipeline.set_outputs(fn.flip(images, horizontal=mirrored))
        return pipeline
