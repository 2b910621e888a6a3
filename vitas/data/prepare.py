"""A copy of a data set that reads fast: smaller images, mixed, in parquet shards of small row groups."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vitas.config import UserError, one_line, words_of
from vitas.data.batches import allowed_cores
from vitas.data.images import UNREADABLE, decode
from vitas.data.splits import Split
from vitas.files import make_folder, write_atomically
from vitas.report.terminal import progress

FORMAT = 1
"""The version of what is written."""
ROWS = 100
"""Of a row group: a reader that starts in the middle of a shard reads no more in vain."""
LEFT_OUT = b"vitas.unreadable"


def prepare(split: Split, folder: Path, part: str, *, short: int, quality: int, shards: int,
            workers: int | None) -> dict[str, Any]:  # fmt: skip
    """Writes the images of an indexed split as `PART-00000-of-00256.parquet`, ..., and what they are as `PART.json`.

    An image whose shorter side is at most `short` pixels is copied as it is; a larger one becomes a JPEG of that size.
    Shards that an earlier call has finished are kept.

    Raises:
        UserError: The folder holds shards that were made otherwise.
    """
    make_folder(folder)
    shards = min(shards, len(split.indices))
    key = split.key() | {"format": FORMAT, "short": short, "quality": quality, "shards": shards}
    begun, key = folder / f"{part}.key.json", json.loads(json.dumps(key))
    files = [folder / f"{part}-{shard:05d}-of-{shards:05d}.parquet" for shard in range(shards)]
    there = sorted(folder.glob(f"{part}-*.parquet"))
    if there and (not begun.is_file() or json.loads(begun.read_text()) != key):
        raise UserError(f"{folder}: holds {there[0].name}, which was not made by this command: name another folder")
    write_atomically(begun, json.dumps(key))
    missing = [shard for shard, file in enumerate(files) if not file.is_file()]
    work = _Shards(split, files, short, quality)
    workers = min(allowed_cores() if workers is None else workers, len(missing))
    done = len(split.indices) - sum(map(work.size, missing))
    with progress("prepare", len(split.indices), "image", show=True, initial=done) as bar:
        options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": _leave_interrupts, "prefetch_factor": None}
        try:
            for rows in DataLoader(work, batch_size=None, sampler=missing, **options):
                bar.update(rows)
        except UserError as error:
            raise UserError(words_of(error)) from None
    told = [pq.read_metadata(file) for file in files]
    reasons = {name: why for one in told for name, why in json.loads((one.metadata or {})[LEFT_OUT]).items()}
    about = {
        "images": sum(one.num_rows for one in told),
        "bytes": sum(file.stat().st_size for file in files),
        "classes": split.classes,
        "rows": {file.name: one.num_rows for file, one in zip(files, told, strict=True)},
        "made_with": key,
        "unreadable": reasons,
    }
    write_atomically(folder / f"{part}.json", json.dumps(about, indent=1))
    return about


def _leave_interrupts(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the terminal


class _Shards(Dataset[Any]):
    """Writes a shard when it is asked for, all or nothing of it; gives the number of its rows, unreadable ones too."""

    def __init__(self, split: Split, files: list[Path], short: int, quality: int) -> None:
        self.split, self.files, self.short, self.quality = split, files, short, quality
        # Files mostly lie sorted by class.
        self.order = np.random.default_rng(0).permutation(len(split.indices))
        self.features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(split.classes)))

    def __len__(self) -> int:
        return len(self.files)

    def size(self, shard: int) -> int:
        """Rows of a shard, unreadable ones too."""
        return len(self.order[shard :: len(self.files)])

    def __getitem__(self, shard: int) -> int:
        rows: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        for row in self.order[shard :: len(self.files)].tolist():
            name, image, label = self.split.example(row)
            try:
                rows.append({"image": {"bytes": self._shrunk(image), "path": None}, "label": label})
            except UNREADABLE as error:
                # Without the address in memory that Pillow tells: the same images give the same bytes.
                reasons[name] = re.sub(r" at 0x[0-9a-f]+", "", one_line(error))
        schema = self.features.arrow_schema
        schema = schema.with_metadata({**schema.metadata, LEFT_OUT: json.dumps(reasons).encode()})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema), sink, row_group_size=ROWS)
        try:
            write_atomically(self.files[shard], sink.getvalue().to_pybytes())
        except OSError as error:  # of which the process that waits for this one would not learn the kind
            raise UserError(f"{self.files[shard]}: {error.strerror}; the same command goes on") from None
        return self.size(shard)

    def _shrunk(self, image: dict[str, Any]) -> bytes:
        """The bytes of an image as it is, or as a smaller JPEG."""
        picture = decode(image)
        ratio = self.short / min(picture.size)
        if ratio >= 1:
            return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        size = [max(self.short, round(side * ratio)) for side in picture.size]
        smaller = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)
        smaller.save(out := io.BytesIO(), "JPEG", quality=self.quality)
        return out.getvalue()
