"""Labelled images that are not decoded yet: parts of a dataset, indexed or streamed."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from vitas.config import UserError, one_line


@dataclass
class Unreadable:
    """The images of one source that could not be decoded, and why; told once."""

    source: str
    reasons: dict[str, str] = field(default_factory=dict)
    told: bool = False

    def tell(self, say: Callable[[str], None]) -> None:
        """Says, the first time, how many images could not be read; does nothing if all could."""
        if self.reasons and not self.told:
            self.told = True
            name, reason = min(self.reasons.items())
            say(f"{self.source}: {len(self.reasons)} image(s) could not be read and were left out; {name}: {reason}")


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

    dataset: Any
    """A `datasets.Dataset`, or an `IterableDataset`, with the columns `image` (bytes or path) and `label`."""
    classes: tuple[str, ...]
    labels: dict[Any, int]
    """Class index of each raw label."""
    unreadable: Unreadable
    origin: Origin
    indices: np.ndarray | None = None
    """Of an indexed dataset: the rows of this part."""
    stride: int = 0
    """Of a stream: the hold-out is every stride-th image of a shard; 0 for no hold-out."""
    held_out: bool = False
    """Of a stream: whether this part is the hold-out, or all the rest."""

    @property
    def streamed(self) -> bool:
        """Whether the images come in shards, without an index."""
        return self.indices is None

    def hold_out(self, part: float, seed: int) -> tuple[Split, Split]:
        """The training images without the hold-out, and the hold-out: `part` of them."""
        if self.indices is None:
            stride = max(2, round(1 / part))
            return replace(self, stride=stride), replace(self, stride=stride, held_out=True)
        order = np.random.default_rng([seed, len(self.indices)]).permutation(self.indices)
        count = min(max(1, round(part * len(order))), len(order) - 1)
        return replace(self, indices=np.sort(order[count:])), replace(self, indices=np.sort(order[:count]))

    def example(self, row: int) -> tuple[str, Any, int]:
        """Name, undecoded image and class index of the row-th image of an indexed split."""
        assert self.indices is not None
        return self._example(str(self.indices[row]), *map(self.dataset[int(self.indices[row])].get, ("image", "label")))

    def examples(self, shard: int) -> Iterator[tuple[str, Any, int]]:
        """Name, undecoded image and class index of the images of one shard of a stream."""
        # `iter`, because plain iteration would deal this one shard out to the loader's workers once more.
        batches = self.dataset.shard(self.dataset.num_shards, shard).iter(batch_size=32)
        pairs = (pair for batch in batches for pair in zip(batch["image"], batch["label"], strict=True))
        try:
            for number, (image, label) in enumerate(pairs):
                if not self.stride or (number % self.stride == self.stride - 1) == self.held_out:
                    yield self._example(f"shard {shard} image {number}", image, label)
        except (tarfile.TarError, pa.ArrowException) as error:
            raise UserError(f"{self.unreadable.source}: shard {shard}: not readable: {one_line(error)}") from None

    def key(self) -> dict[str, Any]:
        """What decides which images these are, and their labels, as plain JSON: others give another key."""
        key: dict[str, Any] = {
            "source": self.origin.name,
            "files": _stamp(self.origin.files),
            "classes": _digest([*self.classes, *map(str, self.labels.items())]),
            "rows": [self.stride, self.held_out] if self.indices is None else _digest([self.indices.tobytes()]),
        }
        dataset = self.origin.images if self.indices is None else self.dataset
        if dataset is not None:
            rows = np.arange(len(dataset)) if self.indices is None else self.indices
            key["images"] = _stamp(_paths(dataset, rows))
            key["labels"] = _digest(map(str, dataset.data.column("label").take(pa.array(rows)).to_pylist()))
        return key

    def _example(self, name: str, image: Any, label: Any) -> tuple[str, Any, int]:
        if label not in self.labels:
            what = (
                "has no label" if label is None else f"has label {one_line(repr(label))}, which is none of the classes"
            )
            raise UserError(f"{self.unreadable.source}: image {name} {what}")
        return (image or {}).get("path") or name, image, self.labels[label]


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
