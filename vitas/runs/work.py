"""How much work the stages of a run are, about: for the time that is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from statistics import fmean

from vitas.config import UserError
from vitas.models.elastic import sides
from vitas.report.outlook import Work
from vitas.runs import finalists, found
from vitas.runs.run import Run
from vitas.sections import Training
from vitas.spaces.budget import sample_inside
from vitas.spaces.cost import COUNTED, count
from vitas.subnets import macs_of, subnets

SAMPLES = 16
"""Steps, or architectures, that a mean is taken of."""

BACKWARD = 3
"""Forward passes that a forward and a backward pass cost together."""


def works_of(run: Run) -> dict[str, Work]:
    """The work of each stage by its name, in their order; nothing of a run of a single stage."""
    stages = run.recipe.stages
    try:
        return {name: work for stage in stages for name, work in _works(run, stage)} if len(stages) > 1 else {}
    except UserError:  # which the stage that runs into it tells
        return {}


def _works(run: Run, stage: str) -> Iterator[tuple[str, Work]]:
    recipe, images = run.recipe, len(run.train.indices)

    def training(settings: Training, macs: float, share: float = 1.0) -> Work:
        return Work(BACKWARD * share * settings.epochs * images * macs, "train")

    searched, budgets = recipe.evolve, len(recipe.every_budget)
    faces = len(sides(recipe.supernet.sharing))
    if stage == "supernet" and recipe.supernet.trained_in is None:
        drawn = [subnets(recipe, run.num_classes, run.skips, step, SAMPLES) for step in range(SAMPLES)]
        steps = [macs_of(run.num_classes, faces, *each) for each in drawn]
        yield stage, training(recipe.supernet, fmean(steps), 1 - recipe.data.holdout)
    elif stage == "evolve":
        typical = _typical(run)
        seen = len(run.test.indices) if searched.score_on == "test" else recipe.data.holdout * images
        candidate = seen * faces * typical
        if searched.trials:
            yield f"{searched.name}/trials", training(recipe.trial_schedule, typical, searched.trials)
        elif searched.smooth:
            yield f"{searched.name}/smoothing", Work(searched.smooth * candidate, "score")
        yield searched.stage, Work(searched.population * searched.generations * candidate, "score")
        for turn in range(finalists.rounds(searched.finalists) if searched.finalists > 1 else 0):
            share = finalists.SHARE * budgets / finalists.rounds(searched.finalists)
            yield f"{searched.name}/finalists/{turn + 1}", training(recipe.retrain, typical, share)
    elif stage == "rank":
        trained = recipe.rank.sample * recipe.rank.seeds * budgets
        yield stage, training(recipe.ranking_schedule, _typical(run), trained)
    elif stage in ("retrain", "baseline"):
        for below in found.choices(recipe):
            yield f"{stage}/{below}" if below else stage, training(recipe.retrain, _typical(run))


def _typical(run: Run) -> float:
    """Mean multiply-adds of architectures of the budgets."""
    recipe, classes, skips = run.recipe, run.num_classes, run.skips
    drawn = [
        sample_inside(recipe.space, budget, classes, seed=recipe.seed, step=number, skip=skips[name])
        if budget.windows(COUNTED)
        else recipe.space.sample(recipe.seed, number, skip=skips[name])
        for number, (name, budget) in enumerate(islice(cycle(recipe.every_budget.items()), SAMPLES))
    ]
    return fmean(count(one, classes)["macs"] for one in drawn)
