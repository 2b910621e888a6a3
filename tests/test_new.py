"""`vitas new`: a recipe for images that nobody has written one for."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitas import recipe
from vitas.cli import main
from vitas.data.looked import Looked
from vitas.runs import fitted, new
from vitas.runs.rehearsal import Speeds

HOURS = 0.05


def photographs(folder: Path, counts: dict[str, int], size: Callable[[np.random.Generator], tuple[int, int]]) -> Path:
    """Blurred colours, of each class mostly one."""
    rng = np.random.default_rng(0)
    for channel, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            small = rng.integers(0, 80, (8, 8, 3), np.uint8)
            small[:, :, channel % 3] += 120
            Image.fromarray(small).resize(size(rng)).save(folder / name / f"{number}.jpg")
    return folder


FOLDERS = {
    "small": ({"a": 100, "b": 100, "c": 100}, lambda rng: tuple(rng.integers(30, 40, 2).tolist())),
    "unbalanced": ({"a": 300, "b": 60, "c": 6}, lambda rng: (80, 70)),
    "large": ({"a": 40, "b": 40}, lambda rng: (2400, 1600)),
}


def vitas(*words: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "vitas", *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.launch
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_recipe_for_a_folder_runs_to_the_end_in_about_the_time_asked_for(tmp_path, name):
    counts, size = FOLDERS[name]
    photographs(tmp_path / name, counts, size)
    text = vitas("new", name, "--hours", str(HOURS), cwd=tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    facts = json.loads(vitas("check", "mine.yaml", "--json", cwd=tmp_path))
    assert facts["classes"] == len(counts) and facts["train_images"] + facts["test_images"] == sum(counts.values())
    assert ("Some classes are rare" in text) == (name == "unbalanced")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "mine.yaml"], cwd=tmp_path, check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}: asked for {3600 * HOURS:.0f} s, took {wall:.0f} s, of the processors {cpu:.0f} s\n{text[:900]}")
    # Others may be at work on this machine, and more of them than when it was measured: then processor time counts.
    assert min(wall, cpu) < 1.5 * 3600 * HOURS
    assert json.loads((tmp_path / "runs" / name / "evaluation.json").read_text())["found"]["images"] > 0


choices = lru_cache(new._choices)
SEEN = Looked({"cat": 5000, "dog": 700}, np.array([[500, 400], [300, 375]]), 0)
FAST = Speeds(supernet=2000.0, retrain=3000.0, score=1e-4, decode=0.01)


def plan(hours: float, ranks: int, budget: float | None = None, side: int = 375) -> new.Plan:
    choice = choices(side, 2, budget)[-1]
    how = fitted.data(5700, choice.space)
    held_out = round(how["holdout"] * 5700)
    training = fitted.training(5700 - held_out, choice.space, 300)
    supernet = fitted.supernet(training)
    schedule = new._schedule(FAST, 3600 * hours, 10.0, 5700, held_out, 1000, ranks)
    data = {"train": "my photos", "test_part": 0.2}
    return new.Plan("my photos", data, choice, schedule, FAST, how, supernet, training)


@pytest.mark.parametrize(
    ("hours", "ranks", "budget", "side"), [(0.1, 1, None, 375), (1, 1, 300e6, 375), (0.5, 4, 20e6, 70)]
)
def test_what_is_written_is_a_recipe_of_what_was_planned(tmp_path, hours, ranks, budget, side):
    found = plan(hours, ranks, budget, side)
    (tmp_path / "mine.yaml").write_text(new._text(found, SEEN, 1000, 0, hours))
    settings = recipe.load(tmp_path / "mine.yaml")
    assert (settings.name, settings.data.train, settings.data.test_part) == ("my-photos", "my photos", 0.2)
    assert settings.space == found.choice.space and settings.space.image_size <= side
    assert settings.supernet.epochs == found.schedule.supernet and settings.retrain.epochs == found.schedule.retrain
    assert settings.supernet.batch_size == settings.retrain.batch_size == found.training["batch_size"]
    assert settings.evolve.objectives == ["loss"] and settings.evolve.smooth == found.schedule.evolve["smooth"] > 0
    assert settings.supernet.lr == settings.retrain.lr / 2
    assert settings.supernet.augment == settings.retrain.augment
    low, most = settings.budget.macs
    assert budget is None or (low, most) == (0.8 * budget, budget)
    settings.skip_probabilities(2)  # the budget is within reach
    assert sum(found.schedule.seconds.values()) < 3600 * hours


def test_where_test_images_come_with_the_others_none_are_named(tmp_path):
    found = replace(plan(0.1, 1), source="digits", data={"train": "digits"})
    (tmp_path / "mine.yaml").write_text(new._text(found, SEEN, 360, 0, 0.1))
    data = recipe.load(tmp_path / "mine.yaml").data
    assert (data.train, data.test, data.test_part) == ("digits", None, None)


def test_more_time_and_more_gpus_are_more_epochs_and_candidates():
    one, more, four = plan(0.1, 1).schedule, plan(0.2, 1).schedule, plan(0.1, 4).schedule
    assert one.supernet < more.supernet < four.supernet <= 300
    one, more = (each.evolve["population"] * each.evolve["generations"] for each in (one, more))
    assert one < more


def test_small_images_get_small_spaces_and_a_large_budget_larger_ones():
    assert [choice.in_words for choice in new._choices(40, 10, None)] == [f"tiny at {n} pixels" for n in (16, 24, 32)]
    assert new._choices(5, 10, None)[0].space.image_size == 16
    assert new._choices(40, 10, 50e6)[0].name == "small"
    assert new._choices(500, 10, 4e9)[-1].name == "768"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "data.train: nowhere: No such file or directory"),
        (["empty"], "empty: no images"),
        (["one"], "all 3 images are of one class"),
        (["few"], "few: has 5 images for the training, expected at least 20"),
        (["few", "--gpus", "2"], "--gpus: 2: this machine has none to measure on"),
        (["many", "--budget", "900G"], "--budget: 9e+11: the ready spaces reach"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    for folder, counts in (("one", {"a": 3}), ("few", {"a": 4, "b": 3}), ("many", {"a": 20, "b": 20})):
        photographs(Path(folder), counts, lambda rng: (20, 20))
    assert main(["new", *words]) == 2
    printed, told = capsys.readouterr()
    assert says in told and told.startswith("vitas: ") and told.count("\n") == 1 and not printed


@pytest.mark.parametrize("words", [["--hours", "0"], ["--budget", "many"], ["--gpus", "-1"]])
def test_options_that_cannot_be_are_refused(words, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["new", "photos", *words])
    assert refused.value.code == 2 and "expected" in capsys.readouterr().err
