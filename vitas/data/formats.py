"""The forms in which images come: each opened through Hugging Face `datasets`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import fsspec
import numpy as np
from datasets.config import HF_HUB_OFFLINE
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetsError
from PIL import Image

from vitas.config import SourceLost, UserError, did_you_mean, one_line
from vitas.data import listing, remote, shards
from vitas.data.listing import Listed
from vitas.data.shards import Shards
from vitas.data.splits import Origin
from vitas.files import expanded

EXPECTED = "expected a folder of class folders, parquet, tar, CSV or TSV files, a folder of save_to_disk, or a Hub name"
SHARDS = {".parquet": "parquet", ".tar": "webdataset"}
STREAMED = {"parquet": shards.parquet, "webdataset": shards.tar}
TABLES = (".csv", ".tsv")
PARTS = {
    "data.train": ("train", "training"),
    "data.test": ("test", "validation", "valid", "val", "dev", "eval"),
}
"""Names of the parts of a source, of which each key takes the first that is there."""

NOT_THERE = (FileNotFoundError, PermissionError)
NOT_ON_THE_HUB = (DatasetsError, EmptyDatasetError)
"""What the clients of servers raise if it is of no use to ask again; the Hub's says `FileNotFoundError` of all else."""

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """A dataset as it is found, with any columns."""

    dataset: datasets.Dataset | Shards
    """A `datasets.Dataset`, or shards that are read when they are wanted."""
    origin: Origin
    left_out: dict[str, str] = field(default_factory=dict)
    """Images that are no part of it, and why."""


def open_any(
    spec: str,
    key: str,
    *,
    patience: float | None = None,
    image_column: str | None = None,
    listed: Listed | None = None,
) -> Opened:
    """Opens what `data.train` or `data.test` (the `key`) names.

    Args:
        spec: What the key says.
        key: The key.
        patience: With it what comes in shards is not read yet; each will be tried again for so many seconds.
        image_column: The column of image files in a table.
        listed: Where it is remembered which images lie in a folder.

    Raises:
        UserError: Nothing is there, or not in any of the forms.
    """
    if spec in ("digits", "digits:train", "digits:test"):
        return Opened(_digits(test=spec.endswith("test") or (spec, key) == ("digits", "data.test")), Origin(spec))
    where = f"{key}: {spec}"
    if remote.is_remote(spec):
        return _urls(spec, where, patience)
    path, part = expanded(spec).absolute(), None
    if not path.exists() and (named := re.fullmatch(r"(.+):([\w.-]+)", str(path))) and Path(named[1]).is_dir():
        path, part = Path(named[1]), named[2]
    if path.is_dir():
        return _folder(path, part, key, where, patience, listed)
    if path.exists():
        if listing.is_image(path):
            raise UserError(f"{where} is one image, {EXPECTED}")
        return _several([path], key, where, patience, image_column)
    if patterns := _patterns(str(expanded(spec))):
        found = []
        for pattern in patterns:
            found += (matches := sorted(glob.glob(pattern, recursive=True)))
            if not matches:
                raise UserError(f"{key}: {pattern}: No such file or directory")
        return _several([Path(file).absolute() for file in found], key, where, patience, image_column)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:\w+)?", spec):
        return _hub(spec, where, patience)
    raise UserError(f"{where}: No such file or directory")


def _several(found: list[Path], key: str, where: str, patience: float | None, image_column: str | None) -> Opened:
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
        return _shards(kind, found, where, patience)
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


def _folder(
    folder: Path, part: str | None, key: str, where: str, patience: float | None, listed: Listed | None
) -> Opened:
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
        return _shards(SHARDS[kinds.pop()], [file for file in files if chosen in (None, parts[file])], where, patience)
    folders = [child.name for child in folder.iterdir() if child.is_dir()]
    if chosen := _choose(folders, part, key, where):
        return _folder(folder / chosen, None, key, where, patience, listed)
    if tables := [str(file) for file in folder.glob("metadata.*") if file.suffix in (".csv", ".jsonl", ".parquet")]:
        dataset = _load("imagefolder", f"{glob.escape(str(folder))}/**", where)
        return Opened(dataset, Origin("imagefolder", tuple(tables)))
    dataset, loose = listed.class_folders(folder, where) if listed else listing.class_folders(folder, where)
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
        dataset = cast(datasets.Dataset, datasets.load_from_disk(str(folder)))
    except Exception as error:  # readers of files raise dozens of kinds
        raise UserError(f"{where}: not readable as a folder of save_to_disk: {one_line(error)}") from None
    files = sorted(str(file) for file in folder.glob("*.arrow"))
    return Opened(dataset, Origin("save_to_disk", tuple(files)))


