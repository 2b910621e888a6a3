"""One image: decoded, and replaced by the next where it cannot be."""

from __future__ import annotations

import io
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

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
        if (jpeg := _plain(opened)) is not None:
            with suppress(ValueError):
                return torch.from_numpy(simplejpeg.decode_jpeg(jpeg, strict=True)).permute(2, 0, 1)
        return torch.from_numpy(np.array(_seen(opened))).permute(2, 0, 1)


class Jpeg(NamedTuple):
    """A JPEG that is not decoded yet."""

    content: bytes
    height: int
    width: int


def jpeg_or_pixels(image: Any) -> Jpeg | torch.Tensor:
    """A JPEG that any decoder takes for what `pixels` takes it for, as it came; else its pixels, and their errors.

    It is one that `pixels` decodes sooner, ends as it should, and tells its colours in the usual way.
    """
    with _opened(image) as opened:
        content = _plain(opened)
        if content is not None and content.rstrip(b"\0").endswith(b"\xff\xd9") and _usual(opened):
            return Jpeg(content, opened.height, opened.width)
    return pixels(image)


def _plain(image: Image.Image) -> bytes | None:
    """The content of a grey or RGB JPEG that need not be turned."""
    if isinstance(image, JpegImageFile) and image.fp and image.mode in ("L", "RGB") and not _turned(image):
        image.fp.seek(0)
        return image.fp.read()
    return None


def _usual(jpeg: Any) -> bool:
    """Whether the components of a JPEG are those of JFIF: grey, or luma and chroma, and not the rare RGB of Adobe's."""
    return [part[0] for part in jpeg.layer] in ([1], [1, 2, 3]) and jpeg.info.get("adobe_transform", 1) == 1


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


def first_readable(examples: Any, key: list[int], transform: Callable[..., Any], split: Split,
                   read: Callable[..., Any] = pixels) -> tuple[Any, int, dict[str, str]]:  # fmt: skip
    """The first image that can be read, transformed with draws from `key`, and the reasons of those before it."""
    unreadable: dict[str, str] = {}
    for name, undecoded, label in examples:
        try:
            image = read(undecoded)
        except UNREADABLE as error:
            unreadable[name] = one_line(error)
            if len(unreadable) > split.unreadable.most:
                break
            continue
        draw = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)
        torch.default_generator.manual_seed(draw)  # the CPU's alone: torch.manual_seed costs 1 ms without a GPU
        return transform(image), label, unreadable
    raise UserError(f"{split.unreadable.source}: no image can be read, of {len(unreadable)}; {one_line(unreadable)}")
