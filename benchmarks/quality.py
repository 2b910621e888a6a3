"""Does the search find better networks? Judges a change of supernet or search by the table of truth.

    python benchmarks/quality.py [--change supernet.epochs=24 ...] [--seeds 3] [--first-seed 0] [--no-search]
    python benchmarks/quality.py --show

For each seed: trains the supernet of `quality/space.yaml` with the changes, scores the architectures of
`quality/truth.json` in it, searches it, and trains what it found alone, as those of the table were. Prints Kendall's
tau with the table and the regret (points lost by taking the favourite of the random architectures), by top-1, by loss
and as trials correct them, what the found one has and, where there are trials, the best of these, which is what so many
trainings find by luck, and CPU seconds. Each seed adds a line to
`quality/results.jsonl`, which `--show` prints as a table of means and standard deviations; the same command does only
what is not there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from vitas import recipe
from vitas.data import decoded
from vitas.data.device import DeviceImages, stratified
from vitas.data.sources import open_splits
from vitas.evolve.correction import Correction, Smoothing
from vitas.evolve.ranking import regret
from vitas.evolve.scoring import Scorer
from vitas.models import saved
from vitas.models.supernet import Supernet
from vitas.recipe import Recipe
from vitas.spaces.architecture import Architecture

HERE = Path(__file__).parent / "quality"
sys.path.insert(0, str(HERE))

import truth  # noqa: E402  the folder is no package

RESULTS, RUNS = HERE / "results.jsonl", HERE / "runs"
COLUMNS = [f"{figure} {name}" for figure in ("tau", "regret") for name in ("top1", "loss", "corrected")]
COLUMNS += ["top-1 in supernet", "CPU s", "found", "best trial", "search CPU s"]
"""Of the printed table."""
FOUND_SEEDS = 3
"""Trainings of a found architecture; none of their seeds is one by which the fair uniform ViT was chosen (0)."""


def cpu_seconds() -> float:
    """Of this process and of those it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def settings_of(changes: list[str], seed: int) -> tuple[Recipe, str]:
    """The recipe of a run, and a key of all that it says besides its seed."""
    data = [f"data.{part}={truth.FOLDER / part}.parquet" for part in ("train", "test")]
    settings = recipe.load(HERE / "space.yaml", [*data, *changes, f"output={RUNS}"])
    told = settings.model_dump_json(exclude={"seed": True, "output": True, "data": {"train", "test"}})
    key = hashlib.sha256(told.encode()).hexdigest()[:8]
    return settings.model_copy(update={"seed": seed, "name": f"quality-{key}-{seed}"}), key


def do(settings: Recipe, *stages: str) -> None:
    """Does stages of a run, as a user would."""
    file = RUNS / f"{settings.name}.yaml"
    RUNS.mkdir(exist_ok=True)
    file.write_text(recipe.dump(settings))
    subprocess.run([sys.executable, "-m", "vitas", "run", file, f"stages=[{','.join(stages)}]"], check=True)


def scores(settings: Recipe, architectures: list[Architecture]) -> dict[str, list[float]]:
    """Top-1 in percent and loss in nats of each architecture in the trained supernet, on the hold-out, by its key."""
    how = {"sharing": settings.supernet.sharing, "attention": settings.supernet.attention}
    net = Supernet(settings.space, truth.CLASSES, **how)
    saved.load_weights(net, settings.folder / "supernet" / "model.safetensors")
    split = open_splits(settings.data)[0].hold_out(settings.data.holdout, settings.seed)[1]
    folder = settings.folder / "cache" / f"holdout_{settings.space.image_size}"
    images = decoded.decoded(split, folder, settings.space.image_size, settings.data, write=True)
    on_device = DeviceImages(
        images, torch.device("cpu"), mean=settings.data.mean, std=settings.data.std, order=stratified(images.labels)
    )
    scorer = Scorer(net.eval(), on_device, batch_size=64, precision="no")
    found = {}
    for architecture in architectures:
        line = scorer.score(_in_space(architecture, settings), 0, len(scorer.slices))
        hits, loss = (sum(map(sum, line[name].values())) for name in ("hits", "loss"))
        scored = len(images.labels) * len(net.sides)
        found[architecture.key] = [round(100 * hits / scored, 3), round(loss / scored, 4)]
    return found


def _in_space(architecture: Architecture, settings: Recipe) -> Architecture:
    """The same network as the space of a run has it: with `identity: tail` its blocks are the first ones."""
    if settings.space.identity != "tail":
        return architecture
    skipped = (None,) * (len(architecture.blocks) - len(architecture.kept))
    return architecture.model_copy(update={"blocks": (*architecture.kept, *skipped)})


def judge(settings: Recipe, *, search: bool) -> dict[str, Any]:
    """The figures of a run."""
    began = cpu_seconds()
    do(settings, "supernet")
    line: dict[str, Any] = {"supernet_seconds": round(cpu_seconds() - began)}
    line["scores"] = scores(settings, [net.architecture for net in truth.random_nets(truth.settings())])
    if search:
        began = cpu_seconds()
        do(settings, "evolve")
        line["search_seconds"] = round(cpu_seconds() - began)
        folder = settings.folder / settings.evolve.name
        if settings.evolve.trials:
            told = json.loads((folder / "trials.json").read_text())["trials"]
            line["corrected"] = corrected(line["scores"], told)
            luckiest = min(told, key=lambda one: one["loss"])
            line["best_trial"] = alone(Architecture.model_validate(luckiest["architecture"]))
        elif settings.evolve.smooth:
            told = json.loads((folder / "smoothing.json").read_text())["architectures"]
            line["corrected"] = smoothed(line["scores"], told)
        best = Architecture.from_yaml(folder / "best.yaml")
        line |= {"found": best.key, "in_words": best.in_words, "each": alone(best)}
    return line