def _urls(spec: str, where: str, patience: float | None) -> Opened:
    names = _braces(spec)
    if not spec.startswith(("http://", "https://")):  # of these nobody can ask what there is
        names = [
            found for name in names for found in (_matches(name, where, patience) if glob.has_magic(name) else [name])
        ]
    kinds = {SHARDS.get(os.path.splitext(name.partition("?")[0])[1].lower(), "") for name in names}
    if len(kinds) > 1 or "" in kinds:
        raise UserError(f"{where}: expected URLs of .parquet or of .tar files")
    return _shards(kinds.pop(), names, where, patience)


def _matches(pattern: str, where: str, patience: float | None) -> list[str]:
    def look() -> list[str]:
        files, path = fsspec.core.url_to_fs(pattern)
        return [files.unstrip_protocol(name) for name in sorted(files.glob(path))]

    found = _answered(look, pattern, where, patience, NOT_THERE)
    if not found:
        raise UserError(f"{where}: no such files")
    return found


def _shards(kind: str, files: Sequence[Path | str], where: str, patience: float | None) -> Opened:
    names = list(map(str, files))
    if patience is None:
        whole = [name if remote.is_remote(name) else glob.escape(name) for name in names]
        return Opened(_load(kind, whole, where), Origin(kind, tuple(names)))
    try:
        return Opened(STREAMED[kind](names, patience), Origin(kind, tuple(names)))
    except SourceLost:
        raise
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _load(kind: str, files: Any, where: str) -> datasets.Dataset:
    try:
        return cast(datasets.Dataset, datasets.load_dataset(kind, data_files={"train": files}, split="train"))
    except Exception as error:  # readers of files raise dozens of kinds
        raise UserError(f"{where}: not readable as {kind}: {one_line(error.__cause__ or error)}") from None


def _hub(spec: str, where: str, patience: float | None) -> Opened:
    name, _, split = spec.partition(":")
    split = split or "train"

    def asked(work: Callable[[], T]) -> T:
        return _answered(
            work, name, f"{where}: no such folder here, and not loaded from the Hub", patience, NOT_ON_THE_HUB
        )

    builder = asked(lambda: datasets.load_dataset_builder(name))
    origin = Origin(f"{spec} {builder.hash}")
    if patience is None:
        asked(builder.download_and_prepare)
        return Opened(asked(lambda: cast(datasets.Dataset, builder.as_dataset(split=split))), origin)
    kind, files = builder.name or "", (builder.config.data_files or {}).get(split)
    if kind not in STREAMED or not files:
        streamed = asked(lambda: builder.as_streaming_dataset(split=split))
        return Opened(shards.Others(streamed, patience), origin)
    found = STREAMED[kind](list(map(str, files)), patience)
    if builder.info.features:  # with the names of classes, which a README may say and the files not
        found.features = builder.info.features
    return Opened(found, origin)


def _answered(
    work: Callable[[], T], name: str, where: str, patience: float | None, final: tuple[type[Exception], ...]
) -> T:
    """What servers say of their files; of a stream they are asked again while they do not answer.

    Raises:
        UserError: They answer that it is not there, or must not be read: with one of `final`.
        SourceLost: They did not answer for `patience` seconds.
    """
    once = patience is None or HF_HUB_OFFLINE
    final = (Exception,) if once else (*final, ValueError, ImportError)

    def ask() -> T:
        try:
            return work()
        except UserError:
            raise
        except final as error:
            raise UserError(f"{where}: {one_line(error)}") from None

    return remote.patiently(name, patience or 0.0, ask)


def _patterns(path: str) -> list[str]:
    """The patterns that a path with `*`, `{a,b}` or `{000..127}` stands for, as in a shell; none if it is plain."""
    found = _braces(path)
    return found if len(found) > 1 or found != [path] or glob.has_magic(path) else []


def _braces(path: str) -> list[str]:
    """What a path with `{a,b}` or `{000..127}` stands for, as in a shell."""
    brace = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", path)
    if brace is None:
        return [path]
    first, last, names = brace.groups()
    choices = names.split(",") if names else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [whole for choice in choices for whole in _braces(path[: brace.start()] + choice + path[brace.end() :])]


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
