"""Images decoded once, for scoring."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vitas.config import UserError, one_line
from vitas.data.augment import preprocessing
from vitas.data.images import UNREADABLE, decode
from vitas.data.sources import Split
from vitas.recipe import Data


class Cached(NamedTuple):
    """Decoded images for scoring: (N, 3, H, W) uint8, memory-mapped, and labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def decoded(split: Split, folder: Path, image_size: int, data: Data, *, write: bool) -> Cached | None:
    """The images of `split`, resized and centre-cropped, decoded once into `folder`; unreadable ones are left out.

    With `write` they are decoded if they are not there yet; without, they are None until somebody has.
    """
    if not (folder / "labels.npy").is_file():
        if not write:
            return None
        _decode_all(split, folder, image_size, data)
    split.unreadable.reasons.update(json.loads((folder / "unreadable.json").read_text()))
    return Cached(np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy"))


def _decode_all(split: Split, folder: Path, image_size: int, data: Data) -> None:
    transform: Any = create_transform(**preprocessing(image_size, data), use_prefetcher=True)
    parts = _Parts(split, transform)
    folder.mkdir(parents=True, exist_ok=True)
    labels: list[int] = []
    reasons: dict[str, str] = {}
    bar = tqdm(desc=f"decode {folder.name}", unit=" images", leave=False, total=parts.images)
    with open(folder / "images.tmp", "wb") as raw:
        for images, numbers, unreadable in DataLoader(
            parts, batch_size=None, num_workers=min(data.workers, len(parts), os.cpu_count() or 1)
        ):
            raw.write(images.numpy().tobytes())
            labels += numbers
            reasons |= unreadable
            bar.update(len(numbers))
    bar.close()
    if not labels:
        raise UserError(f"{split.unreadable.source}: no image can be read; {one_line(reasons)}")
    shape = (len(labels), 3, image_size, image_size)
    np.save(folder / "images.npy", np.memmap(folder / "images.tmp", np.uint8, "r", shape=shape))
    (folder / "images.tmp").unlink()
    (folder / "unreadable.json").write_text(json.dumps(reasons))
    # The labels come last, by a rename: a folder that holds them is whole.
    np.save(folder / "labels.tmp.npy", np.array(labels))
    (folder / "labels.tmp.npy").rename(folder / "labels.npy")


class _Parts(Dataset[Any]):
    """A split in parts for decoding: 256 rows each, or the shards of a stream."""

    def __init__(self, split: Split, transform: Callable[..., Any]) -> None:
        self.split, self.transform = split, transform
        self.images = None if split.indices is None else len(split.indices)

    def __len__(self) -> int:
        return self.split.dataset.num_shards if self.images is None else -(-self.images // 256)

    def __getitem__(self, part: int) -> tuple[np.ndarray, list[int], dict[str, str]]:
        images, labels, unreadable = [], [], {}
        if self.images is None:
            examples = self.split.examples(part)
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
