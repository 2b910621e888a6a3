"""A subnet leaves its supernet as a model, and is trained on from there, on other classes and larger images."""

import pytest
import torch
from conftest import QUICKSTART, SHORT
from test_data import folder_of_jpegs, picture
from test_upstream import random_checkpoint

from vitas import load_model, recipe
from vitas.cli import main
from vitas.config import UserError
from vitas.models import saved
from vitas.runs import prerequisites, stages, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a supernet that was trained on apples, bananas and cherries, and images of limes and kiwis."""
    folder = tmp_path_factory.mktemp("searched")
    folder_of_jpegs(folder / "fruit", count=8)
    for name in ("kiwi", "lime"):
        (folder / "green" / name).mkdir(parents=True)
        for number in range(16):
            picture(number % 3).save(folder / "green" / name / f"{number}.png")
    fruit = [f"data.{split}={folder}/fruit/{split}" for split in ("train", "test")]
    run(folder, "supernet", *fruit)
    settings = recipe.load(QUICKSTART)
    (folder / "shape.yaml").write_text(settings.space.sample(0, 3).to_yaml())
    assert main(["extract", str(folder / "supernet"), f"{folder}/shape.yaml", "-o", str(folder / "extracted")]) == 0
    return folder


def run(folder, name: str, *overrides: str, file=QUICKSTART) -> None:
    small = ["data.workers=0", "supernet.batch_size=8", "retrain.batch_size=8", "evaluate.throughput_batch=1"]
    stage = ["stages=[supernet]"] if name == "supernet" else []
    stages.run(recipe.load(file, [*SHORT, *small, *stage, f"output={folder}", f"name={name}", *overrides]))


def finetune(folder, name: str, *overrides: str) -> None:
    green = [f"data.{split}={folder}/green" for split in ("train", "test")]
    run(folder, name, f"retrain.init={folder}/extracted", *green, *overrides, file="finetune")


def test_an_extracted_model_is_the_subnet_with_its_classes_and_its_preprocessing(folder):
    model = load_model(folder / "extracted")
    settings = recipe.load(folder / "supernet" / "recipe.yaml")
    net = trained.Supernet(settings.space, 3)
    saved.load_weights(net, folder / "supernet" / "supernet" / "model.safetensors")
    images = torch.randn(2, 3, 16, 16)
    architecture = saved.Architecture.from_yaml(folder / "shape.yaml")
    assert torch.equal(model(images), net.extract(architecture)(images))
    known = model.pretrained_cfg
    assert known["label_names"] == ["apple", "banana", "cherry"]
    assert (known["mean"], known["crop_pct"]) == ([0.5] * 3, 1.0)
    card = (folder / "extracted" / "README.md").read_text()
    assert "run: supernet" in card and "apple, banana, cherry" in card


def test_the_classifier_is_trained_alone_at_first_on_other_classes_and_a_larger_image(folder):
    start = load_model(folder / "extracted")
    start.set_input_size((24, 24))
    finetune(folder, "head", "retrain.image_size=24", "retrain.head_epochs=0.9")  # rounded, all 4 steps
    head = load_model(folder / "head" / "retrain")
    assert (head.num_classes, head.architecture.image_size) == (2, 24)
    changed = [name for name, value in head.state_dict().items() if not torch.equal(value, start.state_dict()[name])]
    assert changed == ["head.weight", "head.bias"]
    assert "24 test images" not in (card := (folder / "head" / "retrain" / "README.md").read_text())
    assert "on 32 test images" in card and "kiwi, lime" in card

    finetune(folder, "whole", "retrain.image_size=24", "retrain.head_epochs=0.5")
    whole = load_model(folder / "whole" / "retrain").state_dict()
    moved = {
        name: (whole[name] - value).abs().max() for name, value in start.state_dict().items() if "head" not in name
    }
    assert all(0 < distance < 0.01 for name, distance in moved.items() if "bias" not in name), moved


def test_the_weights_that_it_starts_from_are_told_by_their_content(folder):
    finetune(folder, "again", "retrain.head_epochs=0", "stages=[retrain]")
    (folder / "extracted").rename(folder / "moved")
    run_again = ["again", "retrain.head_epochs=0", "stages=[retrain]", f"data.train={folder}/green"]
    finetune(folder, *run_again, f"retrain.init={folder}/moved", f"retrain.architecture={folder}/shape.yaml")
    (folder / "moved").rename(folder / "extracted")
    model = load_model(folder / "extracted")
    model.head.bias.data += 1
    saved.save_model(folder / "other", model)
    with pytest.raises(UserError, match=r"again/retrain: made with model: \w+, and the recipe now says"):
        finetune(folder, *run_again, f"retrain.init={folder}/other")


def test_what_cannot_be_started_from_is_said_before_anything_runs(folder, tmp_path):
    torch.save(random_checkpoint("vitas_b"), tmp_path / "vitas_b.pth.tar")
    for words, overrides in {
        "retrain.init: expected scratch, supernet, or the folder or file of a model, got gone": ["retrain.init=gone"],
        "retrain.init: .*extracted: another architecture than retrain.architecture: patch": [
            f"retrain.init={folder}/extracted",
            "retrain.architecture=vitas_b",
        ],
        "retrain.image_size: patch_size 16 cuts images of 8 pixels": [
            f"retrain.init={tmp_path}/vitas_b.pth.tar",
            "retrain.image_size=8",
        ],
        "retrain: head_epochs 2 needs init": ["retrain.init=scratch"],
    }.items():
        with pytest.raises(UserError, match=words):
            prerequisites.check(recipe.load("finetune", overrides))
    good = recipe.load("finetune", [f"retrain.init={tmp_path}/vitas_b.pth.tar", "retrain.image_size=96"])
    prerequisites.check(good)
    assert good.retrain.architecture == good.retrain.init


def test_what_cannot_be_extracted_is_said_in_a_line(folder, capsys):
    for words, arguments in {
        "gone/recipe.yaml: No such file or directory: expected the folder of a run": ["gone", "best"],
        "front.json: No such file or directory": [str(folder / "supernet"), "front:1"],
        "unknown architecture bets": [str(folder / "supernet"), "bets"],
        "the architecture has 16 blocks at 224 pixels": [str(folder / "supernet"), "vitas_b"],
    }.items():
        assert main(["extract", *arguments, "-o", str(folder / "none")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not (folder / "none").exists()
