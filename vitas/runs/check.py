"""What can be known of a run before it starts: data, steps, size of the space, reachable budget, memory."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from vitas.config import UserError, one_line
from vitas.data import sources
from vitas.data.looked import same_images
from vitas.data.plan import make_plan
from vitas.data.splits import Split
from vitas.evolve import evolution
from vitas.files import expanded, make_folder
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer
from vitas.recipe import Recipe
from vitas.report.tracking import wandb_mode
from vitas.runs import pictures, prerequisites
from vitas.runs.found import choices, retrained, search_needed
from vitas.sections import Training
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.subnets import PER_BLOCK, every_choice, how_often
from vitas.train import memory
from vitas.train.memory import PRECISIONS, Backend

STEPS_LOOKED_AT = 300
"""Of the supernet's steps, for what they train."""


def facts(settings: Recipe, backend: Backend, picture: tuple[Path, int] | None = None) -> dict[str, Any]:
    """The facts of a recipe on a backend; with a `picture` also those of `pictures`, which draws so many images there.

    Raises:
        UserError: The data is not there, the batch does not divide, the budget cannot be reached; and see
            `prerequisites.check`.
    """
    prerequisites.check(settings)
    make_folder(settings.folder, keep=False)
    found: dict[str, Any] = {"name": settings.name, "stages": ", ".join(settings.stages)}
    mode, why = wandb_mode(settings.tracking.wandb)
    if mode:
        found["wandb"] = f"{mode}{why and f': {why}'}"
    if slow := memory.slow_half(not torch.cuda.is_available(), backend.precision):
        found["precision"] = slow
    images, train = _images(settings, needed=picture is not None)
    classes = images["classes"]
    found |= images | _search(settings, classes)
    for stage in ("supernet", "retrain"):
        if stage == "supernet" and settings.supernet.trained_in is not None:
            continue
        if stage in settings.stages and (count := images.get("train_images")):
            training: Training = getattr(settings, stage)
            count -= images["holdout_images"] * (stage == "supernet")
            plan, _ = make_plan(training, count, stage, backend.ranks)
            found[f"{stage}_steps"] = plan.stop
            if stage == "supernet":
                found["seldom_trained"] = _seldom_trained(settings, classes, plan.stop)
            found[f"{stage}_batch"] = f"{backend.ranks} ranks x {plan.accumulation} times x {plan.micro_batch} images"
            model, inputs, image_size = _model(settings, stage, classes)
            needs = memory.estimate(model, inputs, image_size, plan.micro_batch, training, backend)
            found[f"{stage}_memory"] = f"{_size(sum(needs.values()))} a rank: " + " + ".join(
                f"{name} {_size(size)}" for name, size in needs.items()
            )
    if picture and train:
        found |= pictures.facts(settings, train, backend.ranks, *picture)
    return found


def _seldom_trained(settings: Recipe, classes: int, steps: int) -> str:
    """Of each kind of choice the one that the fewest steps train, with their share, from some of the steps."""
    skips = settings.skip_probabilities(classes)
    trained, looked_at = how_often(settings, classes, skips, steps, done=steps, most=STEPS_LOOKED_AT)
    every = every_choice(settings.space)
    parts = []
    for kind in ("patch_size", "embed_dim", *PER_BLOCK):
        choice = min((choice for choice in every if choice[0] == kind), key=lambda one: (trained[one], one))
        where = f" of block {choice[1]}" if choice[1] else ""
        parts.append(f"{kind} {choice[2]}{where} in {100 * trained[choice] / looked_at:.1f} %")
    return ", ".join(parts) + " of the steps"


def backend(config_file: str | None, ranks: int | None, precision: str | None) -> Backend:
    """The backend of a config file of Accelerate, with what is asked for in its place.

    Raises:
        UserError: There is no such file, it is none of Accelerate's, or of a backend that is not ours.
    """
    if ranks is not None and ranks < 1:
        raise UserError(f"--ranks: expected 1 or more, got {ranks}")
    if config_file is None:
        return Backend(ranks or 1, precision=precision or "no")
    try:
        config: Any = load_config_from_file(str(expanded(config_file)))
        kind, deepspeed, count = str(config.distributed_type), config.deepspeed_config or {}, config.num_processes
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{config_file}: expected a config file of Accelerate: {one_line(error)}") from None
    kind = kind.rpartition(".")[2]
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED") or "deepspeed_config_file" in deepspeed:
        raise UserError(f"{config_file}: expected DDP, or DeepSpeed with its settings in this file, got {kind}")
    if count == "auto" and config.num_machines == 1:
        count = max(1, torch.cuda.device_count())
    if not ranks and (not isinstance(count, int) or count < 1):
        raise UserError(f"{config_file}: leaves the number of processes to the launcher; add --ranks N")
    ranks = ranks or int(count)
    precision = precision or str(config.mixed_precision or "no")
    if precision not in PRECISIONS:
        raise UserError(f"{config_file}: mixed_precision: expected one of {', '.join(PRECISIONS)}, got {precision}")
    offload = deepspeed.get("offload_optimizer_device", "none") != "none"
    return Backend(ranks, deepspeed.get("zero_stage", 0), offload, precision)


