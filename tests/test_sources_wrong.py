"""What is wrong with files, columns or labels is one line."""

import errno
import os
import re
from pathlib import Path

import pytest
from datasets import ClassLabel, Value
from test_data import picture, write_parquet, write_webdataset
from test_sources import json_labels, one_of_its_parts, opened, parquet, photos, saved, shards, table, train_beside_test

from vitas.config import UserError
from vitas.data import sources
from vitas.sections import Data


def depths(root: Path) -> Path:
    photos(root)
    (root / "apple" / "more").mkdir()
    picture(0).save(root / "apple" / "more" / "0.png")
    return root


def twice(root: Path) -> Path:
    photos(root / "old")
    photos(root / "new")
    return root


def touched(file: Path, content: bytes = b"") -> Path:
    file.write_bytes(content)
    return file


def holds(*labels, kind=None):
    """Makes a parquet file with these labels."""
    return lambda root: parquet(root, labels, kind)


def lists(*rows):
    """Makes a table with these rows."""
    return lambda root: table(root / "x.csv", list(rows))


SWAPPED = {"image_column": "label", "label_column": "image"}
HEADER, FIRST = ("path", "label"), ("0.png", "a")
TEXT, FLOAT, TWO = Value("string"), Value("float32"), ClassLabel(names=["a", "b"])
LABELS = [
    (lambda root: photos(root / "x", ["apple"]), {}, "/x: all 4 images are of one class, apple; expected two or more"),
    (holds(1, 1, kind=TWO), {}, "all 2 images are of one class, b"),
    (lists(HEADER, FIRST, ("1.png", "a")), {}, "x.csv: all 2 images are of one class, a"),
    (holds(0, 0, kind=ClassLabel(names=["a"])), {"streaming": True}, "all 2 images are of one class, a; expected two"),
    (
        holds("a", None, "b", kind=TEXT),
        {},
        "data.train: column label: 1 of 3 images have no label; the first is image 1",
    ),
    (holds(0, None, 1, kind=TWO), {}, "column label: 1 of 3 images have no label"),
    (holds(0.0, float("nan"), 1.0, kind=FLOAT), {}, "column label: 1 of 3 images have no label"),
    (lists(HEADER, FIRST, ("1.png", "")), {}, "column label: 1 of 2 images have no label"),
    (holds(-1, -1, -1, kind=TWO), {}, "column label: 3 of 3 images have label -1, which is none of the classes"),
    (holds(0.5, 1.0, kind=FLOAT), {}, "column label: holds 0.5: expected whole numbers or texts as class labels"),
    (holds((0,), (1,), kind=[Value("int64")]), {}, r"column label of data\.train holds List"),
    (holds("a", "b"), {"label_column": "image"}, "data.train: column image is both images and labels"),
    (holds(0, 1), SWAPPED, "data.image_column: column label of data.train holds int64, not images"),
    (holds("a", "b"), SWAPPED, "data.label_column: column image of data.train holds images, not class labels"),
    (
        json_labels,
        {"label_column": "json.klass"},
        "data.train has no json.klass; column json holds the fields id, label",
    ),
    (holds("a", "b"), {"label_column": "label.x"}, "data.train has no label.x; column label holds string"),
    (holds("a", "b", "c"), {"classes": ["a", "b"]}, "column label: 1 of 3 images have label 'c', which is none of"),
    (photos, {"classes": ["apple", "banana"]}, "class cherry is none of the 2 of data.classes"),
]
FILES = [
    (lambda root: photos(root) / "apple" / "0.png", "apple/0.png is one image, expected a folder of class folders"),
    (lambda root: touched(root / "x.zip"), "x.zip is a .zip file, expected a folder"),
    (lambda root: root / "x.parquet", "x.parquet: No such file or directory"),
    (lambda root: root / "*.tar", r"\*.tar: No such file or directory"),
    (lambda root: shards(root, "{010..012}.parquet"), "/012.parquet: No such file or directory"),
    (lambda root: touched(parquet(root, [0, 1]) / "x.csv").parent / "*", "several kinds of files: parquet, table"),
    (lambda root: touched(parquet(root, [0, 1]) / "x.tar").parent, "holds both .parquet and .tar files"),
    (lambda root: touched(root / "x.tar", b"no"), "x.tar: not readable as webdataset: "),
    (lambda root: root, "no images; expected a folder for each class"),
    (lambda root: photos(root) / "apple", r"apple: 4 image\(s\), but no class folders with images"),
    (depths, "which folders are the classes.* different depth: .* and apple/more"),
    (twice, "class folder apple is there twice: new/apple and old/apple"),
    (lambda root: f"{train_beside_test(root)}:tain", r"no part tain \(did you mean train\?\); there is test, train"),
    (lambda root: f"{saved(root)}:train", "no part train; there is no other"),
    (lambda root: one_of_its_parts(root)[:-2], "holds the parts a, b: name one, as in .*/saved:a"),
    (lists(HEADER, FIRST, ("1.png",)), "line 3: expected 2 cells as in the header, got 1"),
    (lists(("picture", "label"), FIRST), "it has picture, label: set data.image_column"),
    (lists(HEADER, ("9.png", "a")), "none of its images is there: .*9.png; paths are relative to"),
    (lists(("path", "path"), FIRST), "the header names a column twice"),
    (lambda root: touched(root / "x.csv"), "x.csv: not readable as a table with a header"),
    (lambda root: touched(root / "x.csv", b"\xff,\n"), "x.csv: not readable as a table with a header"),
]


@pytest.mark.parametrize(("make", "settings", "message"), [*LABELS, *((make, {}, what) for make, what in FILES)])
def test_what_is_wrong_is_one_line(tmp_path, make, settings, message):
    spec = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        opened(spec, **settings)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_looked_into_is_one_line_not_a_missing_class(tmp_path, monkeypatch):
    scandir = os.scandir

    def failing(folder):
        if str(folder).endswith("banana"):
            raise OSError(errno.EIO, "Input/output error", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UserError, match=r"/banana: Input/output error$"):
        opened(photos(tmp_path))


@pytest.mark.parametrize(("missing", "message"), [(None, "no label"), (7, "label 7, which is none of the classes")])
def test_a_label_that_a_stream_lacks_is_one_line(tmp_path, missing, message):
    folder = parquet(tmp_path, [0, 1, missing], Value("int64"))
    good = parquet(tmp_path / "test", [0, 1], Value("int64"))
    told = f"^data.train: column label: 1 of 3 images have {message}; the first is image 2$"
    with pytest.raises(UserError, match=told):
        opened(folder, good, streaming=True, classes=2)


@pytest.mark.parametrize("write", [write_parquet, write_webdataset])
def test_a_damaged_shard_of_a_stream_is_one_line(tmp_path, write):
    write(tmp_path, [(picture(label), label) for label in (0, 1, 2) * 4], 2)
    data = Data(train=str(tmp_path), test="digits", streaming=True, classes=3, patience=0.1)
    whole = sources._open(data, data.train, "data.train", streaming=True)
    assert len(list(whole.examples(1))) == 6
    (shard,) = tmp_path.glob("1.*")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{re.escape(str(shard))}: not readable[:,] "):
        list(whole.examples(1))
    with pytest.raises(UserError, match=rf"^data\.train: {re.escape(str(shard))}: not readable: "):
        sources._open(data, data.train, "data.train", streaming=True)
