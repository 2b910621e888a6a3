import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import small_space
from torch import nn

from vitas.models.measured import measure
from vitas.models.vit import VisionTransformer
from vitas.spaces.cost import MEASURED


def vit(seed: int = 1) -> VisionTransformer:
    return VisionTransformer(small_space().sample(0, seed), 10)


class Seen(list):
    """A list that copies of a model share."""

    def __deepcopy__(self, memo):
        return self


class Watched(nn.Module):
    """Says to `seen` what it is given, and takes twenty milliseconds an image."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)
        self.seen = seen

    def forward(self, x):
        self.seen.append((len(x), x.dtype, self.layer.weight.dtype, self.training, torch.is_inference_mode_enabled()))
        time.sleep(0.02 * len(x))
        return self.layer(x)


def test_times_are_of_the_batch_and_of_one_image():
    found = measure(Watched(Seen()), 16, ("throughput", "latency"), batch_size=4, seconds=0)
    assert list(found) == ["throughput", "latency"]
    assert 30 < found["throughput"] <= 50
    assert 20 <= found["latency"] < 35


def test_passes_go_on_for_as_long_as_asked():
    seen = Seen()
    began = time.perf_counter()
    measure(Watched(seen), 16, ["latency"], seconds=0.6)
    assert time.perf_counter() - began > 0.6
    assert len(seen) > 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_runs_in_the_precision_asked_for_and_the_model_stays_as_it_was(dtype):
    seen = Seen()
    model = Watched(seen).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    measure(model, 16, MEASURED, batch_size=2, dtype=dtype, seconds=0)
    assert set(seen) == {(1, dtype, dtype, False, True), (2, dtype, dtype, False, True)}
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_memory_is_what_a_count_by_hand_gives():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 100), nn.ReLU(), nn.Linear(100, 70), nn.Linear(70, 5))
    weights = 48 * 100 + 100 + 100 * 70 + 70 + 70 * 5 + 5
    images, at_once = 8 * 3 * 4 * 4, 8 * (100 + 100)  # before and after the ReLU
    for _ in range(2):
        assert measure(layers, 4, ["memory"], batch_size=8)["memory"] == 4 * (weights + images + at_once)
    # oneDNN's copies of weights are real, and differ from processor to processor
    assert measure(layers, 4, ["memory"], batch_size=8, dtype=torch.bfloat16)["memory"] >= 2 * (weights + images)


def test_weights_that_are_shared_are_counted_once_and_buffers_are_counted():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Linear(48, 48))
    layers[2].weight = layers[1].weight
    layers.register_buffer("table", torch.zeros(1000))
    weights = 48 * 48 + 2 * 48 + 1000
    assert measure(layers, 4, ["memory"], batch_size=1)["memory"] == 4 * (weights + 48 + 2 * 48)


def test_memory_of_a_vision_transformer_is_the_same_each_time_and_linear_in_the_images():
    model = vit()
    one, two, three, again = (measure(model, 16, ["memory"], batch_size=n)["memory"] for n in (64, 128, 192, 64))
    assert one == again
    assert three - two == two - one > 64 * 3 * 16 * 16 * 4
    half = measure(model, 16, ["memory"], batch_size=64, dtype=torch.bfloat16)["memory"]
    assert 0.5 <= half / one < 0.75  # some of the attention is float32


def test_any_number_of_compiled_models_is_measured_without_the_compilation(monkeypatch):
    made = []

    def slow(graph, _):
        made.append(graph)
        time.sleep(0.05)
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled(model, backend=slow, **options))
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for number in range(4):
            model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10 + number), nn.ReLU())
            found = measure(model, 4, MEASURED, batch_size=8, compile=True, seconds=0)
            assert len(made) == 2 * (number + 1)  # of each batch size, and once
            assert found["latency"] < 25
            assert found["throughput"] > 8 / 0.025
            assert found["memory"] == measure(model, 4, ["memory"], batch_size=8)["memory"]


def test_nothing_is_said():
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_measured as t;"
        "t.measure(t.vit(), 16, t.MEASURED, batch_size=2, seconds=0)"
    )
    quiet = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=quiet)
    assert (done.returncode, done.stdout) == (0, "")
    assert "profiler" not in done.stderr
