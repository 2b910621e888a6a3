"""Images decoded once, for scoring."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vitas.config import UserError, one_line, words_of
from vitas.data import keyed
from vitas.data.augment import preprocessing
from vitas.data.batches import allowed_cores, outlive_a_stop
from vitas.data.images import DECODING, UNREADABLE, decode
from vitas.data.shards import Shards
from vitas.data.splits import Split
from vitas.report.terminal import say
from vitas.sections import Data

FORMAT = 2
"""The version of what is kept."""


class Cached(NamedTuple):
    """Decoded images for scoring."""

    images: np.ndarray
    """(N, 3, H, W) uint8, memory-mapped."""
    labels: np.ndarray
    """(N,) int64."""
    digest: str
    """A short name for just these pixels and labels."""


def decoded(split: Split, folder: Path, image_size: int, data: Data, *, write: bool) -> Cached | None:
    """The images of `split`, resized and centre-cropped, decoded once into `folder`; unreadable ones are left out.

    With `write` they are decoded if they are not there yet, or if what is there was made from others, in another way,
    or is damaged; without, they are what is there, or None.
    """
    how = {"decoding": DECODING, "format": FORMAT} | preprocessing(image_size, data)  # normalised later, by scoring
    how = {name: value for name, value in how.items() if name not in ("mean", "std")}
    key = {**split.key(), **how} if write else None
    file = folder / "key.json"
    kept = keyed.read(file, key)
    if kept is not None:
        try:
            return _loaded(folder, split, kept)
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError) as error:
            say(f"{folder}: damaged; decoded anew ({one_line(error)})")
    if key is None:
        return None
    file.unlink(missing_ok=True)  # from here on until it is there again, the folder is not whole
    keyed.write(file, key, kept := _decode_all(split, folder, image_size, data))
    return _loaded(folder, split, kept)


def _loaded(folder: Path, split: Split, kept: dict[str, Any]) -> Cached:
    images, labels = (np.lib.format.open_memmap(folder / name, "r") for name in ("images.npy", "labels.npy"))
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, {len(labels)} labels")
    split.unreadable.add(kept["unreadable"])
    return Cached(images, np.array(labels), kept["digest"])


def _decode_all(split: Split, folder: Path, image_size: int, data: Data) -> dict[str, Any]:
    """Writes the images and the labels; returns their digest, and the names of unreadable images with the reasons."""
    transform: Any = create_transform(**preprocessing(image_size, data), use_prefetcher=True)
    parts = _Parts(split, transform)
    folder.mkdir(parents=True, exist_ok=True)
    labels: list[int] = []
    reasons: dict[str, str] = {}
    digest = hashlib.sha256()
    bar = tqdm(desc=f"decode {folder.name}", unit=" images", leave=False, total=parts.images)
    workers = min(data.workers, len(parts), allowed_cores())
    loader = DataLoader(parts, batch_size=None, num_workers=workers, worker_init_fn=outlive_a_stop)
    try:
        with open(folder / "images.tmp", "wb") as raw:
            for images, numbers, unreadable in loader:
                raw.write(pixels := images.numpy().tobytes())
                digest.update(pixels)
                labels += numbers
                reasons |= unreadable
                bar.update(len(numbers))
    except UserError as error:
        raise type(error)(words_of(error)) from None
    finally:
        bar.close()
    if not labels:
        raise UserError(f"{split.unreadable.source}: no image can be read; {one_line(reasons)}")
    shape = (len(labels), 3, image_size, image_size)
    _save(folder / "images.npy", np.memmap(folder / "images.tmp", np.uint8, "r", shape=shape))
    _save(folder / "labels.npy", np.array(labels))
    (folder / "images.tmp").unlink()
    digest.update(np.array([*shape, *labels]).tobytes())
    return {"unreadable": reasons, "digest": digest.hexdigest()[:16]}


def _save(file: Path, array: np.ndarray) -> None:
    with file.open("wb") as out:
        np.save(out, array)
        out.flush()
        os.fsync(out.fileno())


class _Parts(Dataset[Any]):
    """A split in parts for decoding: of 256 rows, or of a stream of 1,024 of one shard."""

    def __init__(self, split: Split, transform: Callable[..., Any]) -> None:
        self.split, self.transform = split, transform
        self.images = len(split.indices)
        shards = range(split.dataset.count) if isinstance(split.dataset, Shards) else ()
        self.of_shards = [(shard, rows[first : first + 1024]) for shard in shards for rows in [split.rows_of(shard)]
                          for first in range(0, len(rows), 1024)]  # fmt: skip

    def __len__(self) -> int:
        return len(self.of_shards) if self.split.streamed else -(-self.images // 256)

    def __getitem__(self, part: int) -> tuple[np.ndarray, list[int], dict[str, str]]:
        images, labels, unreadable = [], [], {}
        if self.split.streamed:
            examples = self.split.examples(*self.of_shards[part])
        else:
            examples = map(self.split.example, range(part * 256, min((part + 1) * 256, self.images)))
        for name, undecoded, label in examples:
            try:
                images.append(self.transform(decode(undecoded)))
            except UNREADABLE as error:
                unreadable[name] = one_line(error)
            else:
                labels.append(label)
        return np.stack(images) if images else np.empty(0, np.uint8), labels, unreadable