def _model(settings: Recipe, stage: str, classes: int) -> tuple[Callable[[], nn.Module], tuple[Any, ...], int]:
    """What a stage trains, at its largest; the found architecture is stood in for by the largest of 200 in budget."""
    space = settings.space
    if stage == "supernet":
        how = {"sharing": settings.supernet.sharing, "attention": settings.supernet.attention}
        largest, smallest = (space.corner(end, min(space.patch_size)) for end in (-1, 0))
        many = settings.supernet.sandwich
        inputs = (largest, smallest, *[largest] * many) if many else (largest,)
        return partial(Supernet, space, classes, **how), inputs, space.image_size
    known = [retrained(name, settings) for name in choices(settings).values() if not search_needed(name)]
    if not known:
        skips = settings.skip_probabilities(classes)
        known = [found for name in skips for found in _in_budget(settings, name, classes, 200, skips[name])]
    architecture = max(known, key=_activations)
    return partial(VisionTransformer, architecture, classes), (), architecture.image_size


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _images(settings: Recipe, *, needed: bool) -> tuple[dict[str, Any], Split | None]:
    """Counts of images and classes, from the data, and its training images.

    Where it is not at hand, and not `needed`, counts are what the recipe says of it.
    """
    source = settings.data
    try:
        cache = settings.folder / "cache"
        train, test = sources.open_splits(source, train=settings.stages != ["evaluate"], cache=cache, scan=False)
    except UserError as error:
        if needed or source.num_classes is None or source.examples is None:
            raise
        holdout = round(source.examples * source.holdout)
        counts = {"classes": source.num_classes, "train_images": source.examples, "holdout_images": holdout}
        return {"data": f"NOT AT HAND ({error}); counted by data.classes and data.examples", **counts}, None
    holdout = train.hold_out(source.holdout, settings.seed)[1]
    counts = {"train_images": len(train.indices), "holdout_images": len(holdout.indices)}
    tested: Any = len(test.indices)
    if source.test_part is None and same_images(train, test):
        tested = f"{tested}, the SAME as train images"
    return {"data": "found", "classes": len(train.classes), **counts, "test_images": tested}, train


def _search(settings: Recipe, classes: int) -> dict[str, Any]:
    """Size and reach of the space, and whether the budget lies in it."""
    space = settings.space
    found: dict[str, Any] = {"architectures": f"{Decimal(space.size):.3e}"}
    for name, (low, high) in cost.reachable(space, classes).items():
        found[f"reachable_{name}"] = f"{low:,} to {high:,}"
    if {"supernet", "evolve", "rank"} & set(settings.stages):
        skips = settings.skip_probabilities(classes)
        for name in settings.every_budget:
            end = name and f"_{name}"
            if space.identity != "none":
                found[f"skip_probability{end}"] = skips[name]
            costs = cost.count(_in_budget(settings, name, classes, 1, skips[name])[0], classes)
            found[f"example_in_budget{end}"] = ", ".join(f"{cost} {value:,}" for cost, value in costs.items())
    return found


def _in_budget(settings: Recipe, name: str, classes: int, count: int, skip: float) -> list[Architecture]:
    space, budget = settings.space, settings.every_budget[name]
    genomes = evolution.first_generation(space, budget, classes, count, seed=settings.seed, skip=skip)
    return [space.decode(genome) for genome in genomes]


def _activations(architecture: Architecture) -> float:
    """In proportion to the memory of the activations: the outputs of all layers."""
    widths = sum(6 * architecture.embed_dim + block.qkv_dim + 2 * block.mlp_dim for block in architecture.kept)
    return widths / architecture.patch_size**2
