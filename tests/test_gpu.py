"""The same training on a GPU: `pytest -m gpu`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICKSTART, ROOT, small_space
from ranks import config
from test_backends import assert_same_weights, losses, train
from test_candidates import CANDIDATES, IMAGES, LABELS, MEAN, SPACE, STD
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitas.data import device
from vitas.evolve.scoring import Scorer
from vitas.models.fast import fast
from vitas.models.measured import measure
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer, attend
from vitas.spaces.cost import MEASURED

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


@pytest.mark.parametrize("half", [False, True])
def test_the_logits_for_scoring_are_those_of_the_model(half):
    space, images = small_space(), torch.randn(64, 3, 16, 16, device="cuda")
    for number in range(4):
        model = VisionTransformer(space.sample(0, number), 10).cuda().eval()
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            expected, logits = model(images), fast(model, 64)(images)
        assert logits.dtype == expected.dtype
        assert (logits - expected).abs().max() < (0.03 if half else 1e-5) * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_measured_on_a_gpu_is_of_a_copy_there(dtype):
    model = VisionTransformer(small_space().corner(-1, 4), 10)
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    images = 512 * 3 * 16 * 16 * dtype.itemsize
    first, then = (measure(model, 16, MEASURED, batch_size=512, device="cuda", dtype=dtype) for _ in range(2))
    # Of (17, N) an image there are the tokens (40), their norm (40), and qkv (84) or the MLP's before and after GELU
    # (140); the rest is for what the attention's kernel copies or pads.
    assert size + images < first["memory"] < size + images + 512 * 17 * 800 * dtype.itemsize + 2**20
    assert first["memory"] == then["memory"]
    on_gpu = VisionTransformer(small_space().corner(-1, 4), 10).cuda()
    assert measure(on_gpu, 16, ["memory"], batch_size=512, device="cuda", dtype=dtype) == {"memory": first["memory"]}
    assert first["throughput"] > 1000 / first["latency"]
    assert {(value.device.type, value.dtype) for value in model.parameters()} == {("cpu", torch.float32)}
    assert {(value.device.type, value.dtype) for value in on_gpu.parameters()} == {("cuda", torch.float32)}


def test_many_architectures_are_measured_compiled_on_a_gpu():
    space = small_space()
    for number in range(10):  # Dynamo by itself would give up after eight
        model = VisionTransformer(space.sample(0, number), 10)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            found = measure(model, 16, MEASURED, batch_size=64, device="cuda", dtype=torch.bfloat16, compile=True)
        assert found["latency"] < 100  # milliseconds; compilation takes seconds


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


@pytest.mark.parametrize("share", [0.5, 0.0], ids=["resident", "read ahead"])
def test_images_on_the_device_are_those_of_the_cpu(share, monkeypatch):
    monkeypatch.setattr(device, "SHARE_OF_MEMORY", share)
    order = device.stratified(LABELS)
    cpu, gpu = (
        device.DeviceImages(IMAGES, torch.device(kind), mean=MEAN, std=STD, order=order) for kind in ("cpu", "cuda")
    )
    assert (gpu.resident is not None) == bool(share)
    for size in (7, 64, 1000):
        pairs = list(zip(cpu.batches(3, 200, size), gpu.batches(3, 200, size), strict=True))
        for (pixels, labels), (there, labels_there) in pairs:
            assert there.device.type == "cuda"
            torch.testing.assert_close(there.cpu(), pixels)
            assert labels_there.tolist() == labels.tolist()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_candidate_scores_on_the_device_what_it_scores_on_a_cpu(precision):
    torch.manual_seed(0)
    net = Supernet(SPACE, 5).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = []
    for kind, how in (("cpu", "no"), ("cuda", precision)):
        images = device.DeviceImages(IMAGES, torch.device(kind), mean=MEAN, std=STD)
        scorer = Scorer(net.to(kind), images, batch_size=None, precision=how)
        scorer.batch_size = scorer.fastest_batch(CANDIDATES[0])
        lines = [scorer.score(candidate, 0, len(scorer.slices)) for candidate in CANDIDATES]
        assert [scorer.score(candidate, 0, len(scorer.slices))["hits"] for candidate in CANDIDATES] == [
            line["hits"] for line in lines
        ]
        found.append([(sum(line["hits"]["left"]), sum(line["loss"]["right"])) for line in lines])
    for (hits, loss), (hits_there, loss_there) in zip(*found, strict=True):
        assert abs(hits - hits_there) <= (2 if precision == "no" else 12)
        assert loss_there == pytest.approx(loss, rel=1e-3 if precision == "no" else 0.03)
