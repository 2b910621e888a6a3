"""`vitas prepare`: the same images and labels, smaller, in shards that a kill cannot spoil."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jpegs
import numpy as np
import pytest
from PIL import Image
from test_sources import NAMES, photos

from vitas.data.images import decode
from vitas.data.sources import open_one, open_splits
from vitas.sections import Data


def prepare(*words, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitas", "prepare", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """60 photographs of 500 x 375 pixels in three classes, one of them damaged."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(NAMES):
        (root / name).mkdir()
        for number in range(20):
            picture = jpegs.photo(500, 375, 20 * label + number)
            (root / name / f"{number}.jpg").write_bytes(jpegs.saved(picture, quality=92))
    (root / "apple" / "0.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def prepared(large, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    told = prepare(large, "-o", folder, "--short", 320, "--shards", 7).stdout
    assert "1 image(s) could not be read and were left out" in told
    assert f"{folder}: 59 images in 7 shards, 0.00 GB; data.train={folder}" in told
    return folder


def test_the_same_images_come_out_smaller_with_their_labels_and_class_names(large, prepared):
    before, after = open_one(str(large), "data.train"), open_one(str(prepared), "data.train")
    assert before.classes == after.classes == tuple(NAMES)
    assert len(after.indices) == 59
    small = [after.example(row) for row in range(59)]
    assert len({label for _, _, label in small[:9]}) > 1  # mixed
    for row in range(1, 60):
        _, image, label = before.example(row)
        expected = np.asarray(decode(image).resize((427, 320), Image.Resampling.BICUBIC), float)
        nearest = min(small, key=lambda one: np.abs(np.asarray(decode(one[1]), float) - expected).mean())
        assert nearest[2] == label
        assert np.abs(np.asarray(decode(nearest[1]), float) - expected).mean() < 4
    about = json.loads((prepared / "train.json").read_text())
    assert about["classes"] == NAMES
    assert sum(about["rows"].values()) == 59
    assert list(about["unreadable"]) == [str(large / "apple" / "0.jpg")]


def test_small_images_are_copied_byte_for_byte_and_streamed_with_the_test_part(tmp_path):
    photos(tmp_path / "photos")
    for part in ("train", "test"):
        prepare(tmp_path / "photos", "-o", tmp_path / "out", "--shards", 100, "--part", part)
    train, test = open_splits(Data(train=str(tmp_path / "out"), test=str(tmp_path / "out"), streaming=True))
    assert len(list((tmp_path / "out").glob("train-*-of-00012.parquet"))) == 12  # no more shards than images
    assert len(train.indices) == len(test.indices) == 12
    before = sorted(file.read_bytes() for file in (tmp_path / "photos").rglob("*.png"))
    after = sorted(image["bytes"] for shard in range(12) for _, image, _ in train.examples(shard))
    assert before == after


def test_a_killed_call_goes_on_to_the_same_bytes_whatever_the_workers(large, prepared, tmp_path):
    command = [sys.executable, "-m", "vitas", "prepare", large, "-o", tmp_path, "--shards", "7", "--workers", "1"]
    running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*.parquet")):
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    assert 0 < len(done) < 7
    prepare(large, "-o", tmp_path, "--shards", 7, "--workers", 2)
    assert all(file.stat().st_mtime_ns == when for file, when in done.items())
    for file in sorted(prepared.glob("*.parquet")):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(large, prepared, tmp_path):
    full = tmp_path / "train-00003-of-00007.parquet.part"
    full.symlink_to("/dev/full")
    done = prepare(large, "-o", tmp_path, "--shards", 7, "--workers", 2, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("of-00007.parquet: No space left on device; the same command goes on")
    assert "Traceback" not in done.stderr
    full.unlink()
    prepare(large, "-o", tmp_path, "--shards", 7)
    for file in sorted(prepared.glob("*.parquet")):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_what_is_wrong_is_one_line(large, prepared, tmp_path):
    for words, message in (
        ((large, "-o", prepared, "--short", 200, "--shards", 7), "which was not made by this command"),
        ((large, "-o", prepared, "--shards", 6), "which was not made by this command"),
        ((tmp_path / "nothing", "-o", tmp_path / "out"), "nothing: No such file or directory"),
        ((large, "-o", tmp_path / "out", "--short", 0), "--short: expected 1 to 10,000, got 0"),
        ((large, "-o", tmp_path / "out", "--quality", 101), "--quality: expected 1 to 100, got 101"),
        ((large, "-o", large / "apple" / "1.jpg"), "cannot be made or written in"),
    ):
        done = prepare(*words, check=False)
        assert done.returncode == 2, words
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
