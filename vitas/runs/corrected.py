"""How a search corrects its scores: by trials, architectures trained alone, or by smoothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from vitas.config import UserError
from vitas.evolve.candidates import Candidates
from vitas.evolve.correction import Correction, Smoothing
from vitas.evolve.evolution import CORRECTED, Entry
from vitas.files import write_atomically
from vitas.report.terminal import fill
from vitas.runs.candidates import random_inside
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.runs.trainings import Job, Trainings
from vitas.sections import FEWEST_TRIALS
from vitas.spaces.architecture import Architecture

FIRST_SEED, FIRST_SMOOTHED = 2**33, 2**34
"""Seeds of trials and of what smoothing learns from, with a recipe of seed 0: those of no search and no ranking."""

Score = Callable[[list[Architecture], float], list[Entry]]
Correct = Callable[[list[Architecture], np.ndarray], np.ndarray]
"""From architectures and their losses in the supernet to losses that rank better."""


def by_trials(run: Run, supernet: TrainedSupernet, digest: str, candidates: Candidates) -> Score:
    """Scores as `candidates.score` gives them, each with what the trials make of it. All ranks call it.

    The trials are random architectures inside the budgets, of every patch size alike; they train on what
    the supernet was trained on, and are judged on the images that score candidates, whose name is `digest`.
    """
    recipe, settings = run.recipe, run.recipe.evolve
    stage = f"{settings.name}/trials"
    trials = _drawn(run, candidates, settings.trials, seed=FIRST_SEED, purpose="evolve.trials")
    if len(trials) < FEWEST_TRIALS:
        raise UserError(
            f"evolve.trials: {len(trials)} architectures were found inside the budget, expected {FEWEST_TRIALS}"
        )
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
    correction = None
    if run.accelerator.is_main_process:
        table = [
            {"key": one.key, "shape": one.in_words, "supernet_loss": entry["loss"]}
            | {name: known[Job(one).name][name] for name in ("loss", "top1")}
            | {"architecture": one.model_dump(mode="json")}
            for one, entry in zip(trials, scored, strict=True)
        ]
        alone = np.array([line["loss"] for line in table])
        correction = Correction(trials, _losses(scored), alone)
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
    return _corrected_by(correction, candidates)


def by_smoothing(run: Run, candidates: Candidates) -> Score:
    """Scores as `candidates.score` gives them, each with its loss smoothed. All ranks call it.

    What is noise in a loss is told from those of random architectures inside the budgets, of every patch size alike.
    """
    settings, main = run.recipe.evolve, run.accelerator.is_main_process
    # Costs that would have to be measured do not matter here: the loss follows from the choices.
    random = _drawn(run, candidates, settings.smooth, seed=FIRST_SMOOTHED, purpose="evolve.smooth", measured=False)
    leave_if_stopped = candidates.on_progress
    bar = run.tracker.progress(f"{settings.name}/smoothing", len(random), "architecture", show=main)

    def show(done: int, of: int) -> None:
        leave_if_stopped(done, of)
        fill(bar, done, of)

    candidates.on_progress = show
    scored = candidates.score(random, 1.0)
    candidates.on_progress = leave_if_stopped
    bar.close()
    smoothing = None
    if main:
        smoothing = Smoothing(random, _losses(scored))
        table = [
            {"key": one.key, "shape": one.in_words, "loss": entry["loss"], "architecture": one.model_dump(mode="json")}
            for one, entry in zip(random, scored, strict=True)
        ]
        told = {"explained": smoothing.explained, "architectures": table}
        write_atomically(run.folder / settings.name / "smoothing.json", json.dumps(told, indent=1))
        run.say(
            f"{settings.stage}: choices foretell {smoothing.explained:.0%} of how the losses of {len(random)} random "
            f"architectures differ; half of the rest is taken for noise"
        )
    return _corrected_by(smoothing, candidates)


def _corrected_by(correct: Correct | None, candidates: Candidates) -> Score:
    """Scores with the corrected loss: the main rank's, which alone has `correct`; elsewhere last bits may differ."""

    def score(architectures: list[Architecture], part: float) -> list[Entry]:
        entries = candidates.score(architectures, part)
        values = correct(architectures, _losses(entries)).tolist() if correct else []
        values = broadcast_object_list([values])[0]
        return [entry | {CORRECTED: value} for entry, value in zip(entries, values, strict=True)]

    return score


def _losses(entries: list[Entry]) -> np.ndarray:
    return np.array([entry["loss"] for entry in entries])


def _drawn(run: Run, candidates: Candidates, size: int, **how: Any) -> list[Architecture]:
    """Different random architectures, an equal share inside each budget, and in it of each patch size.

    `how` is what else `random_inside` takes.
    """
    recipe = run.recipe
    shares = [len(part) for part in np.array_split(np.arange(size), len(recipe.every_budget))]
    sizes = dict(zip(recipe.every_budget, shares, strict=True))
    pools = random_inside(run, candidates, sizes, each_patch_size=True, **how)
    drawn = {one["key"]: Architecture.model_validate(one["architecture"]) for pool in pools.values() for one in pool}
    return list(drawn.values())
