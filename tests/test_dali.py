"""What NVIDIA DALI decodes, beside the ordinary way.

    pip install -e '.[dev,dali]' && pytest -n 0 tests/test_dali.py

This needs no GPU: DALI's own CPU backend decodes. On a GPU another decoder does: `-m gpu`. Without the package all is
skipped but how its absence is told; `.ci/run` installs it.
"""

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import QUICKSTART
from jpegs import photo, saved

from vitas.cli import main
from vitas.data import batches, dali, images, sources
from vitas.data.augment import TrainTransform
from vitas.data.plan import Plan
from vitas.data.splits import Split
from vitas.sections import Augment, Data

INSTALLED = bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"))
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # a worker of pytest may have one core
with_dali = pytest.mark.skipif(not INSTALLED, reason="needs pip install 'vitas[dali]'")

IMAGES, BATCH, SIZE = 48, 16, 64
CUT, HOLLOW, PNG, CMYK, TURNED, GREY = 3, 9, 14, 21, 33, 40
"""Files that are no plain JPEGs but the last one; the first two cannot be read."""
TOLERANCE = {"cpu": (6, 0.4), "cuda": (64, 2.0)}
"""Levels of 255 by which DALI's crops may differ from the ordinary ones, at most and in the mean of a micro-batch. On a
CPU 5 and 0.23 were measured; on a GPU nothing was."""

MISSING = "vitas: data.decoder: dali needs the package: pip install 'vitas[dali]'\n"


def content(number: int) -> bytes:
    """Plain JPEGs of the common kinds, and a few files that are none."""
    width, height = ((160, 120), (90, 150), (131, 97))[number % 3]
    image = photo(width, height, seed=number)
    if number == PNG:
        return saved(image, "PNG")
    if number == TURNED:
        exif = image.getexif()
        exif[images.ORIENTATION] = 6
        return saved(image, exif=exif)
    if number in (CMYK, GREY):
        return saved(image.convert("CMYK" if number == CMYK else "L"))
    found = saved(image, quality=90, subsampling=number % 3, progressive=number % 5 == 0, optimize=number % 2 == 0)
    if number == CUT:
        return found[: len(found) // 2]
    if number == HOLLOW:  # without quantisation tables, which only a decoder misses
        return found.replace(b"\xff\xdb", b"\xff\xef")
    return found


@pytest.fixture
def folder(tmp_path):
    for number in range(IMAGES):
        place = tmp_path / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:02}.jpg").write_bytes(content(number))
    return tmp_path / "train"


def read(split: Split, *plan: int, device: str | None = "cpu", workers: int = 0) -> list[batches.Batch]:
    transform = TrainTransform(SIZE, Augment(erasing=0.5), Data())
    how = {"seed": 5, "workers": workers, "readers": 4, "shuffle_buffer": 32, "pin_memory": False}
    return list(batches.loader(split, transform, Plan(*plan), dali_on=device and torch.device(device), **how))


def opened(folder: Path, streaming: bool) -> Split:
    """The folder, or the same images in shards."""
    if streaming:
        files = sorted(folder.rglob("*.jpg"))
        folder = folder.parent / "shards"
        folder.mkdir()
        for shard in range(5):
            with tarfile.open(folder / f"{shard}.tar", "w") as tar:
                for file in files[shard::5]:
                    for suffix, content in (("jpg", file.read_bytes()), ("cls", b"%d" % (file.parent.name == "b"))):
                        member = tarfile.TarInfo(f"{file.stem}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return sources.open_splits(Data(train=str(folder), test=str(folder), streaming=streaming, classes=2))[0]


def same(found: list[batches.Batch], expected: list[batches.Batch]) -> bool:
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.unreadable == b.unreadable
               for a, b in zip(found, expected, strict=True))  # fmt: skip


