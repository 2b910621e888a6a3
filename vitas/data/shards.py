"""Shards of images and the index of them: how many rows each has, their labels, and where in a tar they lie.

With an index any row of any shard can be read without those before it: a stream can be cut, shuffled and gone on with
anywhere. Labels and places are read once (`Shards.scan`), images when they are wanted (`Shards.read`).
"""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext
from tqdm import tqdm

from vitas.config import UserError, one_line
from vitas.data import remote

SCANNERS = 16
"""Shards that are scanned side by side: a server's answers take longer than the work on them."""
ROWS_AT_ONCE = 32
BYTES_AT_ONCE, GAP = 8 << 20, 128 << 10
"""Images of a tar that lie close together are fetched in one piece: of at most so many bytes, with gaps up to `GAP`."""

Undecoded = dict[str, Any] | None
"""An image as `datasets.Image(decode=False)` gives it: `bytes`, or the `path` of its file."""


class Scanned(NamedTuple):
    """What is known of the rows of one shard without their images."""

    labels: list[Any]
    """As they are in the shard."""
    places: list[tuple[int, int]] | None = None
    """Of a tar: offset and size of each image; size -1 where there is none."""


class Index(NamedTuple):
    """What is known of all rows, shard after shard."""

    counts: np.ndarray
    """(shards,) Rows of each."""
    labels: list[Any]
    """Of each row, as in its shard."""
    places: np.ndarray | None
    """(rows, 2) Of tars: offset and size of each image."""
    stamp: str = ""
    """Of the files, as they are now; where that was not looked at, none."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        places = None if self.places is None else self.places.tolist()
        return {"counts": self.counts.tolist(), "labels": self.labels, "places": places}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Index:
        """What `as_json` made plain."""
        counts, places = np.array(values["counts"]), values["places"]
        places = None if places is None else np.array(places).reshape(-1, 2)
        if counts.sum() != len(values["labels"]) or (places is not None and len(places) != counts.sum()):
            raise ValueError("its parts are not of one length")
        return cls(counts, values["labels"], places)


class Shards(ABC):
    """Rows in shards, none of which is read before it is wanted.

    Args:
        files: Paths or URLs, a shard each.
        features: Of all columns.
        patience: Seconds for which what cannot be read is tried again.
    """

    image, label = "image", "label"
    """The columns of images and of labels; to a label inside a column leads a path, as in `json.label`."""
    are_files = True

    def __init__(self, files: Sequence[str], features: datasets.Features, patience: float) -> None:
        self.files, self.features, self.patience = tuple(files), features, patience

    @property
    def count(self) -> int:
        """How many shards there are."""
        return len(self.files)

    @property
    def cheap(self) -> bool:
        """Whether `scan` reads little of a shard."""
        return True

    @abstractmethod
    def scan(self, shard: int) -> Scanned:
        """The labels of a shard, and where its images lie."""

    @abstractmethod
    def read(self, shard: int, rows: np.ndarray, places: np.ndarray | None) -> Iterator[Undecoded]:
        """The images of some rows of a shard, in rising order, with the places of all its rows."""

    def name(self, shard: int) -> str:
        """What a shard is called."""
        return self.files[shard]

    def index(self, what: str) -> Index:
        """Scans all shards; `what` they are is told by the progress bar."""
        found = []
        with ThreadPoolExecutor(SCANNERS) as scanners:
            bar = tqdm(desc=f"index {what}", total=self.count, unit=" shards", leave=False, delay=1)
            for scanned in scanners.map(lambda shard: self._scan(shard, what), range(self.count)):
                found.append(scanned)
                bar.update()
            bar.close()
        labels = [label for scanned in found for label in scanned.labels]
        places = [place for scanned in found for place in scanned.places or ()]
        counts = np.array([len(scanned.labels) for scanned in found])
        return Index(counts, labels, np.array(places).reshape(-1, 2) if found[0].places is not None else None)

    def _scan(self, shard: int, what: str) -> Scanned:
        with naming(f"{what}: {self.name(shard)}"):
            return self.scan(shard)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Gives what a reader of files raises for a damaged one the name of the shard, in one line."""
    try:
        yield
    except UserError:
        raise
    except (tarfile.TarError, pa.ArrowException, OSError, EOFError, ValueError, LookupError, TypeError,
            AttributeError) as error:  # fmt: skip
        raise UserError(f"{name}: not readable: {one_line(error) or type(error).__name__}") from None


