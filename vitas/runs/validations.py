"""What is validated while training: the subnets of a supernet on the hold-out, a retraining on the test images."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from vitas.data.splits import Split
from vitas.models.supernet import Supernet
from vitas.recipe import Recipe
from vitas.report import tracking
from vitas.runs.run import Run
from vitas.sections import Training
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import sample_inside
from vitas.spaces.cost import COUNTED
from vitas.train.validation import Nets, Validation, of_model, of_supernet

RANDOM = 3
"""Random subnets by which a supernet is validated; one a budget if there are more budgets."""


def of_the_supernet(run: Run, net: Supernet, held_out: Split) -> Validation | None:
    """The validation of the supernet before it is trained, if the recipe wants one; as the search will score."""
    recipe, device, precision = run.recipe, run.accelerator.device, run.accelerator.mixed_precision
    if recipe.supernet.validate_every is None:
        return None
    shown = subnets(recipe, run.num_classes, run.skips)
    nets = of_supernet(deepcopy(net).to("meta"), shown, device, recipe.evaluate.batch_size, precision)
    size = recipe.space.image_size
    return _validation(run, recipe.supernet, nets, held_out, tracking.HOLDOUT, size, precision=precision)


def of_a_retraining(run: Run, architecture: Architecture) -> Validation | None:
    """The validation of a retraining, if the recipe wants one; as stage `evaluate` tests. It keeps the best weights."""
    if run.recipe.retrain.validate_every is None:
        return None
    nets, size = of_model(architecture), architecture.image_size
    return _validation(run, run.recipe.retrain, nets, run.test, tracking.TEST, size, keeps_best=True)


def subnets(recipe: Recipe, num_classes: int, skips: Mapping[str, float]) -> dict[str, Architecture]:
    """By what a supernet is validated: the largest, the smallest, random ones inside the budgets; of every seed."""
    space = recipe.space
    found = {"largest": space.corner(-1, min(space.patch_size)), "smallest": space.corner(0, max(space.patch_size))}
    budgets = list(recipe.every_budget.items())
    for number in range(max(RANDOM, len(budgets))):
        name, budget = budgets[number % len(budgets)]
        if budget.windows(COUNTED):
            drawn = sample_inside(space, budget, num_classes, seed=0, step=number, skip=skips[name])
        else:
            drawn = space.sample(0, number, skip=skips[name])
        found[f"random {number + 1}"] = drawn
    return found


def _validation(
    run: Run, settings: Training, nets: Nets, split: Split, named: str, image_size: int, **how: Any
) -> Validation:
    assert settings.validate_every is not None
    return Validation(
        run.accelerator,
        every=settings.validate_every,
        nets=nets,
        images=run.cached(split, named, image_size),
        named=named,
        on_device=run.on_device,
        batch_size=run.recipe.evaluate.batch_size,
        **how,
    )
