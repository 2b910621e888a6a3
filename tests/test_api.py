"""`vitas` from Python: in a fresh process, on images in memory, killed in the middle, and called again."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from ranks import wait_for
from safetensors.torch import load_file

import vitas
from vitas.config import UserError
from vitas.files import read_lines

QUICK = {"budget": {"macs": [0.1e6, 1e6]}, "augment": {"hflip": 0.0}, "evolve": {"population": 4, "generations": 2}}
"""A search that takes seconds."""


def stripes(count: int, seed: int) -> datasets.Dataset:
    """Images in memory of three classes: stripes across, down, and none."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        pixels = rng.integers(0, 60, (20, 26, 3), np.uint8)
        pixels[:: (3, 1, 1)[number % 3], :: (1, 3, 1)[number % 3]] += 120
        images.append(Image.fromarray(pixels))
    names = datasets.ClassLabel(names=["across", "down", "none"])
    features = datasets.Features(image=datasets.Image(), label=names)
    return datasets.Dataset.from_dict({"image": images, "label": [n % 3 for n in range(count)]}, features=features)


PROGRAM = """
import vitas
from test_api import QUICK, stripes
result = vitas.search(stripes(240, 0), stripes(60, 1), epochs=12, output="runs/mine", **QUICK,
                      supernet={"checkpoint_every": 5}, retrain={"checkpoint_every": 5})
print(result.best.key, len(result.front), result.model().num_classes)
print(result.report())
"""


def program(cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.launch
def test_five_lines_in_a_fresh_process_are_killed_and_called_again(tmp_path):
    """Killed in the supernet, and in the retraining: what is found is what a search finds that nobody kills."""
    run = tmp_path / "runs" / "mine"
    for stage in ("supernet", "retrain"):
        process = program(tmp_path)
        wait_for(lambda stage=stage: [*(run / stage).glob("step_*")] or process.poll() is not None, 120)  # noqa: B023
        assert process.poll() is None, process.communicate()[0]
        process.kill()
        process.communicate()
    process = program(tmp_path)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert "retrain: goes on from step" in printed and "across" not in printed

    whole = vitas.search(stripes(240, 0), stripes(60, 1), epochs=12, output=tmp_path / "whole", **QUICK)
    assert f"\n{whole.best.key} {len(whole.front)} 3\n" in printed
    killed, unharmed = (load_file(folder / "retrain" / "model.safetensors") for folder in (run, whole.folder))
    for name, weight in unharmed.items():
        torch.testing.assert_close(killed[name], weight, rtol=1e-5, atol=1e-6)
    found = whole.figures["found"]
    assert found["top1"] > 80 and found["images"] == 60
    assert "on 60 test images" in whole.report() and f"{whole.best.key} <- best" in whole.report()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return vitas.search("digits", output=folder, epochs=4, **QUICK)


def test_what_was_found_is_used(searched, tmp_path):
    assert searched.recipe.space.image_size == 16 and searched.recipe.supernet.batch_size == 32  # fitted to digits
    assert searched.front[0]["architecture"] == searched.best == searched.architecture("front:1")
    assert all(0.1e6 <= entry["macs"] <= 1e6 for entry in searched.front)
    model = searched.model()
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    on_test = vitas.evaluate(model, "digits:test")
    same = ("top1", "top5", "macs", "params", "images")
    assert [on_test[name] for name in same] == [searched.figures["found"][name] for name in same]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["0", "1"]))
    pixels = {"image": [Image.new("L", (8, 8))] * 2, "label": [0, 1]}
    black = datasets.Dataset.from_dict(pixels, features=features)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    guess = int(model((-mean / std).expand(1, 3, 16, 16))[0].argmax())
    tested = vitas.evaluate(searched.folder / "retrain", black, output=tmp_path / "black")
    assert tested["top1"] == (50 if guess in (0, 1) else 0)

    tuned = vitas.retrain(searched.best, "digits", epochs=1, supernet=searched, output=tmp_path / "tuned")
    fresh = vitas.retrain(searched.best, "digits", epochs=1, output=tmp_path / "fresh")
    assert tuned.figures["found"]["top1"] != fresh.figures["found"]["top1"]
    assert tuned.best == fresh.best == searched.best
    (table,) = vitas.rank(searched.folder, sample=3, seeds=1, epochs=1)
    assert len(table["architectures"]) == 3 and -1 <= table["rankings"]["supernet"]["tau"] <= 1


