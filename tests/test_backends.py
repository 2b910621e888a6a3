"""The same recipe gives the same training on any backend, and goes on under any other."""

import json
import os
from pathlib import Path
from unittest import mock

import pytest
import ranks
import torch
from conftest import QUICKSTART, first_of
from ranks import config
from safetensors.torch import load_file

from vitas import recipe
from vitas.files import read_lines
from vitas.runs.accelerator import make_accelerator
from vitas.spaces.architecture import Architecture, Block
from vitas.train import state

pytestmark = pytest.mark.launch
STEPS = [
    "stages=[supernet,retrain]", "supernet.epochs=1.05", "supernet.warmup_epochs=0.5", "retrain.epochs=0.91",
    "retrain.warmup_epochs=0.5", "retrain.architecture=architecture.yaml", "retrain.augment.mixup=0.8",
    "retrain.augment.cutmix=1.0", "supernet.clip_grad=1.0", "retrain.ema=0.9", "data.workers=0",
]  # fmt: skip
"""20 steps of each training, with changing architectures, clipping, Mixup, CutMix and an average of the weights."""


ACCUMULATION = ["supernet.micro_batch_size=8", "retrain.micro_batch_size=8"]
BACKENDS = {
    "ddp": (config("ddp"), []),
    "zero2": (config("zero2"), []),
    "zero3": (config("zero3"), []),
    "grad_checkpointing": ([], ["supernet.grad_checkpointing=true", "retrain.grad_checkpointing=true"]),
    "zero1": (config("zero1"), []),
    "zero2_one_rank": (config("zero2", 1), []),
    "accumulation": (config("ddp"), ACCUMULATION),
    "zero2_accumulation": (config("zero2"), ACCUMULATION),
    "compile": ([], ["retrain.compile=true"]),
}


def train(folder: Path, options: list[str], *changes: str, check: bool = True) -> ranks.Ranks:
    blocks = (Block(heads=2, qkv_dim=48, mlp_dim=64), None, Block(heads=4, qkv_dim=96, mlp_dim=128))
    architecture = Architecture(image_size=16, patch_size=4, embed_dim=32, blocks=blocks)
    (folder / "architecture.yaml").write_text(architecture.to_yaml())
    return ranks.train(QUICKSTART, *STEPS, *changes, options=options, cwd=folder, check=check)


def losses(folder: Path, stage: str) -> dict[int, float]:
    lines = read_lines(folder / "runs" / "quickstart" / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if line["stage"] == stage}


def assert_same_weights(folder: Path, reference: Path, stage: str, tolerance: float = 1e-5) -> None:
    """No tensor differs by more than this part of its norm."""
    other, one = (load_file(each / "runs" / "quickstart" / stage / "model.safetensors") for each in (folder, reference))
    assert one.keys() == other.keys()
    worst = {
        name: float((weight - other[name]).norm() / weight.norm().clamp(min=1e-12)) for name, weight in one.items()
    }
    name = max(worst, key=worst.__getitem__)
    print(json.dumps({"stage": stage, "worst": name, "difference": worst[name]}))
    assert worst[name] <= tolerance, (stage, name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    train(folder, [])
    return folder


@pytest.mark.parametrize("backend", first_of(BACKENDS, 4))
def test_every_backend_trains_the_weights_of_one_process(one_process, tmp_path, backend):
    options, changes = BACKENDS[backend]
    train(tmp_path, options, *changes)
    for stage in ("supernet", "retrain"):
        assert list(losses(tmp_path, stage)) == [10, 20]
        assert_same_weights(tmp_path, one_process, stage)


SANDWICH = ["stages=[supernet]", "supernet.sandwich=2", "supernet.distill=alpha", "supernet.in_budget=0.5"]


@pytest.fixture(scope="module")
def sandwich(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sandwich")
    train(folder, [], *SANDWICH)
    return folder


@pytest.mark.parametrize("backend", first_of(["ddp", "zero3", "zero2", "zero2_accumulation", "grad_checkpointing"], 2))
def test_every_backend_trains_a_distilled_sandwich_to_the_weights_of_one_process(sandwich, tmp_path, backend):
    options, changes = BACKENDS[backend]
    train(tmp_path, options, *SANDWICH, *changes)
    assert_same_weights(tmp_path, sandwich, "supernet")


def test_a_stopped_sandwich_goes_on_as_if_it_had_not_been_stopped(sandwich, tmp_path):
    with mock.patch.dict(os.environ, {"VITAS_STOP_FILE": str(tmp_path / "runs/quickstart/metrics.jsonl")}):
        train(tmp_path, [], *SANDWICH, check=False)
    assert "goes on from step 11 of 20" in train(tmp_path, [], *SANDWICH).text()
    assert_same_weights(tmp_path, sandwich, "supernet", tolerance=0)


MOVES = [
    ("supernet", "one", 1, "zero2", 2),
    ("retrain", "zero2", 2, "ddp", 2),
    ("retrain", "ddp", 2, "zero3", 2),
    ("retrain", "zero2", 2, "zero2", 2),
    ("supernet", "zero2", 2, "zero2", 4),
    ("retrain", "zero3", 2, "zero3", 4),
    ("supernet", "zero3", 2, "zero1", 2),
    ("supernet", "zero2", 2, "zero2_offload", 2),
]


@pytest.mark.parametrize("move", first_of(MOVES, 3), ids=lambda move: "-".join(map(str, move)))
def test_a_stopped_training_goes_on_under_another_backend(one_process, tmp_path, move):
    """Weights, Adam's moments and the moving average all count: without one of them the weights would differ."""
    stage, before, ranks_before, after, ranks_after = move
    stages = f"stages=[{stage}]"
    with mock.patch.dict(os.environ, {"VITAS_STOP_FILE": str(tmp_path / "runs/quickstart/metrics.jsonl")}):
        # The first line of metrics is the eleventh step's end.
        stopped = train(tmp_path, options(before, ranks_before), stages, check=False)
    assert set(stopped.codes) == {75}, stopped.text()
    told = train(tmp_path, options(after, ranks_after), stages).text()
    assert f"{stage}: goes on from step 11 of 20" in told
    assert_same_weights(tmp_path, one_process, stage)


@pytest.mark.parametrize("backend", first_of(["ddp", "zero2"], 1))
def test_a_stopped_training_goes_on_with_smaller_micro_batches(one_process, tmp_path, backend):
    """After an odd number of micro-batches: counted on, every update would mix the halves of two steps."""
    with mock.patch.dict(os.environ, {"VITAS_STOP_FILE": str(tmp_path / "runs/quickstart/metrics.jsonl")}):
        train(tmp_path, config(backend), "stages=[supernet]", check=False)
    assert (
        "goes on from step 11 of 20"
        in train(tmp_path, config(backend), "stages=[supernet]", "supernet.micro_batch_size=16").text()
    )
    assert_same_weights(tmp_path, one_process, "supernet")


def engine_takes_over_exactly(folder: str) -> int:
    """The work of a rank: weights and moments given to an engine are those that it gives back."""
    accelerator = make_accelerator(recipe.load(QUICKSTART))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    weights = {name: torch.randn_like(weight) for name, weight in model.state_dict().items()}
    moments = {
        f"{moment}/{name}": torch.rand_like(weight) for name, weight in weights.items() for moment in state.MOMENTS
    }
    moments |= {state.UPDATES: torch.tensor(7.0)}
    model.load_state_dict(weights)
    groups = [{"params": [weight for weight in model.parameters() if weight.ndim == n]} for n in (1, 2)]
    accelerator.state.deepspeed_plugin.deepspeed_config |= {
        "train_batch_size": accelerator.num_processes,
        "train_micro_batch_size_per_gpu": 1,
    }
    engine, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups))
    before = state.capture(accelerator, engine, optimizer)
    assert before is None or not before.moments
    state.restore(accelerator, engine, optimizer, state.TrainingState(weights, moments))
    taken = state.capture(accelerator, engine, optimizer)
    for given, kept in ((weights, taken.weights), (moments, taken.moments)) if taken else ():
        assert given.keys() == kept.keys()
        assert all(torch.equal(value, kept[name]) for name, value in given.items())
    assert (taken is not None) == accelerator.is_main_process
    torch.distributed.destroy_process_group()
    return 0


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_half_precision_engines_take_over_float32_weights_exactly(tmp_path, name, precision):
    work = ranks.Ranks(
        engine_takes_over_exactly, str(tmp_path), options=[*config(name), "--mixed_precision", precision], cwd=tmp_path
    )
    assert work.wait(100) == [0, 0], work.text()


