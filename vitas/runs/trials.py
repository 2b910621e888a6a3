"""Trials: a few architectures of the budgets trained alone, by which a search corrects its scores."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from accelerate.utils import broadcast_object_list

from vitas.config import UserError
from vitas.evolve.candidates import Candidates
from vitas.evolve.correction import Correction
from vitas.evolve.evolution import CORRECTED, Entry
from vitas.files import write_atomically
from vitas.runs.candidates import random_inside
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.runs.trainings import Job, Trainings
from vitas.sections import FEWEST_TRIALS
from vitas.spaces.architecture import Architecture

FIRST_SEED = 2**33
"""Seed of the trials of a recipe with seed 0: that of no search, and of no ranking."""

Score = Callable[[list[Architecture], float], list[Entry]]


def corrected(run: Run, supernet: TrainedSupernet, digest: str, candidates: Candidates) -> Score:
    """Scores as `candidates.score` gives them, each with what the trials make of it. All ranks call it.

    The trials are random architectures inside the budgets, of every patch size alike; they train on what
    the supernet was trained on, and are judged on the images that score candidates, whose name is `digest`.
    """
    recipe, settings = run.recipe, run.recipe.evolve
    stage = f"{settings.name}/trials"
    trials = _drawn(run, candidates)
    scored = candidates.score(trials, 1.0)
    known = Trainings(
        run,
        stage,
        schedule=recipe.trial_schedule,
        split=supernet.trained_on,
        images=candidates.scorer.images,
        digest=digest,
        workers=candidates.workers,
        source=supernet if settings.trial_init == "supernet" else None,
    ).do([Job(architecture) for architecture in trials])
    found: list[Correction] = []  # the main rank's: last bits may be others elsewhere
    if run.accelerator.is_main_process:
        table = [
            {"key": one.key, "shape": one.in_words, "supernet_loss": entry["loss"]}
            | {name: known[Job(one).name][name] for name in ("loss", "top1")}
            | {"architecture": one.model_dump(mode="json")}
            for one, entry in zip(trials, scored, strict=True)
        ]
        alone = np.array([line["loss"] for line in table])
        found = [correction := Correction(trials, _losses(scored), alone)]
        write_atomically(
            run.folder / settings.name / "trials.json", json.dumps({"tau": correction.taus, "trials": table}, indent=1)
        )
        taus = {name: f"{tau:.2f}" for name, tau in correction.taus.items()}
        epochs = f"{recipe.trial_schedule.epochs:g} epochs"
        run.say(
            f"{settings.stage}: {len(trials)} architectures trained alone, {epochs} each: the supernet's loss "
            f"ranks them with a Kendall's tau of {taus['supernet']}, "
            f"the corrected loss, of each foretold from the others, with {taus['corrected']}"
        )

    def score(architectures: list[Architecture], part: float) -> list[Entry]:
        entries = candidates.score(architectures, part)
        values = [float(value) for correction in found for value in correction(architectures, _losses(entries))]
        values = broadcast_object_list([values])[0]
        return [entry | {CORRECTED: value} for entry, value in zip(entries, values, strict=True)]

    return score


def _losses(entries: list[Entry]) -> np.ndarray:
    return np.array([entry["loss"] for entry in entries])


def _drawn(run: Run, candidates: Candidates) -> list[Architecture]:
    """Different random architectures, an equal share inside each budget, and in it of each patch size."""
    recipe = run.recipe
    shares = [len(part) for part in np.array_split(np.arange(recipe.evolve.trials), len(recipe.every_budget))]
    sizes = dict(zip(recipe.every_budget, shares, strict=True))
    pools = random_inside(run, candidates, sizes, seed=FIRST_SEED, purpose="evolve.trials", each_patch_size=True)
    drawn = {one["key"]: Architecture.model_validate(one["architecture"]) for pool in pools.values() for one in pool}
    if len(drawn) < FEWEST_TRIALS:
        raise UserError(
            f"evolve.trials: {len(drawn)} architectures were found inside the budget, expected {FEWEST_TRIALS}"
        )
    return list(drawn.values())
