"""A run: its stages in their order, supernet -> evolve -> rank -> retrain -> baseline -> evaluate.

Each stage owns a folder of the run. It starts from files that the stages before it left, so that it can run alone,
resumes by itself, and does nothing when it is done.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vitas import recipe
from vitas.config import SourceLost
from vitas.data import sources
from vitas.data.looked import same_images
from vitas.files import write_atomically
from vitas.recipe import Recipe
from vitas.report.tables import time_table
from vitas.report.tracking import Tracker
from vitas.runs import prerequisites
from vitas.runs.accelerator import make_accelerator
from vitas.runs.baseline import baseline
from vitas.runs.evaluate import evaluate
from vitas.runs.evolve import evolve
from vitas.runs.launch import end_launcher_of_ranks, end_launcher_quietly
from vitas.runs.lock import hold
from vitas.runs.rank import rank
from vitas.runs.reporting import Reporting
from vitas.runs.run import Run
from vitas.runs.training import retrain, supernet
from vitas.runs.work import works_of
from vitas.train.stop import StopRequest
from vitas.version import __version__


def run(settings: Recipe) -> None:
    """Does the stages of a recipe, from wherever an earlier run of it stopped."""
    prerequisites.check(settings)
    end_launcher_quietly()
    stop = StopRequest(on_interrupt=end_launcher_of_ranks)
    accelerator = make_accelerator(settings)
    file = settings.folder / "recipe.yaml"
    try:
        _run(settings, accelerator, stop, file)
    except SourceLost:
        if file.is_file():  # they were there once: no mistake in their name
            stop.ask_for_another_start()
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _run(settings: Recipe, accelerator: Accelerator, stop: StopRequest, file: Path) -> None:
    with hold(settings.folder, accelerator) or nullcontext():  # a run that fails must not keep its folder locked
        tracker = Tracker(settings, accelerator)
        with accelerator.main_process_first():
            how = {"cache": settings.folder / "cache", "main": accelerator.is_main_process}
            train, test = sources.open_splits(settings.data, train=settings.stages != ["evaluate"], **how)
        context = Run(settings, accelerator, tracker, stop, train, test)
        stages = ", ".join(settings.stages)
        where = f"{accelerator.num_processes} x {accelerator.device.type} ({accelerator.distributed_type.value})"
        if accelerator.is_main_process and not file.is_file():  # else it is written when a stage is found to fit
            write_atomically(file, recipe.dump(settings))
        context.say(f"{settings.name}: {stages} on {where}, in {settings.folder}")
        if settings.data.test_part is None and same_images(train, test):
            context.say("data.test: the same images as data.train: what is tested on them has seen them")
        tracker.outlook.works = works_of(context)
        works = {
            "supernet": supernet,
            "evolve": evolve,
            "rank": rank,
            "retrain": retrain,
            "baseline": baseline,
            "evaluate": evaluate,
        }
        with (
            Reporting(settings.folder, _machine(accelerator)) if accelerator.is_main_process else nullcontext() as told
        ):
            for stage in settings.stages:
                stop.words = f"{stage}: stopped; what is done is saved, and the same command goes on"
                with told.stage(stage) if told else nullcontext():
                    works[stage](context)
            tracker.finish()
        if told and len(settings.stages) > 1:
            context.say(time_table(told.times, settings.stages))


def _machine(accelerator: Accelerator) -> dict[str, Any]:
    """What a run is done on, for those who read of it."""
    device = accelerator.device
    return {
        "devices": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "host": os.uname().nodename,
        "backend": accelerator.distributed_type.value,
        "precision": accelerator.mixed_precision,
        "vitas": __version__,
        "torch": torch.__version__,
    }
