"""The stage `rank`: does the supernet's score rank architectures as training each of them alone does?"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from vitas.data.device import even_parts
from vitas.data.plan import make_plan
from vitas.evolve import evolution, ranking, zero_cost
from vitas.evolve.correction import Smoothing
from vitas.evolve.evolution import CORRECTED, Entry
from vitas.evolve.store import Line
from vitas.files import write_atomically
from vitas.recipe import Recipe
from vitas.report import tracking
from vitas.report.tables import ranking_table
from vitas.report.terminal import fill, progress, say
from vitas.runs import trained
from vitas.runs.candidates import random_inside, scored_by
from vitas.runs.run import Run
from vitas.runs.trainings import Job, Trainings
from vitas.sections import Retraining
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture

POOL = 10
"""Architectures that are scored, for each that is trained."""
FIRST_SEED = 2**32
"""Seed of the pool of a recipe with seed 0: that of no search."""


def rank(run: Run) -> None:
    """Scores a pool of each budget, trains a sample of it; leaves `ranking.json` and `ranking.png`, prints a table."""
    recipe, main = run.recipe, run.accelerator.is_main_process
    supernet = trained.find(run, "stage rank")
    run.stop.words = "rank: stopped; what is done is saved, and the same command goes on"
    schedule, seeds = recipe.ranking_schedule, range(recipe.rank.seeds)
    holdout = run.cached(supernet.held_out, "holdout", recipe.space.image_size)
    test = run.cached(run.test, "test", recipe.space.image_size)
    with progress(
        "rank: scores", POOL * recipe.rank.sample * len(recipe.every_budget), "architecture", show=main
    ) as bar:

        def show(done: int, of: int) -> None:
            if run.stop:
                run.stop.leave()  # every score so far is in the store
            if pooled:
                fill(bar, done, of)

        pooled: list[Entry] = []
        candidates = scored_by(run, supernet, holdout, show)
        sizes = dict.fromkeys(recipe.every_budget, POOL * recipe.rank.sample)
        pools = random_inside(run, candidates, sizes, seed=FIRST_SEED, purpose="stage rank")
        pooled += [entry for pool in pools.values() for entry in pool]
        every = {entry["key"]: Architecture.model_validate(entry["architecture"]) for entry in pooled}
        scores = dict(zip(every, candidates.score(list(every.values()), 1.0), strict=True))
    trainings = Trainings(
        run,
        "rank",
        schedule=schedule,
        split=run.train,
        images=run.on_device(test),
        digest=test.digest,
        workers=candidates.workers,
        about=lambda architecture: {"dss": zero_cost.dss(architecture, run.num_classes)},
    )
    sampled = {
        name: spread(_smoothed([entry | scores[entry["key"]] for entry in pool]), recipe.rank.sample, trainings.trained)
        for name, pool in pools.items()
    }
    chosen = {entry["key"]: every[entry["key"]] for entries in sampled.values() for entry in entries}
    told = _in_words(run, schedule, [len(entries) for entries in sampled.values()], len(test.labels))
    run.say(f"rank: {told}")
    known = trainings.do([Job(architecture, seed) for architecture in chosen.values() for seed in seeds])
    if main:
        tables = [
            {"budget": name or None, **_compared(entries, known, seeds, recipe)} for name, entries in sampled.items()
        ]
        _tell(run, tables, {"schedule": told, "epochs": schedule.epochs, "supernet": supernet.checksum})
    run.accelerator.wait_for_everyone()


def _smoothed(pool: list[Entry]) -> list[Entry]:
    """The entries, each with its loss smoothed by all of them, as a search with `evolve.smooth` does it."""
    nets = [Architecture.model_validate(entry["architecture"]) for entry in pool]
    losses = np.array([entry["loss"] for entry in pool])
    values = Smoothing(nets, losses)(nets, losses).tolist()
    return [entry | {CORRECTED: value} for entry, value in zip(pool, values, strict=True)]


def spread(pool: list[Entry], count: int, trained: Set[str]) -> list[Entry]:
    """`count` entries of a pool, spread evenly over the ranks of their scores, the best and the worst among them.

    The pool is cut into parts by score; of each one is taken, that nearest to the middle which is in `trained`, so
    that a larger sample or another supernet has little to train anew, or else the middle one.
    """
    ranked = sorted(pool, key=lambda entry: (-entry["top1"], entry["loss"], entry["key"]))
    found = []
    for start, stop in even_parts(0, len(ranked), min(count, len(ranked))):
        middle = (start + stop) // 2
        known = [at for at in range(start, stop) if ranked[at]["key"] in trained]
        found.append(ranked[min(known, key=lambda at: abs(at - middle), default=middle)])
    return [ranked[0], *found[1:-1], ranked[-1]]


def _in_words(run: Run, schedule: Retraining, sampled: list[int], test_images: int) -> str:
    """What is trained: so many architectures of each budget."""
    settings, images = run.recipe.rank, len(run.train.indices)
    few, most = min(sampled), max(sampled)
    count = f"{most}" if few == most else f"{few} to {most}"
    plan, _ = make_plan(schedule, images, schedule.section, 1)
    return (
        f"{count} architectures{f' of each of {len(sampled)} budgets' if len(sampled) > 1 else ''}, each trained alone "
        f"with {settings.seeds} seed{'s' * (settings.seeds > 1)}: {schedule.epochs:g} epochs of {images:,} images, "
        f"{plan.stop:,} steps of {plan.batch_size}, lr {schedule.lr:g}; tested on {test_images:,} images"
    )


def _compared(entries: list[Entry], known: dict[tuple[str, int], Line], seeds: range, recipe: Recipe) -> dict[str, Any]:
    """The rankings of one budget, and the architectures behind them."""
    goes_by = {"top1": "supernet", "loss": "supernet_loss", CORRECTED: "supernet_smoothed"}
    objectives = recipe.evolve.objectives if recipe.evolve.trials else evolution.objectives(recipe.evolve)
    lines = [[known[entry["key"], number] for number in seeds] for entry in entries]
    scores = {
        "supernet": [entry["top1"] for entry in entries],
        "supernet_loss": [-entry["loss"] for entry in entries],
        "supernet_smoothed": [-entry[CORRECTED] for entry in entries],
        "macs": [entry["macs"] for entry in entries],
        "params": [entry["params"] for entry in entries],
        "dss": [one[0]["dss"] for one in lines],
    }
    top1 = np.array([[line["top1"] for line in one] for one in lines])
    found = ranking.compare(
        {name: np.array(values) for name, values in scores.items()},
        top1,
        seed=recipe.seed,
        judged=goes_by[evolution.quality(objectives)],
    )
    rows = [
        {"key": entry["key"], "supernet_top1": entry["top1"], "supernet_loss": entry["loss"]}
        | {name: entry[name] for name in cost.COSTS if name in entry}
        | {"dss": one[0]["dss"], "top1": [line["top1"] for line in one], "loss": [line["loss"] for line in one]}
        | {"architecture": entry["architecture"]}
        for entry, one in zip(entries, lines, strict=True)
    ]
    return found | {"architectures": rows}


def _tell(run: Run, tables: list[dict[str, Any]], made_with: dict[str, Any]) -> None:
    """The tables in a file, in the metrics, as a picture and as text."""
    from vitas.report.scatter import draw  # matplotlib takes most of a second

    folder: Path = run.folder / "rank"
    write_atomically(folder / "ranking.json", json.dumps(made_with | {"tables": tables}, indent=1))
    draw(folder / "ranking.png", tables)
    figures: dict[str, float] = {}
    for table in tables:
        end = f"_{table['budget']}" if table["budget"] else ""
        for name, row in table["rankings"].items():
            figures |= {
                f"{figure}_{name}{end}": row[figure] for figure in (tracking.TAU, tracking.RHO, tracking.REGRET)
            }
        if table["ceiling"] is not None:
            figures[f"{tracking.CEILING}{end}"] = table["ceiling"]
        say(ranking_table(table))
    run.tracker.log("rank", sum(len(row["top1"]) for table in tables for row in table["architectures"]), **figures)
    say(f"{folder}: ranking.json, ranking.png")
