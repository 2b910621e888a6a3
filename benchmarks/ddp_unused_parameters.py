"""Time of a supernet step under DDP, with and without its search for unused parameters.

    torchrun --nproc_per_node 2 benchmarks/ddp_unused_parameters.py [recipe] [images per rank]

Here a layer that a step's architecture leaves out is called at width zero, and so gets a (zero) gradient; DDP need not
look for it. Timed in turn, step by step, on the same architectures:

    ours     every layer called
    search   the same step, find_unused_parameters=True: the same weights
    usual    idle layers left out, find_unused_parameters=True: other weights, for those that got no gradient stay as
             they are, without momentum and decay, and their optimizer update is saved
"""

import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitas import recipe
from vitas.models.supernet import Supernet

WARM_UP, STEPS = 10, 60


class WithoutIdleLayers(Supernet):
    """The usual way."""

    def _idle_layers(self, architecture):
        return iter(())


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images, labels, architecture) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    dist.barrier()
    began = time.perf_counter()
    F.cross_entropy(model(images, architecture), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(file: str = str(Path(__file__).parent.parent / "recipes" / "quickstart.yaml"), images: str = "32") -> None:
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    space = recipe.load(file).space
    builds = []
    for kind, find in ((Supernet, False), (Supernet, True), (WithoutIdleLayers, True)):
        torch.manual_seed(0)
        net = DistributedDataParallel(
            kind(space, 10).to(device), find_unused_parameters=find, broadcast_buffers=False,
            device_ids=[local] if gpu else None,
        )  # fmt: skip
        builds.append((net, torch.optim.AdamW(net.parameters(), fused=True)))
    size = int(images)
    batch = torch.randn(size, 3, space.image_size, space.image_size, device=device)
    labels = torch.randint(10, (size,), device=device)
    times: list[list[float]] = []
    for number in range(WARM_UP + STEPS):
        architecture = space.sample(0, number, skip=0.3)
        row = [0.0] * len(builds)
        for turn in range(len(builds)):
            build = (number + turn) % len(builds)
            row[build] = step(*builds[build], batch, labels, architecture)
        times.append(row)
    if dist.get_rank() == 0:
        ours, search, usual = (1000 * statistics.median(column) for column in zip(*times[WARM_UP:], strict=True))
        slower = [statistics.median(row[build] / row[0] for row in times[WARM_UP:]) for build in (1, 2)]
        print(f"{Path(file).stem}, {dist.get_world_size()} {device.type} ranks of {size} images: ours {ours:.1f} ms, "
              f"search {search:.1f} ms (x {slower[0]:.3f}), usual {usual:.1f} ms (x {slower[1]:.3f})")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
