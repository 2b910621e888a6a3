"""The tables of docs/PERFORMANCE.md: does each benchmark in turn, keeps what it found, and writes the tables from that.

    OMP_NUM_THREADS=1 python benchmarks/run.py FOLDER [--before CHECKOUT] [--device cuda]
    python benchmarks/run.py FOLDER --show

FOLDER holds a JSON of each; what is there is not done again: another machine, code or checkout wants another folder.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
SIZES = {"cpu": (16, 32), "cuda": (128, 512)}
"""Images of a step of the paper's spaces."""


def runs(device: str, before: Path | None) -> dict[str, list[str]]:
    """The command of each benchmark, by its name."""
    other = ["--before", str(before)] if before else []
    quickstart = before / "recipes" / "quickstart.yaml" if before else "quickstart"  # one that both know
    small, large = SIZES[device]
    found = {}
    for precision, name in PRECISIONS.items():
        for batch in (small, large):
            found[f"step: search_1G, {batch} images, {precision}"] = [
                "step.py", "--recipe", "search_1G", "--batch", str(batch), "--precision", name,
                "--steps", "31" if batch == small else "15", *other,
            ]  # fmt: skip
        for compiled in ([], ["--compile"]):
            found[f"retrain: {precision}{', compiled' * bool(compiled)}"] = [
                "retrain.py", "--batch", str(8 if device == "cpu" else small), "--precision", name, *compiled,
                "--steps", "15", *other,
            ]  # fmt: skip
    found["step: quickstart, 64 images, float32"] = [
        "step.py", "--recipe", str(quickstart), "--classes", "10", "--batch", "64", "--steps", "200",
        "--ways", "plain,vitas", *other,
    ]  # fmt: skip
    return found


def read(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The figures of the benchmarks of a kind that are done, by what was measured."""
    files = sorted(folder.glob(f"{kind}-*.json"))
    return {file.stem.partition("-")[2]: json.loads(file.read_text()) for file in files}


def steps(found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of a supernet's step."""
    columns = ["time of plain / ours", "time of before / ours", "of `torch.mm`'s rate", "images/s"]
    columns.append("memory: plain, before, ours")
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, run in found.items():
        ways = run["ways"]
        own, before = ways["vitas"], ways.get("before", {})
        low, high = own["x plain, 10 to 90 %"]
        rate = f"{own['of mm']:.0%}" + (f" (before: {before['of mm']:.0%})" if before else "")
        memory = ", ".join(f"{ways[way]['memory'] / 1e6:,.0f}" for way in ("plain", "before", "vitas") if way in ways)
        times = f"{own['x plain']:.2f} ({low:.2f} to {high:.2f}) | " + (f"{own['x before']:.2f}" if before else "")
        lines.append(f"| {name} | {times} | {rate} | {own['images/s']:,.1f} | {memory} MB |")
    return lines


def retrainings(found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of a retraining's step: multiply-adds a second against timm's own network."""
    names = ("deit_ti", "vitas_c", "vitas_b")
    lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " |", "|---|" + "---:|" * len(names)]
    for name, run in found.items():
        cells = (f"{run['ways'][model]['x timm per MAC']:.2f}" for model in names)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to measure, too")
    parser.add_argument("--device", choices=list(SIZES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, (script, *options) in ({} if given.show else runs(given.device, given.before)).items():
        kind, _, what = name.partition(": ")
        file = given.folder / f"{kind}-{what}, {given.device}.json"
        if not file.is_file():
            print(f"\n{name}", flush=True)
            command = [sys.executable, str(HERE / script), *options, "--device", given.device, "--json", str(file)]
            subprocess.run(command, check=True)
    print("\n".join(["", *steps(read(given.folder, "step")), "", *retrainings(read(given.folder, "retrain"))]))


if __name__ == "__main__":
    main()
