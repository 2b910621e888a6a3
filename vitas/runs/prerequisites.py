"""What the stages of a run need and do not make: looked for first, before hours go into the stages before."""

from __future__ import annotations

import os

import torch

from vitas.config import UserError, did_you_mean, one_line
from vitas.data import augment, dali
from vitas.files import expanded
from vitas.models import registry, saved
from vitas.models.vit import VisionTransformer
from vitas.recipe import Recipe
from vitas.runs import found
from vitas.runs.trained import check_blocks
from vitas.sections import STARTS, Training
from vitas.spaces.architecture import Architecture


def check(settings: Recipe) -> None:
    """Looks for files and names that a stage will need.

    Raises:
        UserError: A file is missing and no stage before makes it, a name is unknown, timm has no such augmentation,
            or the decoder has not; its package is missing.
    """
    stages, supernet = set(settings.stages), settings.supernet_folder / "model.safetensors"
    elsewhere = settings.supernet.trained_in is not None
    no_supernet = (elsewhere or "supernet" not in stages) and not supernet.is_file()
    if elsewhere and no_supernet and stages & {"supernet", "evolve", "rank"}:
        raise UserError(f"supernet.from: {supernet}: No such file or directory: expected a run with a trained supernet")
    if "supernet" in stages:
        _check_augmentation("supernet", settings.supernet, settings)
    for stage in ("evolve", "rank"):
        if stage in stages and no_supernet:
            raise UserError(
                f"{supernet}: No such file or directory: stage {stage} needs a supernet; add stage supernet"
            )
    trains_candidates = "evolve" in stages and (settings.evolve.trials or settings.evolve.finalists > 1)
    if stages & {"rank", "retrain", "baseline"} or trains_candidates:
        _check_augmentation("retrain", settings.retrain, settings)
    start = _start(settings) if "retrain" in stages else None
    if stages & {"retrain", "baseline"}:
        for name in found.choices(settings).values():
            _check_architecture(name, settings, start)
    if "retrain" in stages and settings.retrain.init == "supernet" and no_supernet:
        raise UserError(
            f"{supernet}: No such file or directory: retrain.init: supernet needs a supernet; add stage supernet"
        )
    if "evaluate" in stages:
        _check_weights(settings)


def _start(settings: Recipe) -> VisionTransformer | None:
    if not settings.retrain.starts_from_model:
        return None
    init = settings.retrain.init
    if not expanded(init).exists():
        near = did_you_mean(init, STARTS)
        raise UserError(
            f"retrain.init: expected {', '.join(STARTS)}, or the folder or file of a model, got {init}{near}"
        )
    try:
        return saved.load_model(init)
    except UserError as error:
        raise UserError(f"retrain.init: {error}") from None


def _check_architecture(name: str, settings: Recipe, start: VisionTransformer | None) -> None:
    if found.search_needed(name):
        budget, searches = name.partition(":")[2], "evolve" in settings.stages and settings.retrain.search is None
        if searches and name.startswith("best") and budget not in settings.every_budget:
            known = [f"best:{known}" for known in settings.budgets] or ["best"]
            raise UserError(f"retrain.architecture: {name}: expected {' or '.join(known)}{did_you_mean(name, known)}")
        if not searches and not settings.search_folder.is_dir():
            raise UserError(
                f"{settings.search_folder}: No such file or directory: "
                f"retrain.architecture: {name} needs a search; add stage evolve, or name it by retrain.search"
            )
        if searches:
            return
    try:
        architecture = found.retrained(name, settings)
    except UserError as error:
        raise UserError(f"retrain.architecture: {error}") from None
    if start:
        check_blocks(start, architecture, settings.retrain.init)
    if settings.retrain.init == "supernet":
        architecture = found.architecture(name, settings.search_folder)
        try:
            settings.space.encode(architecture)
        except UserError as error:
            raise UserError(f"retrain.init: supernet: {error}") from None


def _check_weights(settings: Recipe) -> None:
    weights, architecture, folder = settings.evaluate.weights, settings.evaluate.architecture, settings.folder
    if weights is not None:
        file = expanded(weights)
        file = file / "model.safetensors" if os.path.isdir(file) else file
        if not os.path.isfile(file):
            raise UserError(f"evaluate.weights: {file}: No such file or directory")
        if architecture is not None:
            _find("evaluate.architecture", architecture)
        return
    makers = ("retrain", "baseline")
    if not any(stage in settings.stages or (folder / stage / "model.safetensors").is_file() for stage in makers):
        raise UserError(f"{folder}: stage evaluate needs a trained model; add stage retrain, or evaluate.weights")


def _check_augmentation(stage: str, training: Training, settings: Recipe) -> None:
    try:
        augment.TrainTransform(8, training.augment, settings.data)(torch.zeros(3, 8, 8, dtype=torch.uint8))
    except Exception as error:  # whatever timm runs into: most often an AssertionError
        what = one_line(error) or type(error).__name__
        raise UserError(f"{stage}.augment: timm cannot do it: {what}") from None
    if settings.data.decoder == "dali":
        dali.check()
        for name in ("auto_augment", "color_jitter"):
            if value := getattr(training.augment, name):
                raise UserError(
                    f"{stage}.augment.{name}: {value} needs data.decoder: cpu; dali only crops, flips and erases"
                )


def _find(key: str, name: str) -> Architecture:
    try:
        return registry.find(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
