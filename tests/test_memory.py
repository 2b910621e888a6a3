import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICKSTART, ROOT, small_space

from vitas import recipe, sections
from vitas.cli import main
from vitas.models.supernet import Supernet
from vitas.runs import check
from vitas.train import memory
from vitas.train.memory import Backend

TRAINING = sections.Training(epochs=1, warmup_epochs=0)


def test_the_estimate_is_what_a_forward_really_keeps():
    space = small_space()
    net, largest, kept = Supernet(space, 10), space.corner(-1, 4), {}
    own = {parameter.data_ptr() for parameter in net.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.cross_entropy(net(torch.zeros(6, 3, 16, 16), largest), torch.zeros(6, dtype=torch.long))
    real = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    found = memory.estimate(lambda: Supernet(space, 10), (largest,), 16, 6, TRAINING, Backend())
    assert found["activations"] == real
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert (found["weights"], found["gradients"], found["optimizer"]) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )


def test_the_estimate_of_a_sandwich_has_all_its_subnets():
    space = small_space()
    largest, smallest = (space.corner(end, 4) for end in (-1, 0))

    def estimate(*architectures, **settings) -> int:
        training = sections.Training(epochs=1, warmup_epochs=0, **settings)
        return memory.estimate(lambda: Supernet(space, 10), architectures, 16, 6, training, Backend())["activations"]

    images, logits = 4 * 6 * 3 * 16 * 16, 4 * 6 * 10
    apart = estimate(largest) + estimate(smallest) - images
    assert abs(estimate(largest, smallest) - apart) < 20 * logits
    # One block alone is computed again at a time.
    more = [estimate(*[largest] * count, grad_checkpointing=True) for count in (1, 2, 3)]
    assert more[2] - more[1] == more[1] - more[0] < 0.5 * more[0]
    one, several = (check.facts(recipe.load(QUICKSTART, given), Backend()) for given in ([], ["supernet.sandwich=2"]))
    one, several = (
        float(re.findall(r"activations ([\d.]+) MB", facts["supernet_memory"])[0]) for facts in (one, several)
    )
    assert 2.9 < several / one < 3.3


MEASURE = """
import resource, sys, torch
from vitas import recipe
from vitas.models import linear, supernet
from vitas.models.supernet import Supernet
from vitas.train import memory

linear.is_on_cpu = supernet.is_on_cpu = lambda x: False  # keeps what is kept on a GPU
settings = recipe.load(sys.argv[1], sys.argv[2:])
space, images = settings.space, 4
largest = space.corner(-1, min(space.patch_size))
estimate = memory.estimate(lambda: Supernet(space, 1000), (largest,), 224, images, settings.supernet, memory.Backend())
net = Supernet(space, 1000).train()
net.set_grad_checkpointing(settings.supernet.grad_checkpointing)
optimizer = torch.optim.AdamW(net.parameters(), fused=True)
pages = int(open("/proc/self/statm").read().split()[1])
before = pages * resource.getpagesize() - estimate["weights"]
for _ in range(2):
    net(torch.zeros(images, 3, 224, 224), largest).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print((peak - before) / sum(estimate.values()))
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_estimate_is_near_the_measured_peak_of_a_full_size_supernet(checkpointing):
    arguments = [str(ROOT / "recipes" / "search_1G.yaml"), f"supernet.grad_checkpointing={checkpointing}"]
    # Freed memory goes back at once, so that the peak is of what is in use.
    frugal = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, env=frugal)
    assert 0.8 < float(done.stdout) < 1.2, done.stderr


def test_zero_parts_the_state_over_the_ranks():
    def state(of: Backend) -> int:
        found = memory.estimate(
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)), (), 4, 1, TRAINING, of
        )
        return sum(size for name, size in found.items() if name != "activations")

    one, ddp, *zero = (state(Backend(*of)) for of in ((1,), (4,), (4, 1), (4, 2), (4, 3)))
    assert zero[2] < zero[1] < zero[0] < ddp
    assert one == 16 * 490
    assert state(Backend(4, 3, precision="bf16")) < zero[2]
    assert state(Backend(4, 2, offload=True)) < zero[1]


def test_check_tells_the_memory_of_a_backend(capsys):
    search = str(ROOT / "recipes" / "search_1G.yaml")

    def told(*options: str) -> dict[str, float]:
        assert main(["check", search, *options]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("supernet memory")]
        sizes = re.findall(r"(\w+) ([\d.]+) (GB|MB)", line)
        return {name: float(size) * (1000 if unit == "GB" else 1) for name, size, unit in sizes}

    one = told("--ranks", "8")
    zero2 = ("--config_file", str(ROOT / "launch/accelerate/zero2.yaml"), "--ranks", "8", "--mixed_precision", "bf16")
    many = told(*zero2)
    assert many["activations"] < 0.6 * one["activations"]
    assert many["optimizer"] < one["optimizer"]
    assert told(*zero2, "supernet.grad_checkpointing=true")["activations"] < 0.2 * many["activations"]
    assert main(["check", search, "--config_file", "nothing.yaml"]) == 2
    assert "nothing.yaml: expected a config file of Accelerate" in capsys.readouterr().err
    many = str(ROOT / "launch/accelerate/multinode_zero2.yaml")
    assert main(["check", search, "--config_file", many]) == 2
    assert "leaves the number of processes to the launcher; add --ranks N" in capsys.readouterr().err
    assert told("--config_file", many, "--ranks", "16")["optimizer"] < one["optimizer"]
