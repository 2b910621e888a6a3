"""One image: decoded, and replaced by the next where it cannot be."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from vitas.config import UserError, one_line
from vitas.data.sources import Split

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or is cut short."""


def decode(image: Any) -> Image.Image:
    """The RGB image in a `datasets.Image(decode=False)` value. Raises one of `UNREADABLE` if it is damaged."""
    if image is None:
        raise ValueError("no image")
    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
        return opened.convert("RGB")


def first_readable(examples: Any, transform: Callable[..., Any], key: list[int],
                    split: Split) -> tuple[torch.Tensor, int, dict[str, str]]:  # fmt: skip
    """The first image that can be decoded, transformed with draws from `key`, and the reasons of those before it."""
    unreadable: dict[str, str] = {}
    for name, undecoded, label in examples:
        try:
            image = decode(undecoded)
        except UNREADABLE as error:
            unreadable[name] = one_line(error)
            continue
        draw = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)
        torch.default_generator.manual_seed(draw)  # the CPU's alone: torch.manual_seed costs 1 ms without a GPU
        return transform(image), label, unreadable
    raise UserError(f"{split.unreadable.source}: no image can be read; {one_line(unreadable)}")
