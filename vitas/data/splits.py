"""Labelled images that are not decoded yet: parts of a dataset, indexed or streamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vitas.config import UserError
from vitas.data import keyed
from vitas.data.shards import Index, Shards, naming


@dataclass
class Unreadable:
    """The images of one source that could not be decoded, and why."""

    source: str
    reasons: dict[str, str] = field(default_factory=dict)
    most: int = 10**12
    """How many there may be."""
    file: Path | None = None
    """Where all of them are named, for whoever looks for them and for the next start of the run."""
    key: dict[str, Any] | None = None
    """Of the images that `file` is about; without, another rank keeps that file."""
    told: int = 0

    def recall(self, *, files: bool) -> None:
        """Adds those that an earlier start of the run has found; of image `files` those that nobody has changed since.

        Raises:
            UserError: There are too many of them.
        """
        if not self.file or not self.file.is_file():
            return
        found, when = keyed.read(self.file, self.key), self.file.stat().st_mtime_ns
        if found is None:  # the other ranks take what is there
            self.file.unlink()
            return
        self.add({name: why for name, why in found.items() if not (files and _changed_since(name, when))})

    def add(self, reasons: dict[str, str]) -> None:
        """Notes images that could not be decoded.

        Raises:
            UserError: There are too many of them.
        """
        self.reasons.update(reasons)
        if len(self.reasons) > self.most:
            self.keep()
            where = f", all named in {self.file}" if self.file else ""
            raise UserError(
                f"{self.source}: {len(self.reasons)} image(s) could not be read, more than data.max_unreadable allows"
                f"{where}; {self._first}"
            )

    def keep(self) -> None:
        """Names all of them in the file, if it is this rank's to write."""
        if self.file and self.key is not None:
            keyed.write(self.file, self.key, dict(sorted(self.reasons.items())))

    def tell(self, say: Callable[[str], None]) -> None:
        """Says how many could not be read, and names them in the file; nothing if they are no more than last time."""
        if len(self.reasons) > self.told:
            self.told = len(self.reasons)
            self.keep()
            where = f" (all in {self.file})" if self.file and len(self.reasons) > 1 else ""
            say(
                f"{self.source}: {len(self.reasons)} image(s) could not be read and were left out; {self._first}{where}"
            )

    @property
    def _first(self) -> str:
        name, reason = min(self.reasons.items())
        return f"{name}: {reason}"


def _changed_since(file: str, when: int) -> bool:
    try:
        return os.path.isabs(file) and os.stat(file).st_mtime_ns > when  # else it is in a table, and so in the key
    except OSError:  # it is gone
        return True


@dataclass(frozen=True)
class Origin:
    """Where images come from: enough to notice that they are others now."""

    name: str
    """What was opened; of the Hub with its revision."""
    files: tuple[str, ...] = ()
    """The local files that hold the images."""
    images: datasets.Dataset | None = None
    """Of a stream that was made from an indexed dataset: that dataset."""