@with_dali
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_images_crops_flips_and_erased_rectangles_in_the_same_order(folder, streaming, device):
    split, (largest, mean) = opened(folder, streaming), TOLERANCE[device]
    expected, found = (read(split, BATCH, 1, 0, 6, device=where) for where in (None, device))
    told = {}
    for ours, theirs in zip(expected, found, strict=True):
        images = theirs.images.cpu()
        assert (images.shape, images.dtype) == ((BATCH, 3, SIZE, SIZE), torch.uint8)
        assert torch.equal(theirs.labels, ours.labels)
        assert theirs.unreadable == ours.unreadable
        told |= theirs.unreadable
        distance = (images.int() - ours.images.int()).abs()
        assert distance.max() <= largest
        assert distance.float().mean() <= mean
        others = (images[:, :, :, 1:].int() - ours.images[:, :, :, :-1].int()).abs()  # beside it by one pixel
        assert others.float().mean() > 10 * mean
    assert sorted(reason.partition(" when")[0].partition(" (")[0] for reason in told.values()) == [
        "broken data stream", "image file is truncated",
    ]  # fmt: skip
    by_hand = {image.numpy().tobytes() for ours in expected for image in ours.images}
    exact = [image for theirs in found for image in theirs.images.cpu() if image.numpy().tobytes() in by_hand]
    assert 8 <= len(exact) < BATCH  # PNG, CMYK, turned, and what stands in for the two, or one of them: in two epochs


@with_dali
@pytest.mark.parametrize("streaming", [False, True])
def test_ranks_workers_and_a_resume_change_no_pixel(folder, streaming, monkeypatch):
    monkeypatch.setattr(batches, "allowed_cores", lambda: 2)
    split = opened(folder, streaming)
    whole = read(split, BATCH, 1, 0, 6)
    assert same(read(split, BATCH, 1, 0, 6, workers=2), whole)
    assert same(read(split, BATCH, 1, 2, 6), whole[2:])
    for step, batch in enumerate(whole):
        parts = [part for rank in (0, 1) for part in read(split, BATCH, 2, step, step + 1, rank, 2)]
        assert {image.numpy().tobytes() for part in parts for image in part.images} == {
            image.numpy().tobytes() for image in batch.images
        }


@with_dali
@pytest.mark.launch
def test_a_training_sees_what_it_sees_in_the_ordinary_way(folder):
    losses = {}
    for decoder in ("cpu", "dali"):
        words = [f"name={decoder}", f"output={folder.parent}", f"data.decoder={decoder}", f"data.train={folder}",
                 f"data.test={folder}", "stages=[supernet]", "supernet.epochs=12", "supernet.warmup_epochs=1",
                 "supernet.batch_size=16", "evolve.finalists=1"]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "vitas", "run", str(QUICKSTART), *words], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        lines = (folder.parent / decoder / "metrics.jsonl").read_text().splitlines()
        losses[decoder] = [json.loads(line)["loss"] for line in lines]
    assert len(losses["cpu"]) == 3
    assert losses["dali"] == pytest.approx(losses["cpu"], rel=0.02)


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_missing_package_is_told_at_the_start(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr(dali, "find_spec", lambda name: None)
    assert main([command, str(QUICKSTART), f"output={tmp_path}", "data.decoder=dali"]) == 2
    assert capsys.readouterr().err == MISSING


@pytest.mark.launch
@pytest.mark.skipif(INSTALLED, reason="the package is installed")
def test_a_process_without_the_package_ends_at_once(tmp_path):
    words = [sys.executable, "-m", "vitas", "run", str(QUICKSTART), f"output={tmp_path}", "data.decoder=dali"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, MISSING)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("setting", ["auto_augment=rand-m9", "color_jitter=0.4"])
def test_what_needs_the_processor_is_refused(tmp_path, capsys, monkeypatch, setting):
    monkeypatch.setattr(dali, "find_spec", lambda name: True)
    words = [f"output={tmp_path}", "data.decoder=dali", f"retrain.augment.{setting}"]
    assert main(["check", str(QUICKSTART), *words]) == 2
    name, _, value = setting.partition("=")
    line = f"vitas: retrain.augment.{name}: {value} needs data.decoder: cpu; dali only crops, flips and erases\n"
    assert capsys.readouterr().err == line
