"""Decoded images to what models train on and are tested on: the transforms, by timm."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor

from vitas.sections import Augment, Data


class TrainTransform:
    """Timm's training transform, of uint8 images (3, h, w) to uint8 (3, image_size, image_size), normalised later.

    Every draw is timm's, in timm's order: a crop, a flip, a policy or jitter, an erased rectangle. The crop alone is
    resized, by torch, which differs from Pillow by rounding; a policy sees it as a Pillow image. An erased rectangle
    is filled with timm's normal noise as pixels: times std, plus mean, rounded, cut off at 0 and 255. That is done here
    rather than on the device, so that it is the same on every device.
    """

    def __init__(self, image_size: int, augment: Augment, data: Data) -> None:
        parts: Any = create_transform(
            (3, image_size, image_size),
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,  # pyright: ignore[reportArgumentType]
            auto_augment=augment.auto_augment,
            interpolation="bicubic",
            mean=tuple(data.mean),
            separate=True,
        )
        self.image_size = image_size
        (self.crop, *self.flips), self.policies = parts[0].transforms, parts[1].transforms
        self.erasing = _Erasing(augment.erasing, image_size, data) if augment.erasing else None

    def __call__(self, image: Tensor) -> Tensor:
        """Draws from `random`, numpy and torch's CPU generator."""
        (top, left, height, width), mirrored = self.drawn(*image.shape[1:])
        image = resized(image[:, top : top + height, left : left + width], self.image_size)
        if mirrored:
            image = image.flip(-1)
        if self.policies:
            seen = Image.fromarray(image.permute(1, 2, 0).numpy())
            for policy in self.policies:
                seen = policy(seen)
            image = torch.from_numpy(np.array(seen)).permute(2, 0, 1)
        for where, noise in self.erased():
            image[where] = noise
        return image

    def drawn(self, height: int, width: int) -> tuple[tuple[int, int, int, int], bool]:
        """The next crop of an image of this size, as top, left, height and width, and whether it is mirrored."""
        box = self.crop.get_params(torch.empty(3, height, width, device="meta"), self.crop.scale, self.crop.ratio)
        row = torch.arange(2).view(1, 1, 2)
        for flip in self.flips:
            row = flip(row)
        return box, bool(row[0, 0, 0])

    def erased(self) -> list[tuple[Any, Tensor]]:
        """Where (3, image_size, image_size) pixels are erased next, and the uint8 noise that takes their place."""
        return self.erasing() if self.erasing else []


def resized(image: Tensor, size: int) -> Tensor:
    """(3, h, w) to (3, size, size), both uint8, as Pillow's bicubic `resize`, but for rounding: two levels at most."""
    packed = image[None].contiguous(memory_format=torch.channels_last)  # what torch's kernel for bytes is fast at
    return F.interpolate(packed, (size, size), mode="bicubic", antialias=True)[0]


class _Erasing:
    """Timm's random erasing of uint8 images: timm draws the rectangle and the noise, and sets it here."""

    dtype = torch.float32
    """What the noise is drawn in."""

    def __init__(self, probability: float, image_size: int, data: Data) -> None:
        self.shape = torch.Size((3, image_size, image_size))
        self.erase = RandomErasing(probability, mode="pixel", device="cpu")
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))

    def __call__(self) -> list[tuple[Any, Tensor]]:
        self.patches: list[tuple[Any, Tensor]] = []
        self.erase(self)
        return self.patches

    def size(self) -> torch.Size:
        return self.shape

    def __setitem__(self, where: Any, noise: Tensor) -> None:
        self.patches.append((where, noise.mul_(self.std).add_(self.mean).mul_(255).round_().clamp_(0, 255).byte()))


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
