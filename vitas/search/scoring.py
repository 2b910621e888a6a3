"""Top-1 and top-5 of a model on decoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitas.data.decoded import Cached


@torch.inference_mode()
def correct(
    model: Callable[[Tensor], Tensor],
    images: Cached,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Counts right answers in this rank's part of the images: at the first guess, among the first five; and images.

    Summed over the ranks, (3,) float64 divided by its last number is top-1, top-5 and 1.
    """
    scale, shift = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (std, mean))
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for start in range(rank * batch_size, len(images.labels), world * batch_size):
        part = slice(start, start + batch_size)
        pixels = torch.from_numpy(images.images[part].copy()).to(device, non_blocking=True)
        labels = torch.from_numpy(images.labels[part]).to(device, non_blocking=True)
        logits = model((pixels.float() - shift) / scale)
        hits = logits.topk(min(5, logits.shape[-1])).indices == labels[:, None]
        total += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), torch.tensor(len(labels), device=device)])
    return total
