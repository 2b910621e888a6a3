"""What a start from an extracted model is worth: three epochs from there, and three from scratch.

    accelerate launch recipes/quickstart.yaml stages=[supernet] && python benchmarks/finetune.py runs/quickstart FOLDER

The largest architecture of patch 4 is extracted from the supernet, which was trained on handwritten digits. Both learn
these digits under other names, and so with a new classifier, from 20 images of each. Printed are mean and standard
deviation of the test accuracy over three seeds.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitas import recipe
from vitas.runs import stages
from vitas.runs.extract import extract

SEEDS, EPOCHS, OF_EACH = 3, 3, 20
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_digits(folder: Path) -> None:
    digits = load_digits()
    parts = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    for part, rows in zip(("train", "test"), parts, strict=True):
        for label, name in enumerate(NAMES):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            of_it = rows[digits.target[rows] == label]
            for row in of_it[:OF_EACH] if part == "train" else of_it:
                pixels = (digits.images[row] / 16 * 255).round().astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{row}.png")


def main(run: Path, folder: Path) -> None:
    write_digits(folder / "images")
    shape = recipe.load(run / "recipe.yaml").space.corner(-1, 4)
    (folder / "shape.yaml").write_text(shape.to_yaml())
    extract(run, str(folder / "shape.yaml"), folder / "extracted")
    ways = {
        "fine-tuned": [f"retrain.init={folder}/extracted", "retrain.head_epochs=0"],
        "from scratch": ["retrain.init=scratch", f"retrain.architecture={folder}/shape.yaml", "retrain.head_epochs=0"],
        "the classifier alone in the first epoch": [f"retrain.init={folder}/extracted", "retrain.head_epochs=1"],
    }
    common = [f"output={folder}", *(f"data.{part}={folder}/images/{part}" for part in ("train", "test"))]
    common += ["data.workers=0", "retrain.batch_size=20", f"retrain.epochs={EPOCHS}", "retrain.warmup_epochs=0.5"]
    for number, (way, overrides) in enumerate(ways.items()):
        found = []
        for seed in range(SEEDS):
            name = f"way{number}_seed{seed}"
            settings = [*common, f"name={name}", f"seed={seed}", "retrain.lr=1e-3", *overrides]
            stages.run(recipe.load("finetune", settings))
            found.append(json.loads((folder / name / "evaluation.json").read_text())["found"]["top1"])
        print(f"{way}: {statistics.mean(found):.1f} +- {statistics.stdev(found):.1f} %", flush=True)


if __name__ == "__main__":
    main(*(Path(word).resolve() for word in sys.argv[1:]))
