"""The same training on a GPU: `pytest -m gpu`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICKSTART, ROOT
from ranks import config
from test_backends import assert_same_weights, losses, train
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitas.models.vit import attend

pytestmark = pytest.mark.gpu
FLOAT32 = ["--mixed_precision", "no"]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    train(folder, config("cpu", 1))
    return folder


@pytest.mark.parametrize(
    ("name", "precision", "changes"),
    [
        ("gpu", "no", []),
        ("gpu", "bf16", []),
        ("gpu", "fp16", []),
        ("gpu", "bf16", ["retrain.compile=true"]),
        ("zero2", "no", []),
        ("zero2", "bf16", []),
        ("zero2", "fp16", []),
        ("zero3", "bf16", []),
    ],
)
def test_a_gpu_learns_as_the_cpu_does(on_cpu, tmp_path, name, precision, changes):
    told = train(tmp_path, [*config(name, 1), "--mixed_precision", precision], *changes).text()
    assert "1 x cuda" in told
    for stage in ("supernet", "retrain"):
        exact, tolerance = losses(on_cpu, stage), 0.005 if precision == "no" else 0.02
        for step, loss in losses(tmp_path, stage).items():
            assert abs(loss - exact[step]) < tolerance * exact[step]


@pytest.mark.parametrize(("first", "then"), [("zero2", "gpu"), ("gpu", "zero2"), ("gpu", "zero3")])
def test_a_training_moves_between_gpu_and_deepspeed(tmp_path, monkeypatch, first, then):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    for folder in (whole, moved):
        folder.mkdir()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # rounding alone would be 1e-3
    train(whole, [*config("gpu", 1), *FLOAT32], "stages=[retrain]")
    monkeypatch.setenv("VITAS_STOP_FILE", str(moved / "runs/quickstart/metrics.jsonl"))
    assert set(train(moved, [*config(first, 1), *FLOAT32], "stages=[retrain]", check=False).codes) == {75}
    monkeypatch.delenv("VITAS_STOP_FILE")
    told = train(moved, [*config(then, 1), *FLOAT32], "stages=[retrain]").text()
    assert "retrain: goes on from step 11 of" in told
    assert_same_weights(moved, whole, "retrain", tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_runs_on_the_flash_kernel(dtype):
    q, k, v = (torch.randn(4, 197, 192, device="cuda", dtype=dtype) for _ in range(3))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = attend(q, k, v, heads=3)
    with sdpa_kernel(SDPBackend.MATH):
        plain = attend(q.float(), k.float(), v.float(), heads=3)
    torch.testing.assert_close(flash.float(), plain, rtol=0, atol=2e-2)


def test_the_fused_optimizer_makes_the_step_of_the_plain_one():
    models = [torch.nn.Linear(64, 64, device="cuda") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        for step in range(5):
            model(torch.full((8, 64), 0.1 * step, device="cuda")).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(models[0].weight, models[1].weight)


MEASURE = """
import sys, torch
from vitas import recipe
from vitas.models.supernet import Supernet
from vitas.train import memory

settings = recipe.load(sys.argv[1], sys.argv[3:])
space, images, half = settings.space, 32, sys.argv[2] == "bf16"
largest = space.corner(-1, min(space.patch_size))
backend = memory.Backend(precision=sys.argv[2])
estimate = memory.estimate(lambda: Supernet(space, 1000), (largest,), 224, images, settings.supernet, backend)
net = Supernet(space, 1000).train().cuda()
net.set_grad_checkpointing(settings.supernet.grad_checkpointing)
optimizer = torch.optim.AdamW(net.parameters(), fused=True)
for _ in range(2):
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
        loss = net(torch.zeros(images, 3, 224, 224, device="cuda"), largest).float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(torch.cuda.max_memory_allocated() / sum(estimate.values()))
"""


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_estimate_of_memory_is_near_the_peak(precision, checkpointing):
    search = str(ROOT / "recipes" / "search_1G.yaml")
    arguments = [sys.executable, "-c", MEASURE, search, precision, f"supernet.grad_checkpointing={checkpointing}"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.7 < float(done.stdout) < 1.3


def test_too_little_memory_ends_with_what_to_lower(tmp_path):
    huge = ["supernet.batch_size=1216", "supernet.micro_batch_size=1216", "space.image_size=256",
            "space.patch_size=[2]",
            "supernet.skip=0", "data.workers=0", "stages=[supernet]"]  # fmt: skip
    done = subprocess.run(
        [str(Path(sys.executable).with_name("accelerate")), "launch", *config("gpu", 1), str(QUICKSTART), *huge],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode
    assert "supernet: out of memory at step 0, architecture {" in done.stderr
    assert "lower supernet.micro_batch_size from 1216 (the batch stays 1216)" in done.stderr
