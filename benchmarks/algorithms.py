"""Which algorithm finds the best candidates, at the same count of evaluations: on digits, in one trained supernet.

    python benchmarks/algorithms.py [--seeds 5] [--population 16] [--generations 8] [--output DIR] [--json FILE]

All searches share one supernet and its scores. The best score of a search is that of the supernet, on a hold-out; the
share of all candidates, whoever found them, that it beats says how much that is worth.
"""

import argparse
import contextlib
import io
import json
import statistics
from pathlib import Path

import numpy as np

from vitas import recipe
from vitas.files import read_lines
from vitas.runs import stages

ALGORITHMS = ("nsga2", "regularized", "random")


def run(folder: Path, *overrides: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        stages.run(recipe.load("quickstart", [f"output={folder}", "data.holdout=0.4", "data.workers=0", *overrides]))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--population", type=int, default=16)
    arguments.add_argument("--generations", type=int, default=8)
    arguments.add_argument("--output", type=Path, default=Path("runs/algorithms"))
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    run(options.output, "stages=[supernet]")
    size = [f"evolve.population={options.population}", f"evolve.generations={options.generations}"]
    best: dict[str, list[float]] = {algorithm: [] for algorithm in ALGORITHMS}
    seen: dict[str, float] = {}
    for algorithm in ALGORITHMS:
        for seed in range(options.seeds):
            name = f"{algorithm}_{seed}_{options.population}x{options.generations}"
            run(options.output, "stages=[evolve]", f"name={name}", f"supernet.from={options.output}/quickstart",
                f"seed={seed}", f"evolve.algorithm={algorithm}", *size)  # fmt: skip
            found = read_lines(options.output / name / "evolution" / "candidates.jsonl")
            assert len({entry["key"] for entry in found}) == options.population * options.generations
            seen |= {entry["key"]: entry["top1"] for entry in found}
            best[algorithm].append(max(entry["top1"] for entry in found))
    everyone = np.array(list(seen.values()))
    count = options.population * options.generations
    print(
        f"{options.seeds} seeds, {count} evaluations each; {len(everyone):,} candidates in all, {everyone.mean():.2f} %"
    )
    print(f"{'':<13}{'best top-1 %':>13}{'spread':>8}{'lowest':>8}{'highest':>8}  beats of all candidates")
    rows = {}
    for algorithm, values in best.items():
        beaten = statistics.fmean(float((everyone < value).mean()) for value in values)
        rows[algorithm] = {"mean": statistics.fmean(values), "spread": statistics.stdev(values), "best": values,
                           "beats": beaten}  # fmt: skip
        print(f"{algorithm:<13}{rows[algorithm]['mean']:>13.2f}{rows[algorithm]['spread']:>8.2f}{min(values):>8.2f}"
              f"{max(values):>8.2f}  {100 * beaten:.1f} %")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"evaluations": count, "algorithms": rows}, indent=1))


if __name__ == "__main__":
    main()