class Parquet(Shards):
    """Parquet files; any row group can be read alone."""

    def scan(self, shard: int) -> Scanned:  # noqa: D102
        with remote.opened(self.name(shard), self.patience, buffer=1 << 16) as file:
            column = pq.ParquetFile(file).read(columns=[self.label], use_threads=False).column(0)
        _, *inner = _path(self.label, self.features)
        values = column.to_pylist()
        return Scanned([_inside(value, inner) for value in values] if inner else values)

    def read(self, shard: int, rows: np.ndarray, places: np.ndarray | None) -> Iterator[Undecoded]:  # noqa: D102
        with remote.opened(self.name(shard), self.patience, buffer=4 << 20) as file:
            # With a buffer pages are read one by one: a row group can be large.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            groups = range(*(int(np.searchsorted(starts, row, "right")) - 1 + last
                             for row, last in ((rows[0], 0), (rows[-1], 1))))  # fmt: skip
            start = int(starts[groups.start])
            for batch in parquet.iter_batches(ROWS_AT_ONCE, groups, [self.image], use_threads=False):
                inside = rows[(rows >= start) & (rows < start + len(batch))] - start
                start += len(batch)
                if len(inside):
                    yield from map(_undecoded, batch.column(0).take(pa.array(inside)).to_pylist())
                if start > rows[-1]:
                    return  # the rest of a row group can be large


class Tar(Shards):
    """WebDataset's tar files: the members of one row have one name, up to its first dot."""

    @property
    def cheap(self) -> bool:  # noqa: D102
        return not any(map(remote.is_remote, self.files))

    def scan(self, shard: int) -> Scanned:  # noqa: D102
        outer, *inner = _path(self.label, self.features)
        labels, places = [], []
        for row in self.rows(shard, {outer}, {self.image}):
            labels.append(_inside(row.get(outer), inner))
            places.append(row.get(self.image, (0, -1)))
        return Scanned(labels, places)

    def rows(self, shard: int, read: set[str], place: set[str]) -> Iterator[dict[str, Any]]:
        """Of each row the decoded content of some fields, offset and size of others; all are read if none is named."""
        with remote.opened(self.name(shard), self.patience, buffer=BYTES_AT_ONCE) as file:
            row: dict[str, Any] = {}
            key = None
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    new, field = base_plus_ext(member.name) if member.isfile() else (None, None)
                    if new is None or field is None:
                        continue
                    if new != key and key is not None:
                        yield row
                        row = {}
                    key = new
                    if field in place:
                        row[field] = (member.offset_data, member.size)
                    elif field in read or not (read or place):
                        content: Any = tar.extractfile(member)
                        decode = WebDataset.DECODERS.get(field.rpartition(".")[2].lower(), bytes)
                        row[field] = decode(content.read())
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - or all are kept in memory
                file.seek(tar.offset)
                if file.read(512) != bytes(512):  # tarfile takes a damaged header for the end
                    raise tarfile.ReadError(f"damaged, or cut short, at byte {tar.offset}")
            if key is not None:
                yield row

    def read(self, shard: int, rows: np.ndarray, places: np.ndarray | None) -> Iterator[Undecoded]:  # noqa: D102
        assert places is not None
        name, wanted = self.name(shard), places[rows]
        for first, last in _pieces(wanted):
            there = wanted[first:last]
            start = int(there[0, 0])
            content = remote.fetch(name, start, int(there[-1].sum().clip(start)), self.patience)
            for offset, size in (there - [start, 0]).tolist():
                yield {"bytes": content[offset : offset + size], "path": None} if size >= 0 else None


