"""A labelled data set made on the spot: glyphs of strokes under clutter, 24 pixels wide.

    python benchmarks/quality/glyphs.py [FOLDER] [--seed 0]

A class is a path of five strokes on a lattice of 3 x 3 nodes. In an image its nodes are moved, each by itself (the
hand) and a little all together (turn, slant, size, place); strokes of no class cross it. What tells classes apart is
fine (a stroke is 2 pixels wide) and spread over the whole image. The ground is redder to the bottom and greener to
the right: a patch shows where it is. Without that, positions, which start at zero, take some hundred steps to be
learnt, how many depends on the seed, and short trainings of one architecture end up to 30 points apart.

FOLDER gets `train.parquet` and `test.parquet`, which vitas reads as any others. Numpy alone draws, so a seed gives the
same images on every machine, but for rounding.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

SIZE, CLASSES, STROKES, CLUTTER = 24, 32, 5, 4
TRAIN, TEST = 24_000, 6_000
FOLDER = Path(__file__).parent / "data"


def paths(rng: np.random.Generator) -> np.ndarray:
    """(CLASSES, STROKES + 1) Lattice nodes that the strokes of each class join: no two classes share all strokes."""
    found: dict[frozenset[tuple[int, int]], list[int]] = {}
    while len(found) < CLASSES:
        path = [int(rng.integers(9))]
        while len(path) <= STROKES:
            row, column = divmod(path[-1], 3)
            near = [node for node in range(9) if max(abs(node // 3 - row), abs(node % 3 - column)) == 1]
            path.append(int(rng.choice(near)))
        strokes = frozenset(tuple(sorted(ends)) for ends in pairwise(path))
        if len(strokes) == STROKES:
            found.setdefault(strokes, path)
    return np.array(list(found.values()))


def draw(labels: np.ndarray, glyphs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, SIZE, SIZE) uint8 images of the classes `labels` (N,)."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (count, *shape))

    lattice = np.stack(np.divmod(np.arange(9), 3), axis=1) - 1.0
    nodes = lattice[glyphs[labels]] + rng.normal(0, 0.2, (count, STROKES + 1, 2))
    turn, slant, size = uniform(-0.1, 0.1), uniform(-0.1, 0.1), uniform(6.5, 8.0, 2)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.stack([cosine, -sine, sine + slant, cosine], axis=1).reshape(-1, 2, 2) * size[:, None, :]
    nodes = nodes @ matrix + SIZE / 2 - 0.5 + uniform(-0.5, 0.5, 1, 2)
    starts = uniform(0, SIZE, CLUTTER, 2)
    angles, lengths = uniform(0, 2 * np.pi, CLUTTER), uniform(4, 9, CLUTTER)
    ends = starts + lengths[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=2)
    starts, ends = np.concatenate([nodes[:, :-1], starts], axis=1), np.concatenate([nodes[:, 1:], ends], axis=1)

    pixels = np.stack(np.divmod(np.arange(SIZE * SIZE), SIZE), axis=1).astype(float)
    along = (ends - starts)[:, :, None]  # (N, strokes, 1, 2)
    offset = pixels - starts[:, :, None]  # (N, strokes, pixels, 2)
    part = np.clip((offset * along).sum(3) / (along**2).sum(3), 0, 1)[..., None]
    squared = ((offset - part * along) ** 2).sum(3)
    width = uniform(0.6, 1.0, 1, 1)
    ink = np.exp(-squared / (2 * width**2))
    ink[:, STROKES:] *= uniform(0.4, 1.0, CLUTTER, 1)
    ink = uniform(0.35, 0.6, 1, 1) * ink.max(1)[..., None]
    slope = np.stack([*(pixels / (SIZE - 1) - 0.5).T, np.zeros(SIZE * SIZE)], axis=1)  # (pixels, 3)
    ground = uniform(0.25, 0.35, 1, 3) + uniform(0.4, 0.6, 1, 3) * slope
    colour = ground + ink + rng.normal(0, 0.06, (count, SIZE * SIZE, 3))
    return (255 * np.clip(colour, 0, 1)).round().astype(np.uint8).reshape(-1, SIZE, SIZE, 3)


def make(seed: int = 0, *, train: int = TRAIN, test: int = TEST) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the parts `train` and `test`, as many of each class."""
    glyphs = paths(np.random.default_rng([seed, 0]))
    parts = {}
    for number, (part, count) in enumerate({"train": train, "test": test}.items(), start=1):
        rng = np.random.default_rng([seed, number])
        labels = rng.permutation(np.arange(count) % CLASSES)
        images = [draw(labels[start : start + 500], glyphs, rng) for start in range(0, count, 500)]
        parts[part] = (np.concatenate(images), labels)
    return parts


def write(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = datasets.ClassLabel(names=[f"glyph_{number:02}" for number in range(CLASSES)])
    features = datasets.Features(image=datasets.Image(), label=names)
    for part, (images, labels) in make(seed).items():
        columns = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{part}.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.seed)
