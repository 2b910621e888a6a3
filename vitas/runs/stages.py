"""The stages of a run, in their order: supernet -> evolve -> retrain -> baseline -> evaluate.

Each stage owns a folder of the run. It starts from files that the stages before it left, so that it can run alone,
resumes by itself, and does nothing when it is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import nn

from vitas import recipe
from vitas.config import UserError, did_you_mean
from vitas.data import augment, batches, sources, stream
from vitas.data.splits import Split
from vitas.files import write_atomically
from vitas.models import registry, saved, throughput
from vitas.models.vit import VisionTransformer
from vitas.recipe import Data, Recipe, Training
from vitas.report import tracking
from vitas.report.tables import table
from vitas.report.terminal import say
from vitas.report.tracking import Tracker
from vitas.runs.accelerator import make_accelerator
from vitas.runs.evolve import evolve
from vitas.runs.lock import hold
from vitas.runs.run import Run
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained
from vitas.train.stop import StopRequest
from vitas.train.trainer import Trainer


def run(settings: Recipe) -> None:
    """Does the stages of a recipe, from wherever an earlier run of it stopped."""
    stop = StopRequest()
    accelerator = make_accelerator(settings)
    with _hold(settings, accelerator) or nullcontext():  # a run that fails must not keep its folder locked
        with accelerator.main_process_first():
            train, test = sources.open_splits(settings.data, train=settings.stages != ["evaluate"])
        if accelerator.is_main_process:
            write_atomically(settings.folder / "recipe.yaml", recipe.dump(settings))
            stages = ", ".join(settings.stages)
            where = f"{accelerator.num_processes} x {accelerator.device.type} ({accelerator.distributed_type.value})"
            say(f"{settings.name}: {stages} on {where}, in {settings.folder}")
        accelerator.wait_for_everyone()
        tracker = Tracker(settings, accelerator)
        context = Run(settings, accelerator, tracker, stop, train, test)
        works = {"supernet": supernet, "evolve": evolve, "retrain": retrain, "baseline": baseline, "evaluate": evaluate}
        for stage in settings.stages:
            stop.words = f"{stage}: stopped; what is done is saved, and the same command goes on"
            works[stage](context)
        tracker.finish()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _hold(settings: Recipe, accelerator: Accelerator) -> TextIO | None:
    """Locks the run folder on the main process, and tells all ranks if that fails."""
    lock, problem = None, None
    if accelerator.is_main_process:
        try:
            lock = hold(settings.folder)
        except UserError as error:
            problem = str(error)
    problem = broadcast_object_list([problem])[0]
    if problem:
        raise UserError(problem)
    return lock


def supernet(run: Run) -> None:
    """Trains the supernet: another random subnet at each step."""
    settings = run.recipe
    space = run.recipe.space
    skip = run.skip
    folder = run.claim("supernet", run.settings("space", "supernet") | {"holdout": settings.data.holdout, "skip": skip})
    if (folder / "model.safetensors").is_file():
        return
    run.say(
        f"supernet: {space.size:.2e} architectures" + (f", blocks skipped with probability {skip:.3f}" if skip else "")
    )
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


def evaluate(run: Run) -> None:
    """Top-1, top-5, costs and throughput on the test images, as a table and in `evaluation.json`."""
    settings = run.recipe.evaluate
    accelerator = run.accelerator
    if settings.weights is not None:
        models = {settings.architecture or Path(settings.weights).name: Path(settings.weights)}
    else:
        folders = {"found": run.folder / "retrain", "uniform ViT": run.folder / "baseline"}
        models = {name: folder for name, folder in folders.items() if (folder / "model.safetensors").is_file()}
    if not models:
        raise UserError(f"{run.folder}: stage evaluate needs a trained model; add stage retrain, or evaluate.weights")
    rows: dict[str, dict[str, Any]] = {}
    total = 0
    for name, weights in models.items():
        model = saved.load_model(weights, settings.architecture).to(accelerator.device)
        numbers = _class_numbers(run, model, weights)
        images = run.cached(run.test, "test", model.architecture.image_size)
        images = images._replace(labels=numbers[images.labels])
        if settings.compile:
            model.compile()
        with explained(lambda: f"evaluate: out of memory; lower evaluate.batch_size from {settings.batch_size}"):
            counts = run.correct(model, images, settings.batch_size, shared=True)
        reduced: Any = accelerator.reduce(counts, "sum")
        right, among_five, total = reduced.tolist()
        rows[name] = {tracking.TOP1: 100 * right / total, tracking.TOP5: 100 * among_five / total}
        rows[name] |= cost.count(model.architecture, model.num_classes) | {"shape": model.architecture.in_words}
        if accelerator.is_main_process:  # alone: ranks of one machine would slow each other down
            rows[name][tracking.THROUGHPUT] = throughput.measure_throughput(
                model, model.architecture.image_size, batch_size=settings.throughput_batch, device=accelerator.device
            )
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, row in rows.items():
            run.tracker.log("evaluate", 0, model=name, **row)
        write_atomically(run.folder / "evaluation.json", json.dumps(rows, indent=1))
        run.test.unreadable.tell(say)
        say(table(rows, int(total)))


def _class_numbers(run: Run, model: VisionTransformer, weights: Path) -> np.ndarray:
    """The model's number for each class of the test images, by name.

    Raises:
        UserError: The model does not have a class, or was made for images that are prepared in another way.
    """
    known = model.pretrained_cfg
    classes = run.test.classes
    for key, ours in augment.preprocessing(model.architecture.image_size, run.recipe.data).items():
        if key in known and not np.array_equal(known[key], ours):
            where = f"data.{key}" if key in Data.model_fields else key
            raise UserError(f"{where}: is {json.dumps(ours)}, but {weights} was made for {json.dumps(known[key])}")
    names = known.get("label_names")
    if names is None:
        if model.num_classes != len(classes):
            raise UserError(f"{weights}: has {model.num_classes} classes, the data {len(classes)}")
        run.say(f"{weights}: does not name its classes; they are taken to be those of the data, in the same order")
        return np.arange(len(classes))
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in classes if name not in numbers]:
        source = run.recipe.data.test or "digits:test"
        raise UserError(
            f"data.test: {source}: class {unknown[0]} is none of the {len(names)} classes of {weights}"
            + did_you_mean(unknown[0], names)
        )
    return np.array([numbers[name] for name in classes])


def _architecture(run: Run) -> Architecture:
    name = run.recipe.retrain.architecture
    if name != "best":
        return registry.find(name)
    file = run.folder / "evolution" / "best.yaml"
    if not file.is_file():
        raise UserError(
            f"{file}: No such file or directory: retrain.architecture: best needs a search; add stage evolve"
        )
    return Architecture.from_yaml(file)


def _train_one(run: Run, architecture: Architecture, folder: Path, *, init: str) -> None:
    if (folder / "model.safetensors").is_file():
        return
    settings = run.recipe.retrain
    torch.manual_seed(run.recipe.seed)
    model = VisionTransformer(architecture, run.num_classes, drop_path_rate=settings.drop_path)
    if init == "supernet":
        net = run.new_supernet()
        net.load_state_dict(load_file(run.supernet_weights("retrain.init: supernet")))
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
