"""What a model costs on the device where it will run: images a second, milliseconds an image, bytes. Measured."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


@torch.inference_mode()
def measure(
    model: nn.Module,
    image_size: int,
    names: Iterable[str],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
    seconds: float = 0.5,
) -> dict[str, float]:
    """Costs of `model` in inference, by name; a copy is measured, the model itself stays as it is.

    - `throughput`: images a second at `batch_size`.
    - `latency`: milliseconds of one image alone.
    - `memory`: bytes at the peak of a forward of `batch_size` images, with the weights and the images. It is what
      torch's allocator hands out: neither the context and the workspaces of CUDA's libraries, nor the scratch memory
      of oneDNN.

    Times are medians of synchronised, warmed-up passes.

    Args:
        model: Takes images and nothing else.
        image_size: Height and width of the images.
        names: Some of `vitas.spaces.cost.MEASURED`.
        batch_size: Images of one forward, for throughput and memory.
        device: Where.
        dtype: Of the weights, the images and all arithmetic.
        compile: Whether with `torch.compile`. The time of compilation is no part of any figure. What was compiled
            before in this process is compiled anew when it is next used: Dynamo would give up after a few models.
        seconds: How long passes are timed at least; never fewer than nine.
    """
    device = torch.device(device)
    model = deepcopy(model).to(device=device, dtype=dtype).eval()
    weights = _bytes([*model.parameters(), *model.buffers()])
    random = torch.Generator(device).manual_seed(0)  # the caller's own random numbers stay as they are
    found: dict[str, float] = {}
    if compile:
        torch.compiler.reset()
    run: Callable[[Tensor], Any] = torch.compile(model, dynamic=False) if compile else model
    for name in names:
        shape = (1 if name == "latency" else batch_size, 3, image_size, image_size)
        forward = partial(run, images := torch.randn(shape, generator=random, device=device, dtype=dtype))
        if name == "memory":
            found[name] = weights + images.nbytes + _peak(forward, device)
        elif name == "throughput":
            found[name] = batch_size / median_seconds(forward, device, seconds)
        else:
            assert name == "latency", name
            found[name] = 1000 * median_seconds(forward, device, seconds)
    if compile:
        torch.compiler.reset()
    return found


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def median_seconds(forward: Callable[[], Any], device: torch.device, at_least: float) -> float:
    """The median of a warmed-up pass, over so many seconds at least and never fewer than nine passes."""

    def one_pass() -> float:
        start = time.perf_counter()
        forward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(2):  # warm up: compilation, allocator, choice of kernels
        one_pass()
    times: list[float] = []
    while len(times) < 9 or sum(times) < at_least:
        times.append(one_pass())
    return statistics.median(times)


def _peak(forward: Callable[[], Any], device: torch.device) -> int:
    """Bytes that `forward` needs at once, above those that are in use when it begins."""
    forward()  # compilation, and workspaces that CUDA's libraries make once for a process
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        forward()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says on stderr that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward()
    result: Any = profiler.profiler
    changes = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    used = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        used += change.nbytes()  # negative where memory is given back
        peak = max(peak, used)
    return peak
