"""What can be known of a run before it starts: data, steps, size of the space, reachable budget."""

from __future__ import annotations

from typing import Any

from vitas import cost, data, evolution
from vitas.recipe import Recipe
from vitas.trainer import make_plan


def facts(settings: Recipe, ranks: int) -> dict[str, Any]:
    """The facts of a recipe on a number of ranks.

    Raises:
        UserError: The data is not there, the batch does not divide, or the budget cannot be reached.
    """
    train, test = data.open_splits(settings.data, train=settings.stages != ["evaluate"])
    classes, space = len(train.classes), settings.space
    found: dict[str, Any] = {"name": settings.name, "stages": ", ".join(settings.stages), "classes": classes}
    subset, holdout = train.hold_out(settings.data.holdout, settings.seed)
    if train.indices is not None and subset.indices is not None and holdout.indices is not None:
        found |= {"train_images": len(train.indices), "holdout_images": len(holdout.indices)}
        for stage, images in (("supernet", len(subset.indices)), ("retrain", len(train.indices))):
            if stage in settings.stages:
                plan, _ = make_plan(getattr(settings, stage), images, stage, ranks)
                found |= {f"{stage}_steps": plan.stop, f"{stage}_images_a_rank_and_pass": plan.micro_batch,
                          f"{stage}_accumulation": plan.accumulation}  # fmt: skip
    if test.indices is not None:
        found["test_images"] = len(test.indices)
    found["architectures"] = f"{space.size:.3e}"
    for name, (low, high) in cost.reachable(space, classes).items():
        found[f"reachable_{name}"] = f"{low:,} to {high:,}"
    if {"supernet", "evolve"} & set(settings.stages):
        skip = settings.skip_probability(classes)
        if space.identity != "none":
            found["skip_probability"] = skip
        inside = evolution.first_generation(space, settings.budget, classes, 2, seed=settings.seed, skip=skip)
        found["example_in_budget"] = ", ".join(
            f"{name} {value:,}" for name, value in cost.count(space.decode(inside[0]), classes).items()
        )
    return found
