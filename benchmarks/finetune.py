"""What a start from an extracted model is worth: three epochs from there, and three from scratch, on digits.

    python benchmarks/finetune.py FOLDER

A supernet of the quickstart is trained on the digits 0 to 4, one architecture is extracted from it, and both learn the
digits 5 to 9, which the supernet has never seen. Means and standard deviations of the test accuracy over three seeds.
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

SEEDS, EPOCHS = 3, 3


def write_digits(folder: Path) -> None:
    digits = load_digits()
    rows = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    for part, chosen in zip(("train", "test"), rows, strict=True):
        for row in chosen:
            label = int(digits.target[row])
            file = folder / ("low" if label < 5 else "high") / part / str(label) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] / 16 * 255).round().astype(np.uint8)).save(file)


def run(folder: Path, file: str, name: str, digits: str, *overrides: str) -> None:
    data = [f"data.{part}={folder}/{digits}/{part}" for part in ("train", "test")]
    stages.run(recipe.load(file, [f"output={folder}", f"name={name}", *data, "data.workers=0", *overrides]))


def main(folder: Path) -> None:
    write_digits(folder)
    run(folder, "quickstart", "low", "low", "stages=[supernet]", "supernet.epochs=24")
    shape = recipe.load("quickstart").space.corner(-1, 4)
    (folder / "shape.yaml").write_text(shape.to_yaml())
    extract(folder / "low", str(folder / "shape.yaml"), folder / "extracted")
    schedule = [f"retrain.epochs={EPOCHS}", "retrain.warmup_epochs=0.5", "retrain.lr=1e-3"]
    ways = {
        "fine-tuned": [f"retrain.init={folder}/extracted", "retrain.head_epochs=0"],
        "fine-tuned, the classifier alone in the first epoch": [
            f"retrain.init={folder}/extracted",
            "retrain.head_epochs=1",
        ],
        "from scratch": ["retrain.init=scratch", f"retrain.architecture={folder}/shape.yaml", "retrain.head_epochs=0"],
    }
    for number, (way, overrides) in enumerate(ways.items()):
        found = []
        for seed in range(SEEDS):
            name = f"way{number}_seed{seed}"
            run(folder, "finetune", name, "high", f"seed={seed}", *schedule, *overrides)
            found.append(json.loads((folder / name / "evaluation.json").read_text())["found"]["top1"])
        print(f"RESULT {way}: {statistics.mean(found):.1f} +- {statistics.stdev(found):.1f} ({found})", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
