"""Image files with their labels, from class folders or from a table."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.table import table_cast
from PIL import Image
from pyarrow import feather

from vitas.config import UserError
from vitas.files import expanded, write_atomically

FILE_NAMES = ("image", "file", "filename", "file_name", "path", "filepath", "image_path", "img")


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """How the names of files end that Pillow can open, in lower case."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def is_image(name: str | Path) -> bool:
    """Whether a file is an image by its name; hidden files are not."""
    name = os.path.basename(name)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in image_suffixes()


def class_folders(
    root: Path, where: str, seen: dict[str, int] | None = None
) -> tuple[datasets.Dataset, dict[str, str]]:
    """The images below a folder, each of the class that its own folder names, and those left out, with the reason.

    `seen` gets the time of each folder that was looked into, as it was before.

    Raises:
        UserError: There are no class folders, or what lies below leaves open which folders are the classes.
    """
    loose = {str(root / name): "lies beside the class folders, and so has no label" for name in os.listdir(root)
             if is_image(name)}  # fmt: skip
    files = [file for file in _below(root, seen) if file not in loose]
    if not files:
        found = f"{len(loose)} image(s), but no class folders with images" if loose else "no images"
        raise UserError(f"{where}: {found}; expected a folder for each class, with its images")
    folders = sorted({os.path.dirname(file) for file in files})
    by_depth = {folder.count(os.sep): os.path.relpath(folder, root) for folder in reversed(folders)}
    if len(by_depth) > 1:
        examples = " and ".join(by_depth[depth] for depth in sorted(by_depth)[:2])
        raise UserError(f"{where}: which folders are the classes? Images lie in folders of different depth: {examples}")
    classes: dict[str, str] = {}
    for folder in folders:
        name = os.path.basename(folder)
        if name in classes:
            twice = " and ".join(os.path.relpath(path, root) for path in (classes[name], folder))
            raise UserError(f"{where}: class folder {name} is there twice: {twice}; name the folder of one of them")
        classes[name] = folder
    return by_folder(files), loose


@dataclass(frozen=True)
class Listed:
    """What `class_folders` found before: on a file server to look takes minutes for a million images, on every rank.

    Args:
        file: Where it is kept.
        main: Whether it is seen to that no folder has changed since; else what is there is trusted.
    """

    file: Path
    main: bool

    def class_folders(self, root: Path, where: str) -> tuple[datasets.Dataset, dict[str, str]]:
        """As the function of that name; looks again only if a folder has changed."""
        if (kept := self._kept(str(root))) is not None:
            return kept
        seen: dict[str, int] = {}
        dataset, loose = class_folders(root, where, seen)
        if self.main:
            table = dataset.data.table.replace_schema_metadata(
                {**(dataset.data.table.schema.metadata or {}), b"listed": json.dumps([str(root), seen, loose]).encode()}
            )
            sink = pa.BufferOutputStream()
            feather.write_feather(table, sink, compression="uncompressed")
            write_atomically(self.file, sink.getvalue().to_pybytes())
        return dataset, loose

    def _kept(self, root: str) -> tuple[datasets.Dataset, dict[str, str]] | None:
        try:
            table = feather.read_table(str(self.file), memory_map=True)
            of, seen, loose = json.loads(table.schema.metadata[b"listed"])
            if of != root or (self.main and any(os.stat(path).st_mtime_ns != when for path, when in seen.items())):
                return None
        except (OSError, KeyError, ValueError, TypeError):  # there is none, it is damaged, or a folder is gone
            return None
        return datasets.Dataset(table), loose


def by_folder(files: Sequence[str]) -> datasets.Dataset:
    """Images, each of the class that its folder names."""
    names = [os.path.basename(os.path.dirname(os.path.abspath(file))) for file in files]
    classes = sorted(set(names))
    number = {name: index for index, name in enumerate(classes)}
    table = pa.table({"image": list(files), "label": [number[name] for name in names]})
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=classes))
    return datasets.Dataset(table_cast(table, features.arrow_schema))


def images_below(folders: Iterable[Path]) -> list[str]:
    """All images in some folders, and in the folders in them."""
    return [file for folder in folders for file in _below(folder)]


def from_tables(files: Sequence[Path], column: str | None, key: str) -> datasets.Dataset:
    """The rows of CSV or TSV files with a header; the paths of images are relative to their file.

    Cells are texts; a column of whole numbers is one of numbers, and an empty cell is none.

    Raises:
        UserError: Not such a file, or the column of images cannot be told, or there are no such images.
    """
    columns: dict[str, list[str | None]] = {}
    image = column
    for file in files:
        names, rows = _table(file, key)
        image = column or next((name for name in FILE_NAMES if name in names), None)
        if image not in names:
            hint = f"no column {column}" if column else "no column of image files that is named so"
            raise UserError(f"{key}: {file}: {hint}; it has {', '.join(names)}: set data.image_column")
        if columns and set(columns) != set(names):
            raise UserError(f"{key}: {file}: other columns than {files[0]}: {', '.join(names)}")
        cells = {name: [row[index] or None for row in rows] for index, name in enumerate(names)}
        cells[image] = [path and str(file.parent / expanded(path)) for path in cells[image]]
        if not any(path and os.path.isfile(path) for path in cells[image]):
            first = next(filter(None, cells[image]), "no paths at all")
            raise UserError(f"{key}: {file}: none of its images is there: {first}; paths are relative to {file.parent}")
        for name in names:
            columns.setdefault(name, []).extend(cells[name])
    dataset = datasets.Dataset(pa.table({name: _numbers_if_all_are(cells) for name, cells in columns.items()}))
    return dataset.cast_column(str(image), datasets.Image(decode=False))


def _below(folder: Path, seen: dict[str, int] | None = None) -> list[str]:
    """The images in a folder and in those in it, in order, through links, and not in hidden folders."""

    def refuse(error: OSError) -> None:  # os.walk would pass over it, and a class be missing without a word
        raise UserError(f"{error.filename}: {error.strerror}")

    if seen is not None:
        seen[str(folder)] = os.stat(folder).st_mtime_ns
    found = []
    for path, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(path, name) for name in sorted(names) if is_image(name)]
        if seen is not None:  # before they are looked into, or what comes meanwhile would be missed
            seen |= {below: os.stat(below).st_mtime_ns for below in (os.path.join(path, name) for name in folders)}
    return found


def _table(file: Path, key: str) -> tuple[list[str], list[list[str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            header = text.readline()
            text.seek(0)
            delimiter = max("\t" if file.suffix.lower() == ".tsv" else ",", ";", "\t", key=header.count)
            names, *rows = [[cell.strip() for cell in row] for row in csv.reader(text, delimiter=delimiter) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{key}: {file}: not readable as a table with a header: {error}") from None
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise UserError(
                f"{key}: {file}: line {number}: expected {len(names)} cells as in the header, got {len(row)}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"{key}: {file}: the header names a column twice: {', '.join(names)}")
    return names, rows


def _numbers_if_all_are(cells: list[str | None]) -> pa.Array:
    try:
        numbers = [cell and int(cell) for cell in cells]
    except ValueError:
        return pa.array(cells, pa.string())
    as_written = all(cell is None or str(number) == cell for cell, number in zip(cells, numbers, strict=True))
    return pa.array(numbers, pa.int64()) if as_written else pa.array(cells, pa.string())
