"""Images a second of a model, measured."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn


@torch.inference_mode()
def measure_throughput(
    model: nn.Module,
    image_size: int,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.5,
) -> float:
    """Images a second of `model` in inference on `device`: the median of synchronised, warmed-up passes.

    Passes go on for at least `seconds`, and for at least nine times.
    """
    model = model.to(device=device, dtype=dtype).eval()
    images = torch.randn(batch_size, 3, image_size, image_size, device=device, dtype=dtype)

    def one_pass() -> float:
        start = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start

    for _ in range(2):  # warm up: allocator, choice of kernels
        one_pass()
    times: list[float] = []
    while len(times) < 9 or sum(times) < seconds:
        times.append(one_pass())
    return batch_size / statistics.median(times)