class Rows(Shards):
    """An indexed dataset as shards of mixed rows: files mostly lie sorted by class."""

    EACH = 400

    def __init__(self, dataset: datasets.Dataset) -> None:
        super().__init__([f"part {part}" for part in range(-(-len(dataset) // self.EACH))], dataset.features, 0.0)
        self.dataset, self.order = dataset, np.random.default_rng(0).permutation(len(dataset))

    def scan(self, shard: int) -> Scanned:  # noqa: D102
        rows = self.order[shard * self.EACH : (shard + 1) * self.EACH]
        return Scanned(self.dataset.data.column("label").take(pa.array(rows)).to_pylist())

    def read(self, shard: int, rows: np.ndarray, places: np.ndarray | None) -> Iterator[Undecoded]:  # noqa: D102
        yield from (self.dataset[int(row)]["image"] for row in self.order[shard * self.EACH + rows])


class Others(Shards):
    """Shards of any other kind, read by `datasets` from their first row on."""

    are_files = False

    def __init__(self, dataset: Any, patience: float) -> None:
        super().__init__([f"shard {shard}" for shard in range(dataset.num_shards)], dataset.features, patience)
        self.dataset = dataset

    @property
    def cheap(self) -> bool:  # noqa: D102
        return False

    def scan(self, shard: int) -> Scanned:  # noqa: D102
        outer, *inner = _path(self.label, self.features)
        return Scanned([_inside(row[outer], inner) for row in self._rows(shard, outer)])

    def read(self, shard: int, rows: np.ndarray, places: np.ndarray | None) -> Iterator[Undecoded]:  # noqa: D102
        wanted = set(rows.tolist())
        every = enumerate(islice(self._rows(shard, self.image), int(rows[-1]) + 1))
        for _, row in ((number, row) for number, row in every if number in wanted):
            image = _undecoded(row[self.image])
            path = (image or {}).get("path") or ""
            if image and image["bytes"] is None and remote.is_remote(path):
                image = {"bytes": remote.fetch(path, 0, remote.size(path, self.patience), self.patience), "path": path}
            yield image

    def _rows(self, shard: int, column: str) -> Iterator[dict[str, Any]]:
        one = self.dataset.shard(self.count, shard).select_columns([column])
        if isinstance(self.features[column], datasets.Image):
            one = one.cast_column(column, datasets.Image(decode=False))
        for batch in one.iter(batch_size=ROWS_AT_ONCE):  # plain iteration would deal rows out to the loader's workers
            yield from ({column: value} for value in batch[column])


def parquet(files: list[str], patience: float) -> Parquet:
    """Parquet files as shards; the columns are those of the first."""
    with naming(files[0]), remote.opened(files[0], patience, buffer=1 << 16) as file:
        return Parquet(files, datasets.Features.from_arrow_schema(pq.read_schema(file)), patience)


def tar(files: list[str], patience: float) -> Tar:
    """Tar files as shards; the columns are those of the first rows."""
    found = Tar(files, datasets.Features(), patience)
    for shard, name in enumerate(files):
        with naming(name):
            if first := list(islice(found.rows(shard, set(), set()), 5)):
                tables = [pa.Table.from_pylist([row]) for row in first]
                features = datasets.Features.from_arrow_schema(
                    pa.concat_tables(tables, promote_options="permissive").schema
                )
                break
    else:
        raise UserError(f"{files[0]}: holds no files, nor do the others")
    for name in features:
        if name.rpartition(".")[2].lower() in WebDataset.IMAGE_EXTENSIONS:
            features[name] = datasets.Image()
    found.features = features
    return found


def _path(label: str, features: datasets.Features) -> list[str]:
    """The column of a label, and the names of the fields in it that lead there."""
    return [label] if label in features else label.split(".")


def _inside(value: Any, names: list[str]) -> Any:
    for name in names:
        value = None if value is None else value.get(name)
    return value


def _undecoded(value: Any) -> Undecoded:
    if isinstance(value, str):
        return {"bytes": None, "path": value}
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


def _pieces(places: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and one past the last row of each stretch that is fetched in one piece."""
    first = 0
    for row in range(1, len(places) + 1):
        if row < len(places):
            gap = places[row, 0] - places[row - 1].sum()
            whole = places[row].sum() - places[first, 0]
            if 0 <= gap <= GAP and whole <= BYTES_AT_ONCE and places[first, 1] >= 0 and places[row, 1] >= 0:
                continue
        yield first, row
        first = row
