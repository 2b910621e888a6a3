"""What a training sees first, as a picture, and how fast one core reads it: for `vitas check`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitas.config import UserError
from vitas.data import augment, batches
from vitas.data.batches import Batch
from vitas.data.plan import make_plan
from vitas.data.splits import Split
from vitas.files import read_lines
from vitas.models import registry
from vitas.recipe import Recipe
from vitas.report import tracking
from vitas.runs.found import choices, search_needed
from vitas.sections import Data, Training
from vitas.train.alone import one_thread

MOST = 128
"""Images of a picture."""
SIDE = 224
"""Pixels of the square in which an image is shown as it is."""
SECONDS = 2.0
"""For which reading is measured, or a little longer."""


def check(settings: Recipe, file: Path, images: int) -> str:
    """The stage that pictures are of.

    Raises:
        UserError: No stage trains; or the number of images or the name of the file cannot be.
    """
    if not 1 <= images <= MOST:
        raise UserError(f"--images: expected 1 to {MOST}, got {images}")
    if file.suffix.lower() != ".png":
        raise UserError(f"--output: expected a .png file, got {file}")
    stages = [stage for stage in ("supernet", "retrain") if stage in settings.stages]
    if settings.supernet.trained_in is not None:
        stages = [stage for stage in stages if stage != "supernet"]
    if not stages:
        raise UserError(f"--output: no pictures: none of the stages {', '.join(settings.stages)} trains")
    return stages[0]


def facts(settings: Recipe, split: Split, ranks: int, file: Path, images: int) -> dict[str, Any]:
    """Draws the images that the first training starts with, on rank 0, and measures how fast such images are read.

    Args:
        settings: The recipe.
        split: Its training images.
        ranks: Processes of the run.
        file: The PNG.
        images: How many are drawn: the first of step 0, and those of the steps after it if it has no more.

    Raises:
        UserError: See `check`.
    """
    stage, data = check(settings, file, images), settings.data
    training: Training = getattr(settings, stage)
    if stage == "supernet":
        split, _ = split.hold_out(data.holdout, settings.seed)
    plan, _ = make_plan(training, len(split.indices), stage, ranks)
    endless = replace(plan, stop=plan.stop + 10_000)  # a short training may be over before its reading is measured

    def read(transform: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
        how: dict[str, Any] = {"readers": data.readers, "shuffle_buffer": data.shuffle_buffer, "pin_memory": False}
        return iter(batches.loader(split, transform, endless, seed=settings.seed, workers=0, **how))

    with one_thread(torch.device("cpu")):  # as in a worker
        before = list(islice(read(_letterboxed), -(-images // plan.micro_batch)))
        reading = read(augment.TrainTransform(_image_size(settings, stage), training.augment, data))
        after = list(islice(reading, len(before)))
        rate = _rate(reading)
    captions = [split.classes[label] for batch in after for label in batch.labels.tolist()][:images]
    mixed = [f"{name} {alpha:g}" for name in ("mixup", "cutmix") if (alpha := getattr(training.augment, name))]
    title = f"{settings.name}: what {stage} sees first" + (f", before {' and '.join(mixed)}" if mixed else "")
    from vitas.report import grid  # matplotlib takes most of a second

    grid.draw(file, _rows(before, data)[:images], _rows(after, data)[:images], captions, title)
    return {"pictures": f"{file}: {len(captions)} images of {stage}"} | _speeds(settings, stage, rate, plan.stop, ranks)


def shown(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (B, 3, H, W), uint8 or normalised floats, as uint8."""
    if images.dtype == torch.uint8:
        return images
    scale, shift = (torch.tensor(values).view(3, 1, 1) * 255 for values in (std, mean))
    return (images * scale + shift).round().clamp(0, 255).to(torch.uint8)


def _rows(some: list[Batch], data: Data) -> np.ndarray:
    """(N, H, W, 3) uint8."""
    return torch.cat([shown(batch.images, data.mean, data.std) for batch in some]).permute(0, 2, 3, 1).numpy()


def _image_size(settings: Recipe, stage: str) -> int:
    known = [registry.find(name) for name in choices(settings).values() if not search_needed(name)]
    return known[0].image_size if stage == "retrain" and known else settings.space.image_size


def _letterboxed(image: Tensor) -> Tensor:
    """(3, h, w) as a white square with the whole image in its middle, both uint8; small images have large pixels."""
    height, width = (max(1, round(side * SIDE / max(image.shape[1:]))) for side in image.shape[1:])
    larger: dict[str, Any] = {"mode": "nearest-exact"}
    smaller: dict[str, Any] = {"mode": "bicubic", "antialias": True}
    how = larger if max(image.shape[1:]) < SIDE else smaller
    square = torch.full((3, SIDE, SIDE), 255, dtype=torch.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[:, top : top + height, left : left + width] = F.interpolate(image[None], (height, width), **how)[0]
    return square


def _rate(reading: Iterator[Batch]) -> float:
    """Images a second."""
    images, began = 0, time.perf_counter()
    for batch in reading:
        images += len(batch.images)
        if time.perf_counter() - began > SECONDS:
            break
    return images / (time.perf_counter() - began)


def _speeds(settings: Recipe, stage: str, rate: float, steps: int, ranks: int) -> dict[str, str]:
    """What a core was measured to read, and what follows from it; no more."""
    training: Training = getattr(settings, stage)
    workers = max(1, min(settings.data.workers, batches.allowed_cores()))
    hours = steps * training.batch_size / (rate * workers * ranks) / 3600
    least = f"{hours:,.1f} h" if hours >= 1 else f"{max(1, round(hours * 60))} min"
    found = {
        "read_by_a_core": f"{rate:,.0f} images/s, measured in one process",
        "read_by_a_rank": f"{rate * workers:,.0f} images/s at most, by {workers} worker(s); {stage}: {least} or more",
    }
    lines = read_lines(settings.folder / "metrics.jsonl")
    speeds = [line[tracking.IMAGES_PER_SECOND] for line in lines
              if line.get(tracking.STAGE) == stage and tracking.IMAGES_PER_SECOND in line]  # fmt: skip
    if speeds:
        speed = statistics.median(speeds)
        found["trained_so_far_at"] = f"{speed:,.0f} images/s, which {speed / rate:,.1f} such cores read"
    return found
