"""Images that are decoded once, and counts, are of what the recipe asks for now, and whole."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import picture

from vitas.data import decoded, sources
from vitas.sections import Data

CLASSES = ("apple", "banana", "cherry")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two folders of 8 images for each of three classes."""
    for part in ("one", "two"):
        for label, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(8):
                picture(label).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def holdout_of(folder: Path, seed: int = 0, **settings):
    """The hold-out of a folder's images, and the recipe's section."""
    data = Data(train=str(folder), test=str(folder), workers=0, holdout=0.3, **settings)
    return sources.open_splits(data)[0].hold_out(data.holdout, seed)[1], data


def decode(split, data: Data, cache: Path, size: int = 16) -> decoded.Cached:
    found = decoded.decoded(split, cache, size, data, write=True)
    assert found is not None
    other_rank = decoded.decoded(split, cache, size, data, write=False)
    assert other_rank is not None
    assert same(found, other_rank)
    return found


def same(one: decoded.Cached, two: decoded.Cached) -> bool:
    return np.array_equal(one.images, two.images) and np.array_equal(one.labels, two.labels)


def replaced(folder: Path):
    split, data = holdout_of(folder / "one", seed=1)
    Image.new("RGB", (40, 30), "white").save(split.example(0)[0])
    return split, data


def grown(folder: Path):
    picture(0).save(folder / "one" / "apple" / "00.png")
    return holdout_of(folder / "one", seed=1)


def relabelled(folder: Path):
    (folder / "one" / "apple").rename(folder / "one" / "zucchini")
    return holdout_of(folder / "one", seed=1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda folder: holdout_of(folder / "two", seed=1), "images"),
        (lambda folder: holdout_of(folder / "one", seed=2), "rows"),
        (lambda folder: holdout_of(folder / "one", seed=1, crop_pct=0.5), "crop_pct"),
        (lambda folder: holdout_of(folder / "one", seed=1, classes=[*reversed(CLASSES)]), "classes"),
        (replaced, "images"),
        (grown, "rows"),
        (relabelled, "classes"),
        (lambda folder: (*sources.open_splits(Data())[1:], Data()), "source"),
    ],
    ids=["folder", "seed", "crop_pct", "classes", "replaced", "grown", "relabelled", "digits"],
)
def test_another_source_row_class_or_crop_is_decoded_anew_with_a_line(photos, capsys, change, what):
    cache = photos / "cache" / "holdout"
    split, data = holdout_of(photos / "one", seed=1)
    before = decode(split, data, cache)
    before = decoded.Cached(before.images.copy(), before.labels, before.digest)
    again, data = holdout_of(photos / "one", seed=1)
    assert same(before, decode(again, data, cache))
    assert capsys.readouterr().out == ""
    split, data = change(photos)
    found = decode(split, data, cache)
    fresh = decode(split, data, photos / "fresh")
    assert same(found, fresh)
    assert not same(before, found)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{cache}/key.json: made with another ")
    assert what in line
    assert sorted(file.name for file in cache.parent.rglob("*.*")) == ["images.npy", "key.json", "labels.npy"]


def test_digits_of_another_seed_are_other_images(tmp_path):
    train, _ = sources.open_splits(Data())
    for seed in (0, 1):
        found = decode(train.hold_out(0.1, seed)[1], Data(), tmp_path / "cache", size=8)
        fresh = decode(train.hold_out(0.1, seed)[1], Data(), tmp_path / f"fresh {seed}", size=8)
        assert same(found, fresh)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "images are short": lambda cache: cut(cache / "images.npy"),
    "images are gone": lambda cache: (cache / "images.npy").unlink(),
    "labels are short": lambda cache: cut(cache / "labels.npy"),
    "labels are of others": lambda cache: np.save(cache / "labels.npy", np.zeros(3, int)),
    "labels are empty": lambda cache: (cache / "labels.npy").write_bytes(b""),
    "labels are noise": lambda cache: (cache / "labels.npy").write_bytes(b"PK\3\4 noise"),
    "key is cut": lambda cache: cut(cache / "key.json"),
    "key is none": lambda cache: (cache / "key.json").write_text("[]"),
    "key is of bytes": lambda cache: (cache / "key.json").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_images_are_decoded_anew_with_a_line(photos, capsys, damage):
    split, data = holdout_of(photos / "one")
    cache = photos / "cache"
    decode(split, data, cache)
    damage(cache)
    found = decode(split, data, cache)
    (line,) = capsys.readouterr().out.splitlines()
    assert "damaged" in line
    assert same(found, decode(split, data, photos / "fresh"))


SLOWLY = """
import sys, time
from vitas.data import decoded, images, sources
from vitas.sections import Data
known = decoded.decode
decoded.decode = lambda image: (time.sleep(0.002), known(image))[1]
decoded.decoded(sources.open_splits(Data())[0], __import__("pathlib").Path(sys.argv[1]), 8, Data(workers=0), write=True)
"""


def test_a_kill_while_decoding_leaves_nothing_that_is_taken_for_whole(tmp_path):
    cache = tmp_path / "cache"
    train, test = sources.open_splits(Data())
    decode(test, Data(), cache, size=8)  # whole, of others
    job = subprocess.Popen([sys.executable, "-c", SLOWLY, str(cache)])
    end = time.monotonic() + 60
    while not (cache / "images.tmp").is_file() or not (cache / "images.tmp").stat().st_size:
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert decoded.decoded(test, cache, 8, Data(), write=False) is None
    for split in (test, train):
        shutil.copytree(cache, tmp_path / split.unreadable.source)
        found = decode(split, Data(), tmp_path / split.unreadable.source, size=8)
        assert same(found, decode(split, Data(), tmp_path / f"fresh {split.unreadable.source}", size=8))
