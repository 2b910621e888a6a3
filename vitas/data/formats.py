"""The forms in which images come: each opened through Hugging Face `datasets`."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from vitas.config import UserError, did_you_mean, one_line
from vitas.data import listing
from vitas.data.splits import Origin
from vitas.files import expanded

EXPECTED = "expected a folder of class folders, parquet, tar, CSV or TSV files, a folder of save_to_disk, or a Hub name"
SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
TABLES = (".csv", ".tsv")
PARTS = {
    "data.train": ("train", "training"),
    "data.test": ("test", "validation", "valid", "val", "dev", "eval"),
}
"""Names of the parts of a source, of which each key takes the first that is there."""


@dataclass(frozen=True)
class Opened:
    """A dataset as it is found, with any columns."""

    dataset: Any
    """A `datasets.Dataset`, or an `IterableDataset` of shards or of the Hub."""
    origin: Origin
    left_out: dict[str, str] = field(default_factory=dict)
    """Images that are no part of it, and why."""


def open_any(spec: str, key: str, *, streaming: bool, image_column: str | None = None) -> Opened:
    """Opens what `data.train` or `data.test` (the `key`) names.

    Raises:
        UserError: Nothing is there, or not in any of the forms.
    """
    if spec in ("digits", "digits:train", "digits:test"):
        return Opened(_digits(test=spec.endswith("test")), Origin(spec))
    where = f"{key}: {spec}"
    path, part = expanded(spec).absolute(), None
    if not path.exists() and (named := re.fullmatch(r"(.+):([\w.-]+)", str(path))) and Path(named[1]).is_dir():
        path, part = Path(named[1]), named[2]
    if path.is_dir():
        return _folder(path, part, key, where, streaming)
    if path.exists():
        if listing.is_image(path):
            raise UserError(f"{where} is one image, {EXPECTED}")
        return _several([path], key, where, streaming, image_column)
    if patterns := _patterns(str(expanded(spec))):
        found = []
        for pattern in patterns:
            found += (matches := sorted(glob.glob(pattern, recursive=True)))
            if not matches:
                raise UserError(f"{key}: {pattern}: No such file or directory")
        return _several([Path(file).absolute() for file in found], key, where, streaming, image_column)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:\w+)?", spec):
        return _hub(spec, where, streaming)
    raise UserError(f"{where}: No such file or directory")


def _several(found: list[Path], key: str, where: str, streaming: bool, image_column: str | None) -> Opened:
    """What a pattern matched: folders with images in them, images, shards or tables; files of no use are left out."""
    by_kind: dict[str, list[Path]] = {}
    for path in found:
        by_kind.setdefault(_kind(path), []).append(path)
    if len(by_kind) > 1:
        by_kind.pop("", None)
    if len(by_kind) > 1:
        raise UserError(f"{where}: matches several kinds of files: {', '.join(sorted(by_kind))}")
    kind, found = by_kind.popitem()
    if kind == "table":
        return Opened(listing.from_tables(found, image_column, key), Origin(kind))
    if kind in SHARDS.values():
        return _shards(kind, found, where, streaming)
    if not kind:
        raise UserError(f"{where} is a {found[0].suffix or 'nameless'} file, {EXPECTED}")
    images = listing.images_below(found) if kind == "folder" else list(map(str, found))
    if not images:
        raise UserError(f"{where}: no images in these {len(found)} folders")
    return Opened(listing.by_folder(images), Origin("images"))


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if listing.is_image(path):
        return "image"
    return SHARDS.get(path.suffix.lower()) or ("table" if path.suffix.lower() in TABLES else "")


def _folder(folder: Path, part: str | None, key: str, where: str, streaming: bool) -> Opened:
    if (folder / "dataset_dict.json").is_file():
        names = sorted(child.name for child in folder.iterdir() if (child / "state.json").is_file())
        chosen = _choose(names, part, key, where)
        if chosen is None:
            raise UserError(
                f"{where}: holds the parts {', '.join(names)}: name one, as in {folder}:{[*names, 'train'][0]}"
            )
        return _saved(folder / chosen, where)
    if (folder / "state.json").is_file():
        _choose((), part, key, where)
        return _saved(folder, where)
    files = [file for file in sorted(folder.iterdir())
             if file.suffix in SHARDS and not file.name.startswith((".", "metadata."))]  # fmt: skip
    if kinds := {file.suffix for file in files}:
        if len(kinds) > 1:
            raise UserError(f"{where}: holds both .parquet and .tar files: name some, such as {folder}/*.parquet")
        parts = {file: re.split(r"[-_.\d]", file.stem)[0] for file in files}
        chosen = _choose(parts.values(), part, key, where)
        return _shards(SHARDS[kinds.pop()], [file for file in files if chosen in (None, parts[file])], where, streaming)
    folders = [child.name for child in folder.iterdir() if child.is_dir()]
    if chosen := _choose(folders, part, key, where):
        return _folder(folder / chosen, None, key, where, streaming)
    if tables := [str(file) for file in folder.glob("metadata.*") if file.suffix in (".csv", ".jsonl", ".parquet")]:
        dataset = _load("imagefolder", f"{glob.escape(str(folder))}/**", where, streaming)
        return Opened(dataset, Origin("imagefolder", tuple(tables)))
    dataset, loose = listing.class_folders(folder, where)
    return Opened(dataset, Origin("images"), loose)


def _choose(names: Any, part: str | None, key: str, where: str) -> str | None:
    """The part that is asked for, or that the key takes where training and test images lie side by side."""
    names = set(names)
    if part is not None and part not in names:
        there = ", ".join(sorted(names)) or "no other"
        raise UserError(f"{where}: no part {part}{did_you_mean(part, names)}; there is {there}")
    if part is not None:
        return part
    found = {name: [part for part in parts if part in names] for name, parts in PARTS.items()}
    return found[key][0] if all(found.values()) else None


def _saved(folder: Path, where: str) -> Opened:
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # readers of files raise dozens of kinds
        raise UserError(f"{where}: not readable as a folder of save_to_disk: {one_line(error)}") from None
    files = sorted(str(file) for file in folder.glob("*.arrow"))
    return Opened(dataset, Origin("save_to_disk", tuple(files)))


def _shards(kind: str, files: list[Path], where: str, streaming: bool) -> Opened:
    names = [str(file) for file in files]
    dataset = _load(kind, list(map(glob.escape, names)), where, streaming)
    return Opened(dataset, Origin(kind, tuple(names)))


def _load(kind: str, files: Any, where: str, streaming: bool) -> Any:
    try:
        return datasets.load_dataset(kind, data_files={"train": files}, split="train", streaming=streaming)
    except Exception as error:  # readers of files raise dozens of kinds
        raise UserError(f"{where}: not readable as {kind}: {one_line(error.__cause__ or error)}") from None


def _hub(spec: str, where: str, streaming: bool) -> Opened:
    name, _, split = spec.partition(":")
    try:
        builder = datasets.load_dataset_builder(name)
        origin = Origin(f"{spec} {builder.hash}")
        if streaming:
            return Opened(builder.as_streaming_dataset(split=split or "train"), origin)
        builder.download_and_prepare()
        return Opened(builder.as_dataset(split=split or "train"), origin)
    except Exception as error:  # the Hub's client raises dozens of kinds: network, access, names
        raise UserError(f"{where}: no such folder here, and not loaded from the Hub: {one_line(error)}") from None


def _patterns(path: str) -> list[str]:
    """The patterns that a path with `*`, `{a,b}` or `{000..127}` stands for, as in a shell; none if it is plain."""
    brace = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", path)
    if brace is None:
        return [path] if glob.has_magic(path) else []
    first, last, names = brace.groups()
    choices = names.split(",") if names else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    wholes = [path[: brace.start()] + choice + path[brace.end() :] for choice in choices]
    return [pattern for whole in wholes for pattern in (_patterns(whole) or [whole])]


@lru_cache(maxsize=2)
def _digits(*, test: bool) -> datasets.Dataset:
    """scikit-learn's 1,797 handwritten digits (8x8, grey); every fifth, drawn by class, is for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images, labels = digits.data, digits.target
    rows = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)[int(test)]
    pixels = (images.reshape(-1, 8, 8) / 16 * 255).round().astype(np.uint8)
    names = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features(image=datasets.Image(), label=names)
    columns = {"image": [Image.fromarray(pixels[row]) for row in rows], "label": [int(labels[row]) for row in rows]}
    return datasets.Dataset.from_dict(columns, features=features)