def corrected(scores: dict[str, list[float]], trials: list[dict[str, Any]]) -> dict[str, float]:
    """The loss that a search with these trials foretells of each architecture of the table, by its key."""
    correction = Correction(
        [Architecture.model_validate(one["architecture"]) for one in trials],
        np.array([one["supernet_loss"] for one in trials]),
        np.array([one["loss"] for one in trials]),
    )
    return _of_table(correction, scores)


def smoothed(scores: dict[str, list[float]], scored: list[dict[str, Any]]) -> dict[str, float]:
    """The smoothed loss that a search goes by of each architecture of the table, by its key."""
    smoothing = Smoothing(
        [Architecture.model_validate(one["architecture"]) for one in scored],
        np.array([one["loss"] for one in scored]),
    )
    return _of_table(smoothing, scores)


def _of_table(correct: Correction | Smoothing, scores: dict[str, list[float]]) -> dict[str, float]:
    nets = [net.architecture for net in truth.random_nets(truth.settings())]
    values = correct(nets, np.array([scores[net.key][1] for net in nets]))
    return {net.key: round(float(value), 4) for net, value in zip(nets, values, strict=True)}


def alone(architecture: Architecture) -> list[float]:
    """Top-1 of an architecture trained as those of the table were."""
    chosen = truth.settings()
    train, test = truth.load(chosen)
    models = (truth.train(architecture, chosen.retrain, train, seed) for seed in range(1, 1 + FOUND_SEEDS))
    return [round(truth.test(model, test)["top1"], 2) for model in models]


def figures(line: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of `COLUMNS` that a line has: how well its scores rank the architectures of the table, and others."""
    true, each = np.array([row["top1"] for row in rows]), np.array([row["each"] for row in rows])
    top1, loss = np.array([line["scores"][row["key"]] for row in rows]).T
    rankings = {"top1": top1, "loss": -loss}
    if "corrected" in line:
        rankings["corrected"] = -np.array([line["corrected"][row["key"]] for row in rows])
    found = {f"tau {name}": float(kendalltau(values, true).statistic) for name, values in rankings.items()}
    found |= {f"regret {name}": regret(values, each) for name, values in rankings.items()}
    found |= {"top-1 in supernet": float(top1.mean()), "CPU s": line["supernet_seconds"]}
    if "best_trial" in line:
        found["best trial"] = float(np.mean(line["best_trial"]))
    if "each" in line:
        found |= {"found": float(np.mean(line["each"])), "search CPU s": line["search_seconds"]}
    return found


def lines() -> list[dict[str, Any]]:
    return [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def show(table: dict[str, Any]) -> None:
    """Means and standard deviations over seeds, a row for each set of changes."""
    rows = [row for row in table["rows"] if row["kind"] == "random"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}  # of one recipe: the settings of space.yaml may change
    for line in lines():
        if line["table"] == table["table"]:
            groups.setdefault((" ".join(line["changes"]) or "(none)", line["recipe"]), []).append(line)
    print("| changes | seeds | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    for (name, _), group in groups.items():
        each = [figures(line, rows) for line in group]
        values = [[found[column] for found in each if column in found] for column in COLUMNS]
        cells = [spread(known) if known else "" for known in values]
        print(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
    fair, random = table["fair_uniform"], table["random"]
    print(
        f"\nceiling of tau {table['ceiling']['tau_of_the_true_ranking']}; without a supernet: "
        + ", ".join(f"{name} {figure['tau']}" for name, figure in table["trivial"].items())
        + f"\nfair uniform ViT {fair['top1_after_seed_0'] if fair else '?'}, random: median {random['median']}, "
        f"best of 20 {random['best_of_20_on_average']}, best {random['highest']}"
    )


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3g}" + (f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--change", metavar="key=value", nargs="+", default=[], help="settings of the recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, metavar="SEED")
    parser.add_argument("--no-search", action="store_true", help="only rank the architectures of the table")
    parser.add_argument("--show", action="store_true", help="train nothing")
    given = parser.parse_args()
    table = json.loads(truth.TABLE.read_text())
    if not given.show:
        chosen = truth.settings()
        key = truth.table_key(chosen, truth.load(chosen))
        if key != table["table"]:
            parser.error(f"{truth.TABLE} is of other images, space, budget or schedule: make it anew with truth.py")
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            settings, made_with = settings_of(given.change, seed)
            about = {"changes": given.change, "recipe": made_with, "table": key, "seed": seed}
            done = [line for line in lines() if about.items() <= line.items()]
            if not any("each" in line or given.no_search for line in done):
                line = about | judge(settings, search=not given.no_search)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    show(table)


if __name__ == "__main__":
    main()
