"""Images to tensors: the transforms of training and of test, by timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from vitas.sections import Augment, Data


def train_transform(image_size: int, augment: Augment, data: Data) -> Callable[[Image.Image], torch.Tensor]:
    """Timm's training transform: a random crop, flip, jitter or policy, normalised, erased; (3, H, W) float."""
    transform: Any = create_transform(
        (3, image_size, image_size),
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,  # pyright: ignore[reportArgumentType]
        auto_augment=augment.auto_augment,
        interpolation="bicubic",
        mean=tuple(data.mean),
        std=tuple(data.std),
        re_prob=augment.erasing,
        re_mode="pixel",
    )
    return transform


def preprocessing(image_size: int, data: Data) -> dict[str, Any]:
    """How test images become tensors, as the options of timm's `create_transform`: resize, centre crop, normalise."""
    return {
        "input_size": (3, image_size, image_size),
        "interpolation": "bicubic",
        "crop_pct": data.crop_pct,
        "crop_mode": "center",
        "mean": tuple(data.mean),
        "std": tuple(data.std),
    }
