"""The stages that train: `supernet`, `retrain` and `baseline`."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitas.data import augment, batches, stream
from vitas.data.splits import Split
from vitas.models import registry, saved
from vitas.models.vit import VisionTransformer
from vitas.recipe import Training
from vitas.runs.run import Run
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.train.trainer import Trainer


def supernet(run: Run) -> None:
    """Trains the supernet: another random subnet at each step."""
    settings = run.recipe
    space = run.recipe.space
    skip = run.skip
    folder = run.claim("supernet", run.settings("space", "supernet") | {"holdout": settings.data.holdout, "skip": skip})
    if (folder / "model.safetensors").is_file():
        return
    skipping = f", blocks skipped with probability {skip:.3f}" if skip else ""
    run.say(f"supernet: {Decimal(space.size):.2e} architectures{skipping}")
    images, _ = run.train.hold_out(settings.data.holdout, settings.seed)
    _train(
        run,
        run.new_supernet(),
        settings.supernet,
        folder,
        images,
        space.image_size,
        inputs=lambda step: (space.sample(settings.seed, step, skip=skip),),
    )


def retrain(run: Run) -> None:
    """Trains the found architecture, or the one that the recipe names."""
    architecture = _architecture(run)
    made_with = run.settings("retrain") | {"shape": architecture.model_dump(mode="json")}
    if run.recipe.retrain.init == "supernet":
        made_with["supernet"] = run.checksum(run.supernet_weights("retrain.init: supernet"))
    folder = run.claim("retrain", made_with)
    _train_one(run, architecture, folder, init=run.recipe.retrain.init)


def baseline(run: Run) -> None:
    """Trains a plain uniform ViT of no less cost in just the same way, for comparison."""
    fewest = min(run.recipe.space.heads)
    architecture = cost.uniform_vit(_architecture(run), run.num_classes, min_heads=fewest)
    folder = run.claim("baseline", run.settings("retrain") | {"shape": architecture.model_dump(mode="json")})
    _train_one(run, architecture, folder, init="scratch")


def _architecture(run: Run) -> Architecture:
    name = run.recipe.retrain.architecture
    if name != "best":
        return registry.find(name)
    return Architecture.from_yaml(run.folder / "evolution" / "best.yaml")


def _train_one(run: Run, architecture: Architecture, folder: Path, *, init: str) -> None:
    if (folder / "model.safetensors").is_file():
        return
    settings = run.recipe.retrain
    torch.manual_seed(run.recipe.seed)
    model = VisionTransformer(architecture, run.num_classes, drop_path_rate=settings.drop_path)
    if init == "supernet":
        net = run.new_supernet()
        saved.load_weights(net, run.supernet_weights("retrain.init: supernet"))
        model.load_state_dict(net.extract(architecture).state_dict())
    if settings.compile:
        model.compile()
    model.pretrained_cfg |= augment.preprocessing(architecture.image_size, run.recipe.data)
    model.pretrained_cfg |= {"label_names": list(run.train.classes)}
    if run.accelerator.is_main_process:
        saved.save_description(folder, model)
    _train(run, model, settings, folder, run.train, architecture.image_size, inputs=lambda step: ())


def _train(
    run: Run,
    model: nn.Module,
    settings: Training,
    folder: Path,
    split: Split,
    image_size: int,
    inputs: Callable[[int], tuple[Any, ...]],
) -> None:
    source = run.recipe.data
    size = run.main_first(
        lambda main: stream.count_images(
            split, source.examples, run.folder / "cache" / f"{folder.name}_images.json", write=main
        )
    )
    data = batches.TrainingData(
        split,
        size,
        augment.train_transform(image_size, settings.augment, source),
        seed=run.recipe.seed,
        workers=source.workers,
        shuffle_buffer=source.shuffle_buffer,
        pin_memory=run.accelerator.device.type == "cuda",
    )
    Trainer(
        accelerator=run.accelerator,
        model=model,
        settings=settings,
        folder=folder,
        data=data,
        inputs=inputs,
        tracker=run.tracker,
        stop=run.stop,
    ).run()
