"""Candidates in a trained supernet: how they are scored and measured, and where that is kept."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from vitas.data.decoded import Cached
from vitas.data.device import stratified
from vitas.models.measured import measure
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.search.candidates import Candidates
from vitas.search.scoring import PRECISIONS, Scorer
from vitas.search.store import Store
from vitas.search.workers import Workers
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained


def scored_by(
    run: Run, supernet: TrainedSupernet, images: Cached, on_progress: Callable[[int, int], None]
) -> Candidates:
    """The candidates of a stage, with what is known of them from all stages and runs that use this supernet.

    Args:
        run: The run.
        supernet: What scores them.
        images: What they are scored on.
        on_progress: Told between two jobs how many of how many are done, by all ranks.
    """
    recipe, accelerator = run.recipe, run.accelerator
    device = accelerator.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} of {os.uname().nodename}"
    net = supernet.load().to(device).eval()
    scorer = Scorer(
        net,
        run.on_device(images, stratified(images.labels)),
        batch_size=recipe.evolve.batch_size,
        precision=accelerator.mixed_precision,
    )
    folder = supernet.folder if os.access(supernet.folder, os.W_OK) else run.folder / "supernet"
    if folder != supernet.folder:
        run.say(f"{supernet.folder}: cannot be written in; scores are kept in {folder}")
    scored_with = {
        "supernet": supernet.checksum,
        "sharing": supernet.sharing,
        "attention": supernet.attention,
        "images": images.digest,
        "mean": recipe.data.mean,
        "std": recipe.data.std,
        "precision": accelerator.mixed_precision,
        "slices": len(scorer.slices),
    }
    measured_with = recipe.budget.deployment | {
        "device": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "classes": run.num_classes,
    }

    def measure_costs(architecture: Architecture) -> dict[str, float]:
        with explained(lambda: f"evolve: out of memory when measuring {architecture.model_dump_json()}; "
                               f"lower budget.throughput_batch from {recipe.budget.throughput_batch}"):  # fmt: skip
            return measure(
                net.extract(architecture),
                architecture.image_size,
                recipe.measured,
                batch_size=recipe.budget.throughput_batch,
                device=device,
                dtype=PRECISIONS[recipe.budget.precision] or torch.float32,
                compile=recipe.budget.compile,
            )

    return Candidates(
        Workers(accelerator),
        num_classes=run.num_classes,
        measure=measure_costs,
        measured=recipe.measured,
        costs=Store(folder / "costs", measured_with, run.writer),
        scorer=scorer,
        store=Store(folder / "scores", scored_with, run.writer),
        on_progress=on_progress,
    )
