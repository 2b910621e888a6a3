"""The stages of a run, in their order: supernet -> evolve -> retrain -> baseline -> evaluate.

Each stage owns a folder of the run. It starts from files that the stages before it left, so that it can run alone,
resumes by itself, and does nothing when it is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from vitas import recipe
from vitas.config import UserError
from vitas.data import augment, batches, sources, stream
from vitas.data.decoded import Cached
from vitas.files import make_folder, write_atomically
from vitas.models import registry, saved, throughput
from vitas.models.vit import VisionTransformer
from vitas.recipe import Recipe, Training
from vitas.report import tracking
from vitas.report.tables import table
from vitas.report.terminal import say
from vitas.report.tracking import Tracker
from vitas.runs import prerequisites
from vitas.runs.accelerator import make_accelerator
from vitas.runs.evolve import evolve
from vitas.runs.run import Run
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained
from vitas.train.stop import StopRequest
from vitas.train.trainer import Trainer


def run(settings: Recipe) -> None:
    """Does the stages of a recipe, from wherever an earlier run of it stopped."""
    make_folder(settings.folder)
    prerequisites.check(settings)
    accelerator = make_accelerator(settings)
    tracker = Tracker(settings, accelerator)
    with accelerator.main_process_first():
        train, test = sources.open_splits(settings.data, train=settings.stages != ["evaluate"])
    if accelerator.is_main_process:
        write_atomically(settings.folder / "recipe.yaml", recipe.dump(settings))
        device = f"{accelerator.num_processes} x {accelerator.device.type}"
        say(f"{settings.name}: {', '.join(settings.stages)} on {device} ({accelerator.distributed_type.value}), "
            f"in {settings.folder}")  # fmt: skip
    accelerator.wait_for_everyone()
    context = Run(settings, accelerator, tracker, StopRequest(), train, test)
    works = {"supernet": supernet, "evolve": evolve, "retrain": retrain, "baseline": baseline, "evaluate": evaluate}
    for stage in settings.stages:
        works[stage](context)
    tracker.finish()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def supernet(run: Run) -> None:
    """Trains the supernet: another random subnet at each step."""
    settings, space = run.recipe, run.recipe.space
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
    folder = run.claim("retrain", run.settings("retrain") | {"shape": architecture.model_dump(mode="json")})
    _train_one(run, architecture, folder, init=run.recipe.retrain.init)


def baseline(run: Run) -> None:
    """Trains a plain uniform ViT of no less cost in just the same way, for comparison."""
    architecture = cost.uniform_vit(_architecture(run), run.num_classes)
    folder = run.claim("baseline", run.settings("retrain") | {"shape": architecture.model_dump(mode="json")})
    _train_one(run, architecture, folder, init="scratch")


def evaluate(run: Run) -> None:
    """Top-1, top-5, costs and throughput on the test images, as a table and in `evaluation.json`."""
    settings, accelerator = run.recipe.evaluate, run.accelerator
    if settings.weights is not None:
        chosen = settings.architecture or Path(settings.weights).name
        loaders = {chosen: partial(saved.load_model, settings.weights, settings.architecture)}
    else:
        names = {"retrain": "found", "baseline": "uniform ViT"}
        loaders = {name: partial(saved.load_model, run.folder / stage) for stage, name in names.items()
                   if (run.folder / stage / "model.safetensors").is_file()}  # fmt: skip
    rows: dict[str, dict[str, float]] = {}
    total = 0
    for name, load in loaders.items():
        model = load().to(accelerator.device)
        if model.num_classes != run.num_classes:
            raise UserError(f"{name}: has {model.num_classes} classes, the data {run.num_classes}")
        images = run.cached(run.test, "test", model.architecture.image_size)
        of = {tracking.MODEL: name, tracking.INPUTS: _inputs(run, model, images)}
        rows[name] = run.tracker.find("evaluate", **of) or _figures(run, model, images)
        run.tracker.log("evaluate", 0, **of, **rows[name])
        total = len(images.labels)
    if accelerator.is_main_process:
        write_atomically(run.folder / "evaluation.json", json.dumps(rows, indent=1))
        run.test.unreadable.tell(say)
        say(table(rows, total))


def _inputs(run: Run, model: VisionTransformer, images: Cached) -> str:
    """A short name for all that figures come from: the same inputs are not evaluated twice."""
    data = run.recipe.data.model_dump(include={"test", "image_column", "label_column", "mean", "std", "crop_pct"})
    how = [data, run.recipe.evaluate.model_dump(), model.architecture.model_dump(), run.accelerator.device.type]
    sample = images.images[:: len(images.labels) // 64 + 1].tobytes()
    parts = (json.dumps(how).encode(), images.labels.tobytes(), sample, save(model.state_dict()))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _figures(run: Run, model: VisionTransformer, images: Cached) -> dict[str, float]:
    """Top-1 and top-5 in percent, costs, and, on the main process, images/s."""
    settings, accelerator = run.recipe.evaluate, run.accelerator
    if settings.compile:
        model.compile()
    with explained(lambda: f"evaluate: out of memory; lower evaluate.batch_size from {settings.batch_size}"):
        counts = run.correct(model, images, settings.batch_size, shared=True)
    reduced: Any = accelerator.reduce(counts, "sum")
    right, among_five, total = reduced.tolist()
    row = {tracking.TOP1: 100 * right / total, tracking.TOP5: 100 * among_five / total}
    row |= cost.count(model.architecture, run.num_classes)
    if accelerator.is_main_process:  # alone: ranks of one machine would slow each other down
        row[tracking.THROUGHPUT] = throughput.measure_throughput(
            model, model.architecture.image_size, batch_size=settings.throughput_batch, device=accelerator.device
        )
    accelerator.wait_for_everyone()
    return row


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
        saved.load_weights(net, run.folder / "supernet" / "model.safetensors")
        model.load_state_dict(net.extract(architecture).state_dict())
    if run.accelerator.is_main_process:
        write_atomically(folder / "architecture.yaml", architecture.to_yaml())
    _train(run, model, settings, folder, run.train, architecture.image_size, inputs=lambda step: ())


def _train(run: Run, model: nn.Module, settings: Training, folder: Path, images: sources.Split, image_size: int, *,
           inputs: Callable[[int], tuple[Any, ...]]) -> None:  # fmt: skip
    source, seed = run.recipe.data, run.recipe.seed
    transform = augment.train_transform(image_size, settings.augment, source)
    count = run.main_first(
        lambda _: stream.count_images(images, source.examples, run.folder / "cache" / f"{folder.name}_images")
    )
    Trainer(
        accelerator=run.accelerator,
        model=model,
        settings=settings,
        stage=folder.name,
        folder=folder,
        images=count,
        batches=lambda plan: batches.loader(
            images,
            transform,
            plan,
            seed=seed,
            workers=source.workers,
            shuffle_buffer=source.shuffle_buffer,
            pin_memory=run.accelerator.device.type == "cuda",
        ),
        unreadable=images.unreadable,
        inputs=inputs,
        num_classes=run.num_classes,
        seed=seed,
        tracker=run.tracker,
        stop=run.stop,
    ).run()