def test_an_interrupt_is_pythons_own_and_the_process_is_as_before(tmp_path):
    handlers, threads = (
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        torch.get_num_threads(),
    )
    metrics = tmp_path / "run" / "metrics.jsonl"

    def interrupt() -> None:
        wait_for(lambda: read_lines(metrics), 60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        vitas.search("digits", output=tmp_path / "run", epochs=50, **QUICK)
    thread.join()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.get_num_threads() == threads
    assert [*(tmp_path / "run" / "supernet").glob("step_*")]


def test_a_search_needs_a_budget():
    with pytest.raises(TypeError, match="budget"):
        vitas.search("digits")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"space": "tinny"}, "space: expected one of tiny, small, 384, 768, or a SearchSpace, got tinny"),
        ({"image_size": 30}, "space: patch_size 4 does not divide image_size 30"),
        ({"evolv": {}}, r"vitas.search: unknown key evolv \(did you mean evolve\?\)"),
        ({"evolve": {"populaton": 3}}, r"unknown key evolve.populaton \(did you mean evolve.population\?\)"),
        ({"budget": {"mac": [1, 2]}}, r"unknown key budget.mac \(did you mean budget.macs\?\)"),
        ({"epochs": -1}, "supernet.epochs: expected greater than 0"),
        ({"train": "nowhere"}, "data.train: nowhere: No such file or directory"),
        ({"train": [1, 2]}, "train: expected a datasets.Dataset, a path or a name, got list"),
        ({"stages": ["evolve"]}, "stage evolve needs a supernet"),
        ({"budget": 1e6}, "budget: expected keys and values, got 1000000.0"),
        ({"data": 3}, "data: expected keys and values, got int"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_a_line(tmp_path, arguments, says):
    with pytest.raises(UserError, match=says):
        vitas.search(**{"train": "digits", "output": tmp_path / "run"} | QUICK | arguments)


def test_arguments_of_another_kind_are_told_in_a_line(tmp_path, searched):
    theirs = timm.create_model("test_vit")
    with pytest.raises(UserError, match=r"model: expected a vitas.VisionTransformer, .*, got timm.VisionTransformer"):
        vitas.evaluate(theirs, "digits")
    with pytest.raises(UserError, match="architecture: expected an Architecture, a name or a file, got list"):
        vitas.retrain([searched.best], "digits", output=tmp_path / "run")
    with pytest.raises(UserError, match=r"rank\.seeds: expected greater than or equal to 1, got 0"):
        vitas.rank(searched, seeds=0)


def test_of_a_run_that_is_not_there_a_line_says_so(tmp_path, searched):
    with pytest.raises(UserError, match=r"recipe.yaml: No such file or directory"):
        vitas.Result(tmp_path)
    with pytest.raises(UserError, match=r"no model fund \(did you mean found\?\)"):
        searched.model("fund")


def test_test_images_are_kept_out_of_a_source_without_any(tmp_path):
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10 if label == "a" else 5):
            Image.fromarray(np.full((40, 30, 3), number, np.uint8)).save(tmp_path / "photos" / label / f"{number}.png")
    from vitas.data import looked, sources
    from vitas.sections import Data

    assert looked.where_test_is(Data(train=str(tmp_path / "photos"))) == {"test_part": 0.2}
    train, test = sources.open_splits(Data(train=str(tmp_path / "photos"), test_part=0.2))
    assert looked.look(train).counts == {"a": 8, "b": 4} and looked.look(test).counts == {"a": 2, "b": 1}
    assert looked.look(train).side == 30 and not {*train.indices} & {*test.indices}
    (tmp_path / "photos").rename(tmp_path / "train")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    assert looked.where_test_is(Data(train=str(tmp_path))) == {"test": str(tmp_path)}
