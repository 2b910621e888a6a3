"""Settings that fit the images and the space: for `vitas.search` and `vitas new`, which are told neither."""

from __future__ import annotations

import math
from typing import Any

import torch

from vitas.data.batches import allowed_cores
from vitas.spaces.named import NAMED
from vitas.spaces.space import SearchSpace

STEPS = 20
"""An epoch has about so many steps, unless the batch would then be above `LARGEST` or below `SMALLEST`."""
SMALLEST, LARGEST = 8, 1024
HOLDOUT = 2000
"""Images that are enough to score candidates on."""
CANDIDATES, SMOOTH = 2000, 300
"""Architectures that a search scores, and random ones that it learns from before."""


def space_of(name: str, side: int) -> SearchSpace:
    """A ready space at the largest of its image sizes that images of this shorter side, in pixels, fill; or the least.

    Raises:
        ValueError: There is no such space.
    """
    sizes = NAMED[name].image_sizes if name in NAMED else ()
    size = max((size for size in sizes if size <= side), default=min(sizes, default=0))
    return SearchSpace.model_validate({"extends": name, "image_size": size})


def data(images: int, space: SearchSpace) -> dict[str, Any]:
    """Section `data` for so many training images: how many are held out, how they are cropped and read."""
    return {
        "holdout": round(min(0.2, max(0.04, HOLDOUT / images)), 3),
        "crop_pct": 0.875 if space.image_size > 96 else 1.0,
        "workers": workers(),
    }


def supernet(schedule: dict[str, Any]) -> dict[str, Any]:
    """The schedule for a supernet: at half the learning rate, for it learns less at that of a network alone."""
    return schedule | {"lr": schedule["lr"] / 2}


def search(scores: int = CANDIDATES + SMOOTH) -> dict[str, Any]:
    """Section `evolve` for so many scores: by the loss, smoothed, which found the better networks (docs/QUALITY.md)."""
    smooth = min(SMOOTH, scores // 4)
    candidates = scores - smooth
    population = max(8, min(50, round(math.sqrt(candidates))))
    generations = max(2, round(candidates / population))
    return {"population": population, "generations": generations, "objectives": ["loss"], "smooth": smooth}


def workers() -> int:
    """Processes that read images, for each rank: on CPUs half of the cores, for the others train."""
    cores, gpus = allowed_cores(), torch.cuda.device_count()
    return max(1, min(8, cores // gpus) if gpus else cores // 2)


def training(images: int, space: SearchSpace, epochs: float) -> dict[str, Any]:
    """What `supernet` and `retrain` share: a schedule of so many epochs over so many images.

    The learning rate falls with the width, and with the root of batches below 256 (`recipes/` agree with it: 1e-3 at
    width 384, 3e-3 at width 64 and batch 64).
    """
    batch = 2 ** int(math.log2(min(max(images / STEPS, SMALLEST), LARGEST)))
    lr = 0.384 / space.embed_dim.max * min(1.0, math.sqrt(batch / 256))
    smallest_crop = next((area for size, area in ((32, 0.6), (96, 0.3)) if space.image_size <= size), 0.08)
    return {
        "epochs": epochs,
        "warmup_epochs": round(min(5.0, epochs / 10), 3),
        "batch_size": batch,
        "lr": float(f"{lr:.1g}"),
        "augment": {"scale": [smallest_crop, 1.0]},
        "checkpoint_minutes": 2.0,
    }
