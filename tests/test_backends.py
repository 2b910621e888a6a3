"""The same recipe gives the same training on any backend."""

import json
from pathlib import Path

import pytest
from conftest import QUICKSTART, ROOT, launch
from safetensors.torch import load_file

from vitas.files import read_lines
from vitas.space import Architecture, Block

pytestmark = pytest.mark.launch
STEPS = [
    "stages=[supernet,retrain]", "supernet.epochs=1.05", "supernet.warmup_epochs=0.5", "retrain.epochs=0.91",
    "retrain.warmup_epochs=0.5", "retrain.architecture=architecture.yaml", "retrain.augment.mixup=0.8",
    "retrain.augment.cutmix=1.0", "supernet.clip_grad=1.0", "tracking.wandb=never",
]  # fmt: skip
"""20 steps of each training, with changing architectures, clipping, Mixup and CutMix."""


def config(name: str, ranks: int = 2) -> tuple[str, ...]:
    return ("--config_file", str(ROOT / "launch" / "accelerate" / f"{name}.yaml"), "--num_processes", str(ranks))


BACKENDS = {
    "ddp": (config("ddp"), []),
    "zero1": (config("zero1"), []),
    "zero2": (config("zero2"), []),
    "zero3": (config("zero3"), []),
    "accumulation": (config("ddp"), ["supernet.micro_batch_size=8", "retrain.micro_batch_size=8"]),
    "zero2_accumulation": (config("zero2"), ["supernet.micro_batch_size=8", "retrain.micro_batch_size=8"]),
    "grad_checkpointing": ((), ["supernet.grad_checkpointing=true", "retrain.grad_checkpointing=true"]),
}


def train(folder: Path, options: tuple[str, ...], changes: list[str]) -> Path:
    blocks = (Block(heads=2, qkv_dim=48, mlp_dim=64), None, Block(heads=4, qkv_dim=96, mlp_dim=128))
    architecture = Architecture(image_size=16, patch_size=4, embed_dim=32, blocks=blocks)
    (folder / "architecture.yaml").write_text(architecture.to_yaml())
    launch(QUICKSTART, *STEPS, *changes, options=options, cwd=folder)
    return folder / "runs" / "quickstart"


def losses(run: Path, stage: str) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["stage"] == stage]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("one"), (), [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_trains_the_weights_of_one_process(one_process, tmp_path, backend):
    run = train(tmp_path, *BACKENDS[backend])
    for stage in ("supernet", "retrain"):
        steps = [line["step"] for line in read_lines(run / "metrics.jsonl") if line["stage"] == stage]
        assert steps == [10, 20]
        one, other = (load_file(folder / stage / "model.safetensors") for folder in (one_process, run))
        assert one.keys() == other.keys()
        worst = {
            name: float((weight - other[name]).norm() / weight.norm().clamp(min=1e-12)) for name, weight in one.items()
        }
        name = max(worst, key=worst.__getitem__)
        print(json.dumps({"backend": backend, "stage": stage, "worst": name, "difference": worst[name]}))
        assert worst[name] <= 1e-5, (stage, name)


@pytest.mark.parametrize("name", ["cpu", "zero2"])
def test_bf16_learns_as_float32_does(one_process, tmp_path, name):
    ranks = 1 if name == "cpu" else 2
    run = train(tmp_path, (*config(name, ranks), "--mixed_precision", "bf16"), [])
    for stage in ("supernet", "retrain"):
        for loss, exact in zip(losses(run, stage), losses(one_process, stage), strict=True):
            assert abs(loss - exact) < 0.02 * exact
