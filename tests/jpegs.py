"""JPEGs that look like photographs: smooth colours, shapes with edges, texture of two sizes."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def photo(width: int, height: int, seed: int, texture: float = 16) -> Image.Image:
    """An RGB image; with `texture` 16 one of 500 x 375 takes about 100 kB at quality 92."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width, 0:1][:2] / max(width, height)
    waves = rng.normal(0, 6, (3, 3))
    smooth = 128 + 60 * np.sin(waves[0] * x + waves[1] * y + waves[2])
    image = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        left, top, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.02, 0.3) * width
        kind = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        kind((left, top, left + size, top + 0.7 * size), fill=tuple(rng.integers(0, 256, 3).tolist()))
    fine = 0.6 * rng.normal(size=(height, width, 1)) + 0.3 * rng.normal(size=(height, width, 3))
    small = Image.fromarray(rng.normal(size=(height // 3 + 1, width // 3 + 1)).astype(np.float32))
    coarse = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7))) + texture * (fine + coarse)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of an image file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
