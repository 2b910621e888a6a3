"""What NVIDIA DALI decodes, beside the ordinary way. Needs the extra, and then no GPU: DALI's own CPU backend decodes.

    pip install -e '.[dev,dali]' && pytest -n 0 tests/test_dali.py

Without the package only what its absence is told by is tested. On a GPU the decoder is another: `-m gpu`.
"""

import importlib.util
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import QUICKSTART
from jpegs import photo, saved

from vitas.cli import main
from vitas.config import UserError
from vitas.data import batches, dali, images, sources
from vitas.data.augment import TrainTransform
from vitas.data.plan import Plan
from vitas.sections import Augment, Data

INSTALLED = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))
with_dali = pytest.mark.skipif(not INSTALLED, reason="needs pip install 'vitas[dali]'")

IMAGES, BATCH, SIZE = 48, 16, 64
CUT, NOISE, PNG, CMYK, TURNED, GREY = 3, 9, 14, 21, 33, 40
ORDINARY = {CUT, NOISE, PNG, CMYK, TURNED}
"""What is no plain JPEG; the first two cannot be read, and the next ones in their class stand in for them."""
LARGEST, MEAN = 6, 0.4
"""Levels of 255 by which DALI's crops may differ from the ordinary ones: measured were 5 and 0.23."""


def content(number: int) -> bytes:
    """Plain JPEGs of all common kinds, and some files that are none."""
    width, height = ((160, 120), (90, 150), (131, 97))[number % 3]
    image = photo(width, height, seed=number)
    if number == PNG:
        return saved(image, "PNG")
    if number == TURNED:
        exif = image.getexif()
        exif[images.ORIENTATION] = 6
        return saved(image, exif=exif)
    if number in (CMYK, GREY):
        return saved(image.convert("CMYK" if number == CMYK else "L"))
    found = saved(image, quality=90, subsampling=number % 3, progressive=number % 5 == 0, optimize=number % 2 == 0)
    if number == CUT:
        return found[: len(found) // 2]
    if number == NOISE:  # no Huffman tables, which only a decoder misses
        return found.replace(b"\xff\xc4", b"\xff\xee")
    return found


@pytest.fixture
def folder(tmp_path):
    for number in range(IMAGES):
        place = tmp_path / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02}.jpg").write_bytes(content(number))
    return tmp_path / "train"


def read(split, *plan: int, device: str | None = "cpu", augment: Augment | None = None, workers: int = 0):
    transform = TrainTransform(SIZE, augment or Augment(erasing=0.5), Data())
    how = {"seed": 5, "workers": workers, "readers": 4, "shuffle_buffer": 32, "pin_memory": False}
    return list(batches.loader(split, transform, Plan(*plan), dali_on=device and torch.device(device), **how))


def opened(folder, streaming: bool):
    """The folder, or the same in shards."""
    if not streaming:
        return sources.open_splits(Data(train=str(folder), test="digits"))[0]
    from test_data import write_files_as_shards

    shards = folder.parent / "shards"
    write_files_as_shards(shards, sorted(folder.rglob("*.jpg")))
    data = Data(train=str(shards), test="digits", streaming=True, classes=2)
    return sources._open(data, data.train, "data.train", streaming=True)
