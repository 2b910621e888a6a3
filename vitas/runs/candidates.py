"""Candidates in a trained supernet: how they are scored and measured, and where that is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import islice

import torch

from vitas.config import UserError
from vitas.data.decoded import Cached
from vitas.data.device import stratified
from vitas.evolve import evolution
from vitas.evolve.candidates import Candidates
from vitas.evolve.evolution import Entry
from vitas.evolve.scoring import PRECISIONS, Scorer
from vitas.evolve.store import Store
from vitas.evolve.workers import Workers
from vitas.models.measured import measure
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained

TRIES = 10
"""How often architectures are drawn in place of those outside a measured window."""
FEWEST = 3
"""Architectures that can be ranked."""


def random_inside(
    run: Run,
    candidates: Candidates,
    sizes: Mapping[str, int],
    *,
    seed: int,
    purpose: str,
    each_patch_size: bool = False,
    measured: bool = True,
) -> dict[str, list[Entry]]:
    """So many different random architectures inside each budget, with their costs. All ranks call it.

    Args:
        run: The run.
        candidates: Know the costs.
        sizes: How many, by the name of the budget.
        seed: Seed of them with a recipe of seed 0.
        purpose: What needs them.
        each_patch_size: Whether all patch sizes are to be among them alike.
        measured: Whether measured costs have to be inside as well.

    Raises:
        UserError: Fewer than `FEWEST` are found for a budget.
    """
    recipe, found, skips = run.recipe, {}, run.skips
    for number, (name, budget) in enumerate(recipe.every_budget.items()):
        size = sizes[name]
        genomes = evolution.random_genomes(
            recipe.space, budget, run.num_classes, seed=seed + recipe.seed + number, skip=skips[name]
        )
        if each_patch_size:
            genomes = evolution.each_patch_size(genomes, TRIES * size)
        pool: list[Entry] = []
        for _ in range(TRIES):
            drawn = [recipe.space.decode(genome) for genome in islice(genomes, size - len(pool))]
            pool += evolution.inside(candidates.costs(drawn, measured=measured), budget)
        if len(pool) < FEWEST:
            where = f"budgets.{name}" if name else "budget"
            raise UserError(f"{where}: {len(pool)} architectures were found inside it; {purpose} needs {FEWEST}")
        found[name] = pool
    return found


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
        with explained(lambda: f"costs: out of memory when measuring {architecture.model_dump_json()}; "
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
