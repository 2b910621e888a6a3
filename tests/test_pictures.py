"""`vitas check -o FILE.png`: the pictures are those of the training, and the figures follow from what was measured."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import QUICKSTART
from PIL import Image
from test_check import one_line
from test_cli import BIN, run

from vitas import recipe
from vitas.cli import main
from vitas.config import UserError
from vitas.data import sources
from vitas.data.device import Normaliser
from vitas.data.images import decode
from vitas.data.plan import make_plan
from vitas.report import grid
from vitas.runs import pictures, training


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.launch
def test_a_check_draws_the_first_images_and_writes_nothing_else(tmp_path):
    done = run(BIN / "vitas", "check", "quickstart", "--images", "11", "-o", "deep/q.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["pictures"] == "deep/q.png: 11 images of supernet"
    assert facts["train_images"] == 1437
    assert facts["read_by_a_core"].endswith(" images/s, measured in one process")
    assert [file.name for file in tmp_path.rglob("*")] == ["deep", "q.png"]
    with Image.open("deep/q.png") as picture:
        assert picture.size == (int(150 * (0.3 + 8 * 1.55 + 0.05)), int(150 * (0.3 + 2 * 3.35 + 0.05)))


def drawn(monkeypatch, *overrides: str, images: int, ranks: int = 1) -> tuple[np.ndarray, np.ndarray, list[str], dict]:
    """What is drawn of the quickstart: before and after, the captions; and the facts."""
    found = []
    monkeypatch.setattr(
        grid, "draw", lambda file, before, after, captions, title: found.append((before, after, captions))
    )
    settings = recipe.load(QUICKSTART, overrides)
    train, _ = sources.open_splits(settings.data)
    facts = pictures.facts(settings, train, ranks, recipe.Path("x.png"), images)
    return *found[0], facts


def first_of_the_run(monkeypatch, stage: str, images: int, ranks: int, overrides: list[str]):
    """The first images that a real run gives its trainer, as rank 0 of some."""
    caught = []

    def trainer(**given):
        caught.append(given["data"])
        raise UserError("seen")

    monkeypatch.setattr(training, "Trainer", trainer)
    assert main(["run", str(QUICKSTART), *overrides]) == 2
    data = caught[0]
    plan, _ = make_plan(getattr(recipe.load(QUICKSTART, overrides), stage), data.size, stage, ranks)
    batches = list(islice(data.batches(plan), -(-images // plan.micro_batch)))
    labels = [label for batch in batches for label in batch.labels.tolist()]
    return torch.cat([batch.images for batch in batches])[:images].permute(0, 2, 3, 1).numpy(), labels[:images]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("stage", "images", "ranks"), [("supernet", 16, 1), ("retrain", 40, 2)])
def test_the_pictures_are_those_that_the_trainer_is_given(monkeypatch, stage, images, ranks, streaming):
    changed = [f"stages=[{stage}]", f"{stage}.batch_size=64", f"{stage}.augment.erasing=0.5", "seed=3"]
    changed += ["retrain.architecture=mine.yaml", f"data.streaming={str(streaming).lower()}", "data.workers=0"]
    recipe.Path("mine.yaml").write_text(recipe.load(QUICKSTART).space.corner(-1, 4).to_yaml())
    monkeypatch.setattr(pictures, "SECONDS", 0.0)
    before, after, captions, _ = drawn(monkeypatch, *changed, images=images, ranks=ranks)
    expected, labels = first_of_the_run(monkeypatch, stage, images, ranks, changed)
    assert (after == expected).all()
    assert captions == [str(label) for label in labels]
    # Each image as it is, its 8 pixels a side become 28 each, is one of its class.
    train, _ = sources.open_splits(recipe.load(QUICKSTART).data)
    digits = {np.asarray(decode(image)).tobytes(): label for _, image, label in map(train.example, range(1437))}
    assert [digits[image[14::28, 14::28].tobytes()] for image in before] == labels
    assert (before.reshape(images, 8, 28, 8, 28, 3) == before[:, 14::28, 14::28][:, :, None, :, None]).all()


def test_what_follows_from_the_speed_of_a_core(monkeypatch):
    monkeypatch.setattr(pictures, "_rate", lambda reading: 0.5)
    monkeypatch.setattr(pictures.batches, "allowed_cores", lambda: 3)
    settings = ["data.workers=8", "supernet.epochs=10", "supernet.batch_size=64"]
    *_, facts = drawn(monkeypatch, *settings, images=1, ranks=2)
    assert "trained_so_far_at" not in facts
    hours = 10 * 19 * 64 / (0.5 * 3 * 2) / 3600  # 1,221 of 1,437 images are no hold-out: 19 steps an epoch
    assert facts["read_by_a_rank"] == f"2 images/s at most, by 3 worker(s); supernet: {hours:.1f} h or more"
    run = recipe.load(QUICKSTART).folder
    run.mkdir(parents=True)
    lines = [{"stage": "supernet", "images_per_second": speed} for speed in (1, 3, 200)]
    lines += [{"stage": "retrain", "images_per_second": 9}, {"stage": "supernet", "holdout_top1": 9}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    *_, facts = drawn(monkeypatch, *settings, images=1)
    assert facts["trained_so_far_at"] == "3 images/s, which 6.0 such cores read"


def test_pixels_are_shown_whether_normalised_or_not():
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    normalised = Normaliser(mean, std, torch.device("cpu"))(pixels)
    assert pictures.shown(normalised, mean, std).equal(pixels)
    assert pictures.shown(pixels, mean, std).equal(pixels)


@pytest.mark.parametrize(("height", "width"), [(100, 300), (448, 112), (1, 1000), (8, 6)])
def test_the_whole_image_stands_in_the_middle_of_a_white_square(height, width):
    square = pictures._letterboxed(torch.zeros(3, height, width, dtype=torch.uint8))
    assert square.shape == (3, 224, 224)
    rows, columns = ((square[0] == 0).any(side) for side in (1, 0))
    high, wide = (max(1, round(side * 224 / max(height, width))) for side in (height, width))
    assert (int(rows.sum()), int(columns.sum())) == (high, wide)
    assert abs(int(rows.int().argmax()) - int(rows.flip(0).int().argmax())) <= 1
    assert abs(int(columns.int().argmax()) - int(columns.flip(0).int().argmax())) <= 1


@pytest.mark.parametrize("count", [1, 8, 9])
def test_every_image_is_in_the_picture_whatever_its_class_is_called(tmp_path, count):
    red, blue = (np.full((count, 20, 20, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    grid.draw(tmp_path / "x.png", red, blue, ["$x^{ 猫, a name that is far too long"] * count, "$_{")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == colour).all(2).sum() == pytest.approx(count * 225**2, rel=0.03)  # less the edges


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--images 4", "--images: where to? Add -o FILE.png"),
        ("--images 0 -o x.png", "--images: expected 1 to 128, got 0"),
        ("--images 129 -o x.png", "--images: expected 1 to 128, got 129"),
        ("-o x.jpg", "--output: expected a .png file, got x.jpg"),
        ("-o x.png stages=[evolve]", "--output: no pictures: none of the stages evolve trains"),
        ("-o x.png stages=[supernet] supernet.from=y", "none of the stages supernet trains"),
        ("-o x.png data.train=nowhere data.test=nowhere", "data.train: nowhere: No such file or directory"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(capsys, words, expected):
    assert main(["check", str(QUICKSTART), *words.split()]) == 2
    assert expected in one_line(capsys)