@dataclass(frozen=True)
class Split:
    """Labelled images that are not decoded yet: a part of a dataset, indexed or streamed."""

    dataset: datasets.Dataset | Shards
    """With the columns `image` (bytes or path) and `label`, or as shards."""
    classes: tuple[str, ...]
    labels: dict[Any, int]
    """Class index of each raw label."""
    unreadable: Unreadable
    origin: Origin
    indices: np.ndarray
    """The rows of this part, rising; those of shards are counted through, shard after shard."""
    index: Index | None = None
    """Of shards: what is known of their rows."""
    numbers: np.ndarray | None = None
    """Of shards: the class index of each row. (A list of labels would be copied to each worker, little by little.)"""

    @property
    def streamed(self) -> bool:
        """Whether the images come in shards."""
        return isinstance(self.dataset, Shards)

    def hold_out(self, part: float, seed: int) -> tuple[Split, Split]:
        """The training images without the hold-out, and the hold-out: `part` of them.

        Of a stream it is `part` of each class, by the hash of (seed, shard, row).
        """
        if self.index is not None:
            return self.take_of_each_class(part, seed)
        order = np.random.default_rng([seed, len(self.indices)]).permutation(self.indices)
        count = min(max(1, round(part * len(order))), len(order) - 1)
        return replace(self, indices=np.sort(order[count:])), replace(self, indices=np.sort(order[:count]))

    def take_of_each_class(self, part: float, seed: int) -> tuple[Split, Split]:
        """The images without `part` of each class, and these, by the hash of (seed, shard, row)."""
        held = self._of_each_class(part, seed)
        return replace(self, indices=self.indices[~held]), replace(self, indices=self.indices[held])

    @property
    def class_numbers(self) -> np.ndarray:
        """(images,) The class index of each image of this part."""
        if self.numbers is not None:
            return self.numbers[self.indices]
        assert isinstance(self.dataset, datasets.Dataset)
        raws = self.dataset.data.column("label").take(pa.array(self.indices)).to_pylist()
        return np.array([self.labels[raw] for raw in raws], np.int32)

    def example(self, row: int) -> tuple[str, Any, int]:
        """Name, undecoded image and class index of the row-th image of an indexed split."""
        number = int(self.indices[row])
        values = self.dataset[number]  # pyright: ignore[reportIndexIssue]
        return (values["image"] or {}).get("path") or str(number), values["image"], self.labels[values["label"]]

    def rows_of(self, shard: int) -> np.ndarray:
        """The rows of a shard that are in this part, counted in the shard."""
        first, last = np.searchsorted(self.indices, self.starts[shard : shard + 2])
        return self.indices[first:last] - self.starts[shard]

    def examples(self, shard: int, rows: np.ndarray | None = None) -> Iterator[tuple[str, Any, int]]:
        """Name, undecoded image and class index of these rows of a shard, or of all that are in this part."""
        assert self.index is not None and self.numbers is not None and isinstance(self.dataset, Shards)
        rows = self.rows_of(shard) if rows is None else rows
        if not len(rows):
            return
        name, (start, stop) = self.dataset.name(shard), self.starts[shard : shard + 2]
        places = None if self.index.places is None else self.index.places[start:stop]
        with naming(f"{self.unreadable.source}: {name}"):
            images = self.dataset.read(shard, rows, places)
            for row, image in zip(rows.tolist(), images, strict=True):
                path = (image or {}).get("path")
                told = f"{name} image {row}{f' ({path})' if path else ''}"
                yield told, image, int(self.numbers[start + row])

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards + 1,) The first row of each shard, and one past the last of all."""
        assert self.index is not None
        return np.concatenate([[0], np.cumsum(self.index.counts)])

    def made_of(self) -> dict[str, Any]:
        """Where these images and all beside them come from; image files that lie by themselves are not looked at."""
        key: dict[str, Any] = {"source": self.origin.name, "files": _stamp(self.origin.files)}
        if self.index is not None:
            places = b"" if self.index.places is None else self.index.places.tobytes()
            key["shards"] = _digest([self.index.counts.tobytes(), places, self.index.stamp])
        return key

    def key(self) -> dict[str, Any]:
        """What decides which images these are, and their labels, as plain JSON: others give another key."""
        key = self.made_of()
        key["rows"] = _digest([self.indices.tobytes()])
        key["classes"] = _digest([*self.classes, *map(str, self.labels.items())])
        if self.numbers is not None:
            key["labels"] = _digest([self.numbers[self.indices].tobytes()])
        dataset = self.origin.images if self.index is not None else self.dataset
        if isinstance(dataset, datasets.Dataset):
            rows = np.arange(len(dataset)) if self.index is not None else self.indices
            key["images"] = _stamp(_paths(dataset, rows))
            key["labels"] = _digest(map(str, dataset.data.column("label").take(pa.array(rows)).to_pylist()))
        return key

    def _of_each_class(self, part: float, seed: int) -> np.ndarray:
        """(rows,) Whether each is among `part` of its class."""
        starts = np.zeros(1, np.int64) if self.index is None else self.starts
        shard = np.searchsorted(starts, self.indices, "right") - 1
        order = _hash(seed, shard, self.indices - starts[shard])
        classes = self.class_numbers
        sorted_rows = np.lexsort((order, classes))
        _, first, counts = np.unique(classes[sorted_rows], return_index=True, return_counts=True)
        place = np.arange(len(sorted_rows)) - np.repeat(first, counts)
        held = np.zeros(len(sorted_rows), bool)
        held[sorted_rows] = place < np.repeat(np.round(part * counts), counts)
        if not held.any():
            held[sorted_rows[0]] = True
        return held


def _hash(seed: int, *numbers: np.ndarray) -> np.ndarray:
    """64 bits of each row of numbers, by SplitMix64 (Steele and others, 2014): the same on any machine."""
    state = np.full(len(numbers[0]), seed % 2**63, np.uint64)
    for values in numbers:
        state += values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def _paths(dataset: datasets.Dataset, rows: np.ndarray) -> list[str]:
    """The files of those images of these rows that the dataset does not hold itself."""
    inside, paths = dataset.data.column("image").flatten()
    taken = pa.array(rows)
    return [path for path in paths.take(taken).filter(inside.is_null().take(taken)).to_pylist() if path]


def _stamp(files: Iterable[str]) -> str:
    """The digest of the names, sizes and times of files."""
    lines = []
    for file in files:
        try:
            found = os.stat(file)
        except OSError:
            lines.append(f"{file} missing")
        else:
            lines.append(f"{file} {found.st_size} {found.st_mtime_ns}")
    return _digest(lines)


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]
