"""A first look at images: how many there are of each class, and how large they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vitas.config import UserError
from vitas.data import sources
from vitas.data.images import UNREADABLE
from vitas.data.splits import Split
from vitas.sections import Data

SAMPLE = 200
"""Images whose headers are read."""

TEST_PART = 0.2
"""Part of the images that is kept for the test where none are given."""


@dataclass(frozen=True)
class Looked:
    """What a look at some images tells."""

    counts: dict[str, int]
    """Images of each class, by name."""
    sizes: np.ndarray
    """(N, 2) Width and height in pixels of a sample, in no order."""
    unreadable: int
    """Images of the sample whose header cannot be read."""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.counts.values())

    @property
    def side(self) -> int:
        """The shorter side in pixels of most of the images, or less: nine of ten are as large."""
        return int(np.quantile(self.sizes.min(axis=1), 0.1))


def look(split: Split) -> Looked:
    """Counts the labels, and reads the headers of a sample of the images.

    Raises:
        UserError: None of the sample can be read.
    """
    rows = np.unique(np.linspace(0, len(split.indices) - 1, SAMPLE).astype(int))
    sizes, unreadable = [], 0
    for image in _undecoded(split, rows):
        try:
            source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
            with Image.open(source) as opened:
                sizes.append(opened.size)
        except (*UNREADABLE, TypeError):
            unreadable += 1
    if not sizes:
        raise UserError(f"{split.unreadable.source}: none of {len(rows)} images can be read")
    counts = np.bincount(split.class_numbers, minlength=len(split.classes)).tolist()
    return Looked(dict(zip(split.classes, counts, strict=True)), np.array(sizes), unreadable)


def where_test_is(data: Data) -> dict[str, Any]:
    """Settings of the test images of `data.train`: a part of it that is named so, or else some taken out of all.

    Raises:
        UserError: See `sources.open_one`.
    """
    if data.train == "digits":
        return {}
    how = {name: getattr(data, name) for name in ("image_column", "label_column", "classes", "streaming")}
    train, test = (sources.open_one(data.train, key, **how) for key in ("data.train", "data.test"))
    return {"test_part": TEST_PART} if same_images(train, test) else {"test": data.train}


def same_images(train: Split, test: Split) -> bool:
    """Whether two sources are one: a test on it says nothing."""
    return train is not test and _place(train) == _place(test)


def _place(split: Split) -> tuple[Any, ...]:
    """What is another for another part of a source, without a look at every file."""
    name = split.example(0)[0] if split.index is None else ""
    return split.origin.name, split.origin.files, len(split.indices), name


def _undecoded(split: Split, rows: np.ndarray) -> Iterator[Any]:
    if split.index is None:
        yield from (split.example(int(row))[1] for row in rows)
        return
    for shard in np.unique(np.linspace(0, len(split.index.counts) - 1, 8).astype(int)).tolist():
        first = split.rows_of(shard)[: SAMPLE // 8]
        yield from (image for _, image, _ in split.examples(shard, first))
