"""The stages that train, `supernet` and `retrain`, and how any architecture is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitas.data import augment, batches
from vitas.data.plan import make_plan
from vitas.data.splits import Split
from vitas.models import saved
from vitas.models.vit import VisionTransformer, start_from
from vitas.report import card
from vitas.report.tracking import Untracked
from vitas.runs import found, trained, validations
from vitas.runs.run import Run
from vitas.runs.trained import TrainedModel, TrainedSupernet
from vitas.sections import Retraining, Training
from vitas.spaces.architecture import Architecture
from vitas.spaces.cost import COUNTED, count
from vitas.subnets import macs_of, subnets
from vitas.train.alone import alone, one_thread
from vitas.train.objectives import OBJECTIVES, Objective, cross_entropy
from vitas.train.trainer import Trainer
from vitas.train.validation import Validation


def supernet(run: Run) -> None:
    """Trains the supernet: another random subnet at each step."""
    settings = run.recipe
    space = run.recipe.space
    if settings.supernet.trained_in is not None:
        run.say(f"supernet: taken from {trained.find(run, 'supernet.from').folder}")
        return
    skips = run.skips
    skip = skips if settings.budgets else skips[""]
    made_with = run.settings("space", "supernet") | {"holdout": settings.data.holdout, "skip": skip}
    if in_budget := settings.supernet.in_budget:
        windows = {name: budget.windows(COUNTED) for name, budget in settings.every_budget.items()}
        made_with["windows"] = windows if settings.budgets else windows[""]
    folder = run.claim("supernet", made_with)
    if (folder / "model.safetensors").is_file():
        return
    shown = ", ".join(f"{chance:.3f}" for chance in skips.values())
    skipping = f", blocks skipped with probability {shown}" if any(skips.values()) else ""
    inside = f", inside the budget in the last {in_budget:.0%} of the steps" if in_budget else ""
    run.say(f"supernet: {Decimal(space.size):.2e} architectures{skipping}{inside}")
    images, held_out = run.train.hold_out(settings.data.holdout, settings.seed)
    net = run.new_supernet()
    _train(
        run,
        net,
        settings.supernet,
        "supernet",
        images,
        space.image_size,
        inputs=partial(subnets, settings, run.num_classes, skips),
        macs=partial(macs_of, run.num_classes, len(net.sides)),
        objective=OBJECTIVES[settings.supernet.distill],
        validation=validations.of_the_supernet(run, net, held_out),
    )


def retrain(run: Run) -> None:
    """Trains the found architecture, or those that the recipe names, one after the other."""
    source = trained.start(run)
    for stage, architecture in architectures(run, "retrain"):
        train_one(run, architecture, stage, source)


def architectures(run: Run, stage: str) -> list[tuple[str, Architecture]]:
    """The folder in the run, and the architecture, of each that the recipe names."""
    return [
        (f"{stage}/{below}" if below else stage, found.retrained(name, run.recipe))
        for below, name in found.choices(run.recipe).items()
    ]


def train_one(run: Run, architecture: Architecture, stage: str, source: TrainedSupernet | TrainedModel | None) -> None:
    """Trains one architecture, from the weights of `source` on if there is one."""
    made_with = run.settings("retrain") | {"shape": architecture.model_dump(mode="json")}
    if run.recipe.retrain.starts_from_model:
        made_with["retrain"]["init"] = "model"  # wherever it lies
    if source:
        made_with["model" if isinstance(source, TrainedModel) else "supernet"] = source.checksum
    folder = run.claim(stage, made_with)
    if not (folder / "model.safetensors").is_file():
        _train_from(run, architecture, stage, source)
        run.tracker.keep(stage, [folder / "model.safetensors", folder / "config.json"], weights=True)
        if run.accelerator.is_main_process:
            card.write(folder)


def train_alone(
    run: Run,
    architecture: Architecture,
    settings: Retraining,
    stage: str,
    *,
    seed: int,
    split: Split,
    source: TrainedSupernet | None,
    on_step: Callable[[int, int], None],
) -> Path:
    """Trains one architecture on this rank alone, whatever the other ranks do meanwhile.

    It goes on from its last checkpoint, and does nothing when it is done. A request to stop ends the process, after
    the step at work is saved.

    Args:
        run: The run.
        architecture: What is trained.
        settings: The schedule, in place of the recipe's section `retrain`.
        stage: Folder in the run, which the caller has claimed for just this training.
        seed: Seed of the weights, the order of the images and their augmentation.
        split: The training images.
        source: The supernet whose weights it starts from; None for new ones.
        on_step: Told after each step how many of how many are done.

    Returns:
        The folder, which holds the model then.
    """
    folder = run.folder / stage
    if not (folder / "model.safetensors").is_file():
        recipe = run.recipe.model_copy(update={"retrain": settings, "seed": seed})
        by_itself = replace(run, recipe=recipe, accelerator=alone(run.accelerator), tracker=Untracked(), train=split)
        with one_thread(run.accelerator.device):
            _train_from(by_itself, architecture, stage, source, on_step)
    return folder


def _train_from(
    run: Run,
    architecture: Architecture,
    stage: str,
    source: TrainedSupernet | TrainedModel | None,
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    settings = run.recipe.retrain
    folder = run.folder / stage
    torch.manual_seed(run.recipe.seed)
    model = VisionTransformer(architecture, run.num_classes, drop_path_rate=settings.drop_path)
    model.pretrained_cfg |= augment.preprocessing(architecture.image_size, run.recipe.data)
    model.pretrained_cfg |= {"label_names": list(run.train.classes)}
    if source:
        other = source.model(architecture)
        start_from(model, other)
        for key in ("mean", "std"):
            if (before := other.pretrained_cfg.get(key)) and list(before) != list(model.pretrained_cfg[key]):
                run.say(f"{stage}: data.{key} is {list(model.pretrained_cfg[key])}; {source.weights} knows {before}")
    model.set_class_token_only()
    if settings.compile:
        model.compile()
    if run.accelerator.is_main_process:
        saved.save_description(folder, model)
    _train(
        run,
        model,
        settings,
        stage,
        run.train,
        architecture.image_size,
        lambda step, steps: (),
        macs=lambda: count(architecture, run.num_classes)["macs"],
        on_step=on_step,
        validation=None if on_step else validations.of_a_retraining(run, architecture),  # alone, ranks go separate ways
        head_epochs=settings.head_epochs if source else 0,
    )


def _train(
    run: Run,
    model: nn.Module,
    settings: Training,
    stage: str,
    split: Split,
    image_size: int,
    inputs: Callable[[int, int], tuple[Any, ...]],
    macs: Callable[..., int],
    objective: Objective = cross_entropy,
    on_step: Callable[[int, int], None] | None = None,
    validation: Validation | None = None,
    head_epochs: float = 0,
) -> None:
    """Trains a model on all ranks; `inputs` are those of a step, of so many, and `macs` counts those of inputs."""
    source = run.recipe.data
    data = batches.TrainingData(
        split,
        augment.TrainTransform(image_size, settings.augment, source),
        seed=run.recipe.seed,
        workers=source.workers,
        readers=source.readers,
        shuffle_buffer=source.shuffle_buffer,
        pin_memory=run.accelerator.device.type == "cuda",
        mean=source.mean,
        std=source.std,
        dali=run.accelerator.device if source.decoder == "dali" else None,
    )
    plan, _ = make_plan(settings, data.size, settings.section, run.accelerator.num_processes)
    if split.streamed and on_step is None:
        run.say(f"{stage}: a stream of {data.stream_in_words(plan)}")
    Trainer(
        accelerator=run.accelerator,
        model=model,
        settings=settings,
        folder=run.folder / stage,
        stage=stage,
        data=data,
        inputs=lambda step: inputs(step, plan.stop),
        macs=macs,
        tracker=run.tracker,
        stop=run.stop,
        on_step=on_step,
        objective=objective,
        validation=validation,
        head_epochs=head_epochs,
    ).run()
