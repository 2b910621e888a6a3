"""The figures of a search and of a training, by hand."""

import math
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from conftest import small_space
from torch import nn

from vitas.evolve.progress import Hypervolume, choices, figures
from vitas.report.meter import Meter, peak
from vitas.spaces.budget import Budget
from vitas.spaces.cost import reachable
from vitas.train.backend import gradient_norm


def entry(step: int, top1: float, macs: int, latency: float = 1.0, images: int = 10) -> dict:
    architecture = small_space().sample(0, step)
    return {
        "key": architecture.key, "architecture": architecture.model_dump(mode="json"), "top1": top1, "macs": macs,
        "loss": 1.0, "latency": latency, "images": images,
    }  # fmt: skip


def test_the_figures_of_a_generation():
    generation = [entry(1, 50.0, 10, 1.0), entry(2, 60.0, 20, 5.0), entry(3, 90.0, 30, 1.5), entry(4, 0.0, 30, 9.0, 0)]
    budgets = {"small": Budget(latency=(0.0, 1.0)), "base": Budget(latency=(0.0, 2.0))}
    found = figures(generation, {"small": generation[:1], "base": [generation[2]]}, budgets, ["top1"])
    assert found == {
        "best_top1_small": 50.0, "best_top1_base": 90.0, "median_top1": 60.0, "top1": pytest.approx(200 / 3),
        "feasible": 50.0,
    }  # fmt: skip


def test_the_hypervolume_is_the_part_that_a_front_dominates():
    space, classes = small_space(), 10
    front = [entry(1, 50.0, 20), entry(2, 80.0, 60)]
    volume = Hypervolume(["top1", "macs"], space, Budget(macs=(0, 100)), classes, front)
    assert volume.of(front) == pytest.approx(0.5 * 0.8 + 0.3 * 0.4)
    assert volume.of([]) == 0.0
    assert volume.of([front[0] | {"macs": 200}]) == 0.0  # worse than the worst that is allowed
    most = reachable(space, classes)["macs"][1]
    alone = Hypervolume(["macs", "loss"], space, Budget(), classes, front)
    assert alone.of(front[:1]) == pytest.approx((1 - 20 / most) * (1 - 1 / math.log(classes)))
    fast = Hypervolume(["top1", "throughput"], space, Budget(), classes, [{"throughput": 100.0}, {"throughput": 300.0}])
    assert fast.of([{"top1": 50.0, "throughput": 400.0}]) == pytest.approx(0.5 * 0.75)


def test_choices_are_those_of_the_kept_blocks():
    chosen = choices([entry(1, 0, 0), entry(2, 0, 0)])
    kept = [block for step in (1, 2) for block in small_space().sample(0, step).kept]
    assert chosen["heads"] == [block.heads for block in kept]
    assert sum(chosen["depth"]) == len(kept)
    assert list(chosen) == ["patch_size", "embed_dim", "depth", "heads", "qkv_dim", "mlp_dim"]


def test_the_part_of_the_peak_counts_two_a_multiply_add_and_the_backward_pass_twice():
    with mock.patch("vitas.report.meter.time.perf_counter", side_effect=[0.0, 4.0]):
        meter = Meter(0, 8, peak=1e6)
        for _ in range(10):
            meter.add(1.0, 1000)
        found = meter.read(10)
    assert found == {"loss": 1.0, "images_per_second": 20.0, "mfu": pytest.approx(100 * 6 * 1000 * 20 / 1e6)}
    assert peak(torch.device("cpu"), "bf16") is None
    names = {
        "NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA L40S": 362e12, "Some other": None,
    }  # fmt: skip
    for name, most in names.items():
        with mock.patch("torch.cuda.get_device_name", return_value=name):
            assert peak(torch.device("cuda"), "bf16") == most


def test_the_norm_is_that_of_all_gradients_together():
    model = nn.Linear(2, 1)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert gradient_norm(Accelerator(cpu=True), model) == pytest.approx(math.sqrt(26))
    model.weight.grad.fill_(math.inf)
    assert gradient_norm(Accelerator(cpu=True), model) is None
