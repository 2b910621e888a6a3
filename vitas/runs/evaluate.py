"""The stage `evaluate`: the final figures on the test images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from vitas.config import UserError, did_you_mean
from vitas.data import augment
from vitas.data.decoded import Cached
from vitas.evolve.scoring import tally
from vitas.files import expanded, write_atomically
from vitas.models import saved
from vitas.models.measured import measure
from vitas.models.vit import VisionTransformer
from vitas.report import card, tracking
from vitas.report.tables import table
from vitas.report.terminal import say
from vitas.runs import found
from vitas.runs.run import Run
from vitas.sections import Data
from vitas.spaces import cost
from vitas.train.memory import explained


def evaluate(run: Run) -> None:
    """Top-1, top-5, costs and throughput on the test images, as a table and in `evaluation.json`."""
    settings = run.recipe.evaluate
    accelerator = run.accelerator
    if settings.weights is not None:
        models = {settings.architecture or Path(settings.weights).name: expanded(settings.weights)}
    else:
        models = dict(found.models(run.recipe))
    if not models:
        raise UserError(f"{run.folder}: stage evaluate needs a trained model; add stage retrain, or evaluate.weights")
    rows: dict[str, dict[str, Any]] = {}
    total = 0
    for name, weights in models.items():
        model = saved.load_model(weights, settings.architecture).to(accelerator.device)
        numbers = _class_numbers(run, model, weights)
        images = run.cached(run.test, "test", model.architecture.image_size)
        images = images._replace(labels=numbers[images.labels])
        of = {tracking.MODEL: name, tracking.INPUTS: _inputs(run, model, images)}
        row = run.tracker.find("evaluate", **of) or _figures(run, model, images)
        run.tracker.log("evaluate", 0, **of, **row)
        total = len(images.labels)
        rows[name] = row | {tracking.IMAGES: total}
    if accelerator.is_main_process:
        write_atomically(run.folder / "evaluation.json", json.dumps(rows, indent=1))
        if settings.weights is None:
            _tell_cards(run, models, rows)
        run.test.unreadable.tell(say)
        say(table(rows, total))


def _tell_cards(run: Run, models: dict[str, Path], rows: dict[str, dict[str, Any]]) -> None:
    """Notes the figures of the run's own models beside them, and on their cards."""
    for name, folder in models.items():
        facts = rows[name] | {"data": _test_source(run.recipe.data)}
        write_atomically(folder / card.EVALUATION, json.dumps(facts, indent=1))
        card.write(folder)


def _test_source(data: Data) -> str:
    """What the test images come from."""
    return data.test or ("digits:test" if data.test_part is None else str(data.train))


def _inputs(run: Run, model: VisionTransformer, images: Cached) -> str:
    """A short name for all that figures come from: the same inputs are not evaluated twice."""
    preprocessing = augment.preprocessing(model.architecture.image_size, run.recipe.data)
    how = [run.test.key(), preprocessing, run.recipe.evaluate.model_dump(), model.architecture.model_dump()]
    how += [run.accelerator.device.type, run.accelerator.mixed_precision]
    parts = (json.dumps(how).encode(), images.labels.tobytes(), save(model.state_dict()))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def _figures(run: Run, model: VisionTransformer, images: Cached) -> dict[str, Any]:
    """Top-1 and top-5 in percent, costs, and, on the main process, images/s."""
    settings = run.recipe.evaluate
    accelerator = run.accelerator
    if settings.compile:
        model.compile()
    rank, world, total = accelerator.process_index, accelerator.num_processes, len(images.labels)
    part = total * rank // world, total * (rank + 1) // world
    with explained(lambda: f"evaluate: out of memory; lower evaluate.batch_size from {settings.batch_size}"):
        mine = tally(model, run.on_device(images), *part, batch_size=settings.batch_size)
    summed: Any = accelerator.reduce(torch.tensor([mine.top1, mine.top5], device=accelerator.device), "sum")
    top1, top5 = summed.tolist()
    row: dict[str, Any] = {tracking.TOP1: 100 * top1 / total, tracking.TOP5: 100 * top5 / total}
    row |= cost.count(model.architecture, model.num_classes) | {"shape": model.architecture.in_words}
    if accelerator.is_main_process:  # alone: ranks of one machine would slow each other down
        row |= measure(
            model,
            model.architecture.image_size,
            [tracking.THROUGHPUT],
            batch_size=settings.throughput_batch,
            device=accelerator.device,
            compile=settings.compile,
        )
    accelerator.wait_for_everyone()
    return row


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
        source = _test_source(run.recipe.data)
        raise UserError(
            f"data.test: {source}: class {unknown[0]} is none of the {len(names)} classes of {weights}"
            + did_you_mean(unknown[0], names)
        )
    return np.array([numbers[name] for name in classes])