REFUSED = "mixed_precision: fp16: expected a GPU, or DeepSpeed on a CPU that knows it; on CPUs use bf16"


def options(name: str, count: int) -> list[str]:
    return [] if name == "one" else config(name, count)


HALVES = [("one", "bf16"), ("zero3", "bf16"), ("ddp", "bf16"), ("zero2", "bf16"), ("zero2", "fp16")]


@pytest.mark.parametrize("backend", first_of(HALVES, 2), ids="-".join)
def test_half_precision_learns_as_float32_does(one_process, tmp_path, backend):
    name, precision = backend
    count = 1 if name == "one" else 2
    done = train(
        tmp_path, [*config("cpu" if name == "one" else name, count), "--mixed_precision", precision], check=False
    )
    if precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        assert REFUSED in done.text()  # this CPU does not have it
        return
    assert not any(done.codes), done.text()
    for stage in ("supernet", "retrain"):
        exact = losses(one_process, stage)
        for step, loss in losses(tmp_path, stage).items():
            assert abs(loss - exact[step]) < 0.02 * exact[step]


def test_half_precision_that_the_device_does_not_have_is_refused(tmp_path):
    told = train(tmp_path, [*config("ddp"), "--mixed_precision", "fp16"], check=False)
    assert set(told.codes) == {2}
    assert REFUSED in told.text()


@pytest.mark.slow
def test_one_chain_over_three_backends(tmp_path):
    """The supernet on two ranks of ZeRO-2, the search in one process, retraining and evaluation on two ranks of DDP."""
    short = ["supernet.epochs=2", "retrain.epochs=1", "retrain.warmup_epochs=0.5", "retrain.architecture=best",
             "evolve.population=4", "evolve.generations=2"]  # fmt: skip
    train(tmp_path, config("zero2"), *short, "stages=[supernet]")
    train(tmp_path, [], *short, "stages=[evolve]")
    told = train(tmp_path, config("ddp"), *short, "stages=[retrain,baseline,evaluate]", "retrain.init=supernet").text()
    assert "uniform ViT" in told
    assert "on 360 test images" in told


def test_a_compiled_model_is_evaluated_to_the_same_figures(one_process):
    figures = []
    for compiled in ("false", "true"):
        train(one_process, [], "stages=[evaluate]", f"evaluate.compile={compiled}")
        rows = json.loads((one_process / "runs" / "quickstart" / "evaluation.json").read_text())
        figures.append((rows["found"]["top1"], rows["found"]["top5"]))
    assert figures[0] == figures[1]
