"""Does smoothing find better networks on other images, too? Letters of 21 fonts, turned and under clutter.

    OMP_NUM_THREADS=1 python benchmarks/letters.py FOLDER [--seeds 3]
    python benchmarks/letters.py FOLDER --show

Draws 16,000 images with the fonts that matplotlib brings, and for each seed trains a supernet of the ready space `tiny`
as `vitas.search` does, searches it by the loss and with `evolve.smooth=300`, and trains what each search found alone,
with as many seeds. Beside them random architectures of the budget. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import vitas
from vitas.evolve.evolution import first_generation
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget, calibrate_skip
from vitas.spaces.space import SearchSpace

SIZE, TRAIN, TEST = 32, 12_000, 4_000
CLASSES = string.ascii_uppercase + "23456789"
FONTS = [f"DejaVu{kind}{style}" for kind, styles in {
    "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"), "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
}.items() for style in styles]  # fmt: skip
FONTS += ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"]
FONTS += ["cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"]
BUDGET = {"macs": [2.0e6, 3.0e6]}
SEARCH = {"population": 32, "generations": 12, "objectives": ["loss"]}
SEARCHES = {"loss": {}, "smooth": {"smooth": 300}}
HOW: dict[str, Any] = {"batch_size": 64, "augment": {"scale": [0.8, 1.0], "hflip": 0.0}, "data": {"workers": 0}}
SUPERNET = {"lr": 1.5e-3, "in_budget": 1.0}
SUPERNET_EPOCHS, EPOCHS, ALONE, RANDOM = 20, 10, 2, 10


def draw(letter: str, font: str, rng: np.random.Generator) -> Image.Image:
    """A light letter, with strokes of none across it, on a ground that is redder below and greener to the right.

    A patch so shows where it is (see `quality/glyphs.py`).
    """
    ttf = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    ink = Image.new("L", (SIZE, SIZE))
    place = tuple(SIZE / 2 + rng.uniform(-2, 2, 2))
    ImageDraw.Draw(ink).text(
        place, letter, fill=255, font=ImageFont.truetype(str(ttf), int(rng.integers(18, 27))), anchor="mm"
    )
    ink = ink.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    strokes = ImageDraw.Draw(ink)
    for _ in range(2):
        strokes.line([tuple(rng.uniform(0, SIZE, 2)) for _ in range(2)], fill=int(rng.integers(100, 255)))
    ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.9)))
    slope, level = np.linspace(-0.2, 0.2, SIZE), np.zeros((SIZE, SIZE))
    ground = 0.3 + np.stack([level + slope[:, None], level + slope, level], axis=2)
    colour = ground + rng.uniform(0.3, 0.6) * np.asarray(ink)[..., None] / 255 + rng.normal(0, 0.05, ground.shape)
    return Image.fromarray((255 * np.clip(colour, 0, 1)).round().astype(np.uint8))


def images(folder: Path) -> tuple[Path, Path]:
    """The parquet files of the training and the test images, drawn if they are not there."""
    files = folder / "train.parquet", folder / "test.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (file, count) in enumerate(zip(files, (TRAIN, TEST), strict=True)):
        if not file.is_file():
            rng = np.random.default_rng(number)
            labels = rng.permutation(np.arange(count) % len(CLASSES)).tolist()
            drawn = [draw(CLASSES[label], rng.choice(FONTS), rng) for label in labels]
            features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
            datasets.Dataset.from_dict({"image": drawn, "label": labels}, features=features).to_parquet(file)
    return files


def alone(folder: Path, architecture: Architecture) -> list[float]:
    """Top-1 of an architecture trained alone, with each seed."""
    train, test = images(folder)
    found = []
    for seed in range(ALONE):
        output = folder / "alone" / f"{architecture.key}-{seed}"
        result = vitas.retrain(architecture, train, test, output=output, epochs=EPOCHS, seed=seed, **HOW)
        found.append(round(result.figures["found"]["top1"], 2))
    return found


def random_ones() -> list[Architecture]:
    """Random architectures of the budget."""
    space, budget = SearchSpace.model_validate({"extends": "tiny", "image_size": SIZE}), Budget.model_validate(BUDGET)
    skip = calibrate_skip(space, budget, len(CLASSES))
    genomes = first_generation(space, budget, len(CLASSES), RANDOM, seed=0, skip=skip)
    return [space.decode(genome) for genome in genomes]


def measure(folder: Path, seeds: int) -> None:
    """Adds a line for each search, and for each random architecture, that is not there."""
    train, test = images(folder)
    for seed in range(seeds):
        for name, settings in SEARCHES.items():
            if not any(line["kind"] == name and line["seed"] == seed for line in lines(folder)):
                result = vitas.search(
                    train, test, budget=BUDGET, output=folder / f"seed{seed}", epochs=SUPERNET_EPOCHS, seed=seed,
                    stages=["supernet", "evolve"], supernet=SUPERNET, evolve=SEARCH | {"name": name} | settings, **HOW,
                )  # fmt: skip
                add(folder, name, seed, result.best)
    for number, architecture in enumerate(random_ones()):
        if not any(line["kind"] == "random" and line["seed"] == number for line in lines(folder)):
            add(folder, "random", number, architecture)


def add(folder: Path, kind: str, seed: int, architecture: Architecture) -> None:
    line = {"kind": kind, "seed": seed, "key": architecture.key, "in_words": architecture.in_words}
    line["each"] = alone(folder, architecture)
    print(line, flush=True)
    with (folder / "letters.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "letters.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="train nothing")
    given = parser.parse_args()
    if not given.show:
        measure(given.folder, given.seeds)
    for kind in (*SEARCHES, "random"):
        means = [float(np.mean(line["each"])) for line in lines(given.folder) if line["kind"] == kind]
        if means:
            spread = f" ± {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""
            print(f"{kind}: {np.mean(means):.2f}{spread}, best {max(means):.2f}, of {len(means)}")


if __name__ == "__main__":
    main()
