"""Validation while training: its figures are right, and it changes nothing."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import QUICKSTART, first_of, small_space
from ranks import Ranks, config, wait_for
from safetensors import safe_open
from safetensors.torch import load_file
from test_backends import STEPS, train
from torch.utils._pytree import tree_map

from vitas import recipe
from vitas.data.decoded import Cached
from vitas.data.device import DeviceImages
from vitas.files import read_lines
from vitas.models import saved
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer
from vitas.report.meter import Meter
from vitas.runs import training, validations
from vitas.runs.accelerator import make_accelerator
from vitas.sections import Retraining
from vitas.spaces import cost
from vitas.train.state import Best
from vitas.train.validation import Validation, of_model, of_supernet

EVERY_STEP = "retrain.validate_every=0.04"
ON = ["supernet.validate_every=0.5", "retrain.validate_every=0.25"]
"""Of the 19 and the 22 steps of an epoch; 20 steps are done of each."""
STEPS_VALIDATED = {"supernet": [10, 20], "retrain": [6, 12, 18, 20]}
NAMES = {
    "supernet": ["largest", "smallest", "random 1", "random 2", "random 3"],
    "retrain": ["model", "average"],
}
RANDOM = np.random.default_rng(0)
CACHED = Cached(
    RANDOM.integers(0, 256, (61, 3, 16, 16), dtype=np.uint8), RANDOM.integers(0, 7, 61).astype(np.int64), "some"
)


def on_device(images: Cached) -> DeviceImages:
    return DeviceImages(images, torch.device("cpu"), mean=[0.5] * 3, std=[0.5] * 3)


def validation(accelerator, nets, **how) -> Validation:
    how = {"every": 1, "images": CACHED, "named": "test", "on_device": on_device, "batch_size": 8} | how
    return Validation(accelerator, nets=nets, **how)


def networks() -> tuple[Supernet, Supernet, dict]:
    """A supernet with random weights, one without, and subnets."""
    torch.manual_seed(0)
    space = small_space()
    net = Supernet(space, 7, sharing="bilateral").train()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    with torch.device("meta"):
        empty = Supernet(space, 7, sharing="bilateral")
    return net, empty, {f"random {number}": space.sample(0, number, skip=0.2) for number in range(3)}


def by_hand(logits: list[torch.Tensor]) -> dict[str, float]:
    labels = torch.from_numpy(CACHED.labels)
    ranked = [one.argsort(descending=True) for one in logits]
    share = [[(each[:, :many] == labels[:, None]).any(1).double().mean() for each in ranked] for many in (1, 5)]
    top1, top5 = (100 * float(sum(each) / len(each)) for each in share)
    loss = float(sum(F.cross_entropy(one, labels) for one in logits) / len(logits))
    return {"test_top1": top1, "test_top5": top5, "test_loss": loss}


def pixels() -> torch.Tensor:
    return (torch.from_numpy(CACHED.images).float() / 255 - 0.5) / 0.5


def test_a_supernet_is_validated_by_the_mean_of_its_sides_and_stays_as_it_is():
    net, empty, shown = networks()
    before = tree_map(torch.clone, dict(net.state_dict()))
    random = torch.get_rng_state(), np.random.get_state()[1].copy()
    nets = of_supernet(empty, shown, torch.device("cpu"), 8, "no")
    found = dict(validation(Accelerator(), nets).figures({"model": net.state_dict()}, "supernet", show=False))
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all()
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert list(found) == list(shown)
    for name, architecture in shown.items():
        with torch.no_grad():
            wanted = by_hand([net._forward_side(pixels(), architecture, side) for side in net.sides])
        assert found[name].pop("seconds") > 0
        assert found[name] == pytest.approx(wanted, rel=1e-5)


def test_a_model_and_its_average_are_validated_in_evaluation_mode():
    architecture = next(iter(networks()[2].values()))
    torch.manual_seed(1)
    models = {name: VisionTransformer(architecture, 7, drop_path_rate=0.5).train() for name in ("model", "average")}
    weights = {name: model.state_dict() for name, model in models.items()}
    found = dict(validation(Accelerator(), of_model(architecture)).figures(weights, "retrain", show=False))
    for name, model in models.items():
        assert model.training and found[name].pop("seconds") > 0
        with torch.no_grad():
            assert found[name] == pytest.approx(by_hand([model.eval()(pixels())]), rel=1e-5)


def test_best_is_the_higher_top1_then_the_lower_loss_then_the_earlier_one():
    one = validation(Accelerator(), of_model(networks()[2]["random 0"]), keeps_best=True)

    def then(best: Best | None, step: int, top1: float, loss: float) -> Best:
        facts = {"step": step, "test_top1": top1, "test_loss": loss}
        found = one.better(best, facts, {"model": {"w": torch.zeros(1)}, "average": {"w": torch.full((1,), step)}})
        assert found is not None
        return found

    best, steps = None, []
    for step, (top1, loss) in enumerate([(50, 2), (40, 1), (50, 2), (50, 1.5), (60, 9), (60, float("nan"))]):
        best = then(best, step, top1, loss)
        steps.append((best.facts["step"], best.weights["w"].item()))
    assert steps == [(0, 0), (0, 0), (0, 0), (3, 3), (4, 4), (4, 4)]


def test_what_did_best_on_other_images_does_not_count():
    old = Best({"test_top1": 99.0, "test_loss": 0.1, "images": "others"}, {})
    worse = {"test_top1": 1.0, "test_loss": 9.0}, {"model": {"w": torch.zeros(1)}}
    one = validation(Accelerator(), of_model(networks()[2]["random 0"]), keeps_best=True)
    new = one.better(old, *worse)
    assert new is not None and new.facts == worse[0] | {"images": "some"}
    assert one.better(old._replace(facts=old.facts | {"images": "some"}), *worse).facts["test_top1"] == 99.0


def test_validations_come_every_so_many_epochs_and_at_the_end():
    one = validation(Accelerator(), of_model(networks()[2]["random 0"]), every=0.5)
    assert [done for done in range(1, 24) if one.is_due(done, 10, 23)] == [5, 10, 15, 20, 23]
    one.every = 1e-4
    assert all(one.is_due(done, 10, 23) for done in range(1, 24))


def test_the_time_of_a_validation_is_no_time_of_training():
    with mock.patch("vitas.report.meter.time.perf_counter", side_effect=[100.0, 112.0]):
        meter = Meter(0, 8)
        meter.leave_out(10.0)
        assert meter.read(5)["images_per_second"] == 5 * 8 / 2


def test_trainings_of_one_rank_alone_are_not_validated(tmp_path, monkeypatch):
    """Their ranks do not come to the same place at the same time."""
    asked = []
    settings = recipe.load(QUICKSTART, [EVERY_STEP, f"output={tmp_path}"])
    monkeypatch.setattr(training, "_train", lambda *_, validation, **__: asked.append(validation))
    monkeypatch.setattr(validations, "of_a_retraining", lambda *_: "validation")
    split = SimpleNamespace(classes=("a", "b"))
    run = training.Run(settings, Accelerator(), SimpleNamespace(), SimpleNamespace(), split, split)
    architecture = settings.space.sample(0, 0, skip=0.0)
    how = {"seed": 0, "split": split, "source": None}
    training.train_alone(run, architecture, settings.retrain, "alone", on_step=lambda *_: None, **how)
    training._train_from(run, architecture, "retrain", None)
    assert asked == [None, "validation"]


def test_the_subnets_of_a_validation_are_those_of_every_seed_and_inside_the_budgets():
    budgets = ["budgets.small.macs=[0.5e6,0.6e6]", "budgets.large.macs=[0.9e6,1.0e6]"]
    found = []
    for seed in (0, 5):
        settings = recipe.load(QUICKSTART, [*budgets, f"seed={seed}"])
        found.append(validations.subnets(settings, 10, settings.skip_probabilities(10)))
    assert found[0] == found[1]
    assert list(found[0]) == NAMES["supernet"]
    macs = [cost.count(architecture, 10)["macs"] / 1e6 for architecture in found[0].values()]
    assert macs[0] > 3.4 and macs[1] < 0.1
    assert all(
        low <= one <= high for one, (low, high) in zip(macs[2:], [(0.5, 0.6), (0.9, 1.0), (0.5, 0.6)], strict=True)
    )


def figures_of_ranks(folder: str) -> int:
    """The work of a rank: figures of the same weights."""
    accelerator = make_accelerator(recipe.load(QUICKSTART))
    net, empty, shown = networks()
    one = validation(accelerator, of_supernet(empty, shown, accelerator.device, 8, "no"))
    found = [
        [figures | {"seconds": 0} for _, figures in one.figures({"model": net.state_dict()}, "supernet", show=False)]
    ]
    name = f"{accelerator.num_processes}_{accelerator.process_index}"
    (Path(folder) / name).write_text(repr(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


@pytest.mark.launch
def test_any_number_of_ranks_gives_the_same_figures(tmp_path):
    for count in (1, 2, 3, 9):  # 8 batches: one of 9 ranks has none
        work = Ranks(figures_of_ranks, str(tmp_path), options=config("ddp", count) if count > 1 else [], cwd=tmp_path)
        assert work.wait(200) == [0] * count, work.text()
    texts = {file.read_text() for file in tmp_path.glob("[0-9]_*")}
    assert len(texts) == 1 and len(list(tmp_path.glob("[0-9]_*"))) == 15


def of_stage(folder: Path, stage: str) -> list[dict]:
    """The lines of validations, without their seconds."""
    lines = read_lines(folder / "runs" / "quickstart" / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in lines
        if line["stage"] == stage and "model" in line
    ]


def assert_same(folder: Path, reference: Path, stage: str, name: str = "model") -> None:
    """To the last bit, and with the same metadata."""
    files = [each / "runs" / "quickstart" / stage / f"{name}.safetensors" for each in (folder, reference)]
    with safe_open(files[0], "pt") as one, safe_open(files[1], "pt") as other:
        assert one.metadata() == other.metadata()
    ours, theirs = map(load_file, files)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


BACKENDS = {"one": [], "ddp": config("ddp"), "zero2": config("zero2"), "zero3": config("zero3")}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    train(folder, [], *ON)
    return folder


@pytest.mark.launch
@pytest.mark.parametrize("backend", first_of(BACKENDS, 3))
def test_validation_changes_no_weight_and_its_figures_are_those_of_one_process(one_process, tmp_path, backend):
    with_it, without = tmp_path / "with", tmp_path / "without"
    for folder, changes in ((with_it, ON), (without, [])):
        folder.mkdir()
        train(folder, BACKENDS[backend], *changes)
    for stage, steps in STEPS_VALIDATED.items():
        assert_same(with_it, without, stage)
        found = of_stage(with_it, stage)
        assert [(line["step"], line["model"]) for line in found] == [
            (step, name) for step in steps for name in NAMES[stage]
        ]
        assert not of_stage(without, stage)
        images, named = (216, "holdout") if stage == "supernet" else (360, "test")
        for line, other in zip(found, of_stage(one_process, stage), strict=True):
            for top in ("top1", "top5"):  # weights differ by rounding: an image between two classes may fall to either
                assert abs(line[f"{named}_{top}"] - other[f"{named}_{top}"]) <= 100.01 / images
            assert line[f"{named}_loss"] == pytest.approx(other[f"{named}_loss"], rel=1e-4)


@pytest.mark.launch
def test_the_last_validation_is_the_evaluation_and_best_is_a_model_that_can_be_evaluated(one_process):
    def evaluated(*changes: str) -> tuple[float, float]:
        train(one_process, [], "stages=[evaluate]", *changes)
        lines = read_lines(one_process / "runs" / "quickstart" / "metrics.jsonl")
        return next((line["top1"], line["top5"]) for line in reversed(lines) if line["stage"] == "evaluate")

    averages = [line for line in of_stage(one_process, "retrain") if line["model"] == "average"]
    top1, top5 = evaluated()
    assert (top1, top5) == (averages[-1]["test_top1"], averages[-1]["test_top5"])
    best = max(averages, key=lambda line: (line["test_top1"], -line["test_loss"]))
    file = one_process / "runs" / "quickstart" / "retrain" / "best.safetensors"
    assert evaluated(f"evaluate.weights={file}") == (best["test_top1"], best["test_top5"])
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    assert len(said.pop("images")) == 16
    assert said == {key: str(value) for key, value in best.items() if key not in ("stage", "model")}
    assert saved.load_model(file).pretrained_cfg["label_names"][:3] == ["0", "1", "2"]
    assert not (one_process / "runs" / "quickstart" / "supernet" / "best.safetensors").exists()


RETRAIN = ["stages=[retrain]", EVERY_STEP, "retrain.checkpoint_every=3"]


@pytest.fixture(scope="module")
def every_step(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("every_step")
    train(folder, [], *RETRAIN)
    return folder


@pytest.mark.launch
def test_a_training_that_stops_where_a_validation_is_due_makes_up_for_it(every_step, tmp_path):
    """Metrics are there from the first step on: each time one more step is done, saved, and not validated."""
    with mock.patch.dict(os.environ, {"VITAS_STOP_FILE": str(tmp_path / "runs/quickstart/metrics.jsonl")}):
        for step in (2, 3, 4):
            assert f"stopped and saved after step {step}" in train(tmp_path, [], *RETRAIN, check=False).text()
    train(tmp_path, [], *RETRAIN)
    assert of_stage(tmp_path, "retrain") == of_stage(every_step, "retrain")
    for name in ("model", "best"):
        assert_same(tmp_path, every_step, "retrain", name)


@pytest.mark.launch
@pytest.mark.parametrize("backend", first_of(["one", "zero3"], 1))
def test_a_killed_training_keeps_the_best_and_neither_loses_nor_repeats_figures(every_step, tmp_path, backend):
    reference = every_step
    if backend != "one":  # to the last bit a backend is only like itself
        reference = tmp_path / "reference"
        reference.mkdir()
        train(reference, BACKENDS[backend], *RETRAIN)
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "architecture.yaml").write_bytes((every_step / "architecture.yaml").read_bytes())
    arguments = [str(QUICKSTART), *STEPS, *RETRAIN]
    for reached in (5, 11):
        work = Ranks(ranks.recipe, *arguments, options=BACKENDS[backend], cwd=folder)
        wait_for(lambda at=reached: any(line["step"] >= at for line in of_stage(folder, "retrain")), 120)
        for process in work.processes:
            os.kill(process.pid, signal.SIGKILL)
        work.wait()
        assert any((folder / "runs" / "quickstart" / "retrain").glob("step_*"))
    train(folder, BACKENDS[backend], *RETRAIN)
    assert of_stage(folder, "retrain") == of_stage(reference, "retrain")
    for name in ("model", "best"):
        assert_same(folder, reference, "retrain", name)


@pytest.mark.launch
def test_validation_is_switched_on_and_off_in_a_training_that_is_begun(every_step, tmp_path):
    """The best so far stays, one of an earlier training does not."""
    stage = tmp_path / "runs" / "quickstart" / "retrain"
    stage.mkdir(parents=True)
    (stage / "best.safetensors").write_bytes(b"of another training")
    with mock.patch.dict(os.environ, {"VITAS_STOP_FILE": str(tmp_path / "runs/quickstart/metrics.jsonl")}):
        train(tmp_path, [], "stages=[retrain]", check=False)  # until step 11, after the first line of metrics
        assert not (stage / "best.safetensors").exists()
        assert "after step 12" in train(tmp_path, [], *RETRAIN, check=False).text()
    train(tmp_path, [], "stages=[retrain]")
    wanted = [line for line in of_stage(every_step, "retrain") if line["step"] == 11]
    assert of_stage(tmp_path, "retrain") == wanted and len(wanted) == 2
    assert_same(tmp_path, every_step, "retrain")
    with safe_open(stage / "best.safetensors", "pt") as best:
        assert best.metadata()["step"] == "11"
    train(tmp_path, [], *RETRAIN)  # is done, and not another one
    assert load_file(stage / "best.safetensors").keys() == load_file(stage / "model.safetensors").keys()
    assert Retraining().validate_every is None
