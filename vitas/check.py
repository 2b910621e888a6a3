"""What can be known of a run before it starts: data, steps, size of the space, reachable budget."""

from __future__ import annotations

from typing import Any

from vitas import cost, data, evolution
from vitas.config import UserError
from vitas.recipe import Recipe
from vitas.trainer import make_plan


def facts(settings: Recipe, ranks: int) -> dict[str, Any]:
    """The facts of a recipe on a number of ranks.

    Raises:
        UserError: The data is not there, the batch does not divide, or the budget cannot be reached.
    """
    found: dict[str, Any] = {"name": settings.name, "stages": ", ".join(settings.stages)}
    images = _images(settings)
    found |= images
    for stage in ("supernet", "retrain"):
        if stage in settings.stages and (count := images.get("train_images")):
            plan, _ = make_plan(
                getattr(settings, stage), count - images["holdout_images"] * (stage == "supernet"), stage, ranks
            )
            found[f"{stage}_steps"] = plan.stop
            found[f"{stage}_batch"] = f"{ranks} ranks x {plan.accumulation} times x {plan.micro_batch} images"
    return found | _search(settings, images["classes"])


def _images(settings: Recipe) -> dict[str, Any]:
    """Counts of images and classes, from the data; where it is not at hand, from what the recipe says of it."""
    source = settings.data
    try:
        train, test = data.open_splits(source, train=settings.stages != ["evaluate"])
    except UserError as error:
        if source.classes is None or source.examples is None:
            raise
        holdout = round(source.examples * source.holdout)
        counts = {"classes": source.classes, "train_images": source.examples, "holdout_images": holdout}
        return {"data": f"NOT AT HAND ({error}); counted by data.classes and data.examples", **counts}
    found: dict[str, Any] = {"data": "found", "classes": len(train.classes)}
    holdout = train.hold_out(source.holdout, settings.seed)[1]
    if train.indices is not None and holdout.indices is not None:
        found |= {"train_images": len(train.indices), "holdout_images": len(holdout.indices)}
    elif source.examples is not None:
        found |= {"train_images": source.examples, "holdout_images": source.examples // holdout.stride}
    if test.indices is not None:
        found["test_images"] = len(test.indices)
    return found


def _search(settings: Recipe, classes: int) -> dict[str, Any]:
    """Size and reach of the space, and whether the budget lies in it."""
    space = settings.space
    found: dict[str, Any] = {"architectures": f"{space.size:.3e}"}
    for name, (low, high) in cost.reachable(space, classes).items():
        found[f"reachable_{name}"] = f"{low:,} to {high:,}"
    if {"supernet", "evolve"} & set(settings.stages):
        skip = settings.skip_probability(classes)
        if space.identity != "none":
            found["skip_probability"] = skip
        inside = evolution.first_generation(space, settings.budget, classes, 1, seed=settings.seed, skip=skip)
        costs = cost.count(space.decode(inside[0]), classes)
        found["example_in_budget"] = ", ".join(f"{name} {value:,}" for name, value in costs.items())
    return found
