"""One image: decoded, and replaced by the next where it cannot be."""

from __future__ import annotations

import io
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from vitas.config import UserError, one_line
from vitas.data.splits import Split

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or is cut short."""


DECODING = 2
"""The version of `decode`: with another one images may come out differently."""

ORIENTATION = 0x0112


def decode(image: Any) -> Image.Image:
    """The RGB image in a `datasets.Image(decode=False)` value, as a person sees it.

    It is turned as its EXIF says, 16 bits are scaled to 8, and what is transparent shows white behind it.
    Raises one of `UNREADABLE` if it is damaged, or its pixels have no range that is known.
    """
    with _opened(image) as opened:
        return _seen(opened)


def pixels(image: Any) -> torch.Tensor:
    """(3, H, W) uint8, the pixels and the errors of `decode`; those of plain JPEGs come sooner.

    A grey or RGB JPEG that need not be turned goes straight into the tensor, by the same libjpeg-turbo. One in which it
    finds the least thing wrong is left to Pillow, as all others are: what counts as damaged does not change.
    """
    with _opened(image) as opened:
        if isinstance(opened, JpegImageFile) and opened.fp and opened.mode in ("L", "RGB") and not _turned(opened):
            opened.fp.seek(0)
            with suppress(ValueError):
                return torch.from_numpy(simplejpeg.decode_jpeg(opened.fp.read(), strict=True)).permute(2, 0, 1)
        return torch.from_numpy(np.array(_seen(opened))).permute(2, 0, 1)


@contextmanager
def _opened(image: Any) -> Iterator[Image.Image]:
    if image is None:
        raise ValueError("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of small damages such as in EXIF, once an image
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
            yield opened


def _seen(opened: Image.Image) -> Image.Image:
    opened.load()
    upright = ImageOps.exif_transpose(opened) if _turned(opened) else opened
    if upright.mode.startswith(("I", "F")):
        return _eight_bits(upright).convert("RGB")
    if upright.has_transparency_data:
        seen = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return upright.convert("RGB")


def _turned(image: Image.Image) -> bool:
    """Whether the EXIF of an image turns or mirrors it. Photos with a damaged EXIF are common, and not turned."""
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # from the middle of Pillow's parser, of any kind
        return False


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pixels of 16 bits (modes I), or floats from 0 to 1 or from 0 to 255 (mode F), as pixels of 8 bits."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    top = 65535 if image.mode.startswith("I") else 1 if high <= 1 else 255
    if not 0 <= low <= high <= top:
        raise ValueError(f"pixels of mode {image.mode} from {low} to {high}: expected 0 to {top}")
    return Image.fromarray((pixels * (255 / top)).round().astype(np.uint8))


def first_readable(examples: Any, transform: Callable[..., Any], key: list[int],
                    split: Split) -> tuple[torch.Tensor, int, dict[str, str]]:  # fmt: skip
    """The first image that can be decoded, transformed with draws from `key`, and the reasons of those before it."""
    unreadable: dict[str, str] = {}
    for name, undecoded, label in examples:
        try:
            image = pixels(undecoded)
        except UNREADABLE as error:
            unreadable[name] = one_line(error)
            continue
        draw = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)
        torch.default_generator.manual_seed(draw)  # the CPU's alone: torch.manual_seed costs 1 ms without a GPU
        return transform(image), label, unreadable
    raise UserError(f"{split.unreadable.source}: no image can be read; {one_line(unreadable)}")
