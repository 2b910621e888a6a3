"""The stage `evolve`: candidates from NSGA-II, scored in the trained supernet, on all ranks."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from vitas.config import UserError
from vitas.data import decoded
from vitas.files import write_atomically
from vitas.models import saved, throughput
from vitas.models.supernet import Supernet
from vitas.models.vit import VisionTransformer
from vitas.report import tracking
from vitas.report.terminal import progress
from vitas.runs.run import Run
from vitas.search import evolution
from vitas.search.journal import Entry, Journal
from vitas.search.workers import Workers
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained


def evolve(run: Run) -> None:
    """Searches the supernet; leaves `front.json` and `best.yaml`."""
    settings = run.recipe
    accelerator = run.accelerator
    weights = run.supernet_weights("stage evolve")
    on_test = settings.evolve.score_on == "test"
    split = run.test if on_test else run.train.hold_out(settings.data.holdout, settings.seed)[1]
    images = {name: value for name, value in split.key().items() if name in ("source", "rows", "labels", "classes")}
    parts = {
        "budget": settings.budget.model_dump(),
        "evolve": settings.evolve.model_dump(exclude={"batch_size"}),
        # Scores belong to one set of weights and of images: of others they would be stale.
        "supernet": run.checksum(weights),
        "images": images | ({"test": settings.data.test} if on_test else {}),
    }
    folder = run.claim("evolution", run.settings("space") | parts)
    if (folder / "best.yaml").is_file():
        return
    if on_test:
        run.say(
            "evolve: candidates are scored on the test images, as in the paper; the test accuracy of the winner is "
            "then an optimistic figure"
        )
    decoded_images = run.cached(split, "test" if on_test else "holdout", settings.space.image_size)
    net = run.new_supernet()
    saved.load_weights(net, weights)
    net = net.to(accelerator.device).eval()
    journal = run.main_first(lambda _: Journal(folder, accelerator.process_index))
    workers = Workers(accelerator, partial(_score, run, net, decoded_images), journal)
    total = settings.evolve.population * settings.evolve.generations
    bar = progress("evolve", total, "candidate", show=accelerator.is_main_process)
    entries: list[Entry] = []

    def score(candidates: list[Architecture]) -> list[Entry]:
        before = len(entries)

        def show(done: int) -> None:
            if run.stop:
                run.stop.leave()  # every score so far is in the journal
            bar.update(before + done - bar.n)

        return workers.score_all(candidates, show)

    if not journal.entries:  # else the search is replayed, and tells what it told before
        run.tracker.rewind("evolve", 0)
    generations = evolution.evolve(
        settings.space,
        settings.budget,
        settings.evolve,
        run.num_classes,
        score,
        seed=settings.seed,
        skip=run.skip,
    )
    best: list[Entry] = []
    for number, generation in enumerate(generations, 1):
        entries += generation
        best = evolution.front(entries, settings.budget, settings.evolve.objectives)
        top1 = best[0]["top1"] if best else 0.0
        bar.set_postfix(generation=f"{number}/{settings.evolve.generations}", best=f"{top1:.2f}", refresh=False)
        mean = sum(entry["top1"] for entry in generation) / len(generation)
        scored = len({entry["key"] for entry in entries})
        run.tracker.log("evolve", number, **{tracking.BEST: top1, tracking.TOP1: mean, tracking.SCORED: scored})
        if accelerator.is_main_process:
            write_atomically(folder / "front.json", json.dumps(best, indent=1))
    bar.close()
    best = _confirmed(run, net, entries) if settings.budget.throughput else best
    if not best:
        raise UserError(f"{folder}: no candidate was inside the budget; widen budget.throughput, or search longer")
    if accelerator.is_main_process:
        write_atomically(folder / "best.yaml", Architecture.model_validate(best[0]["architecture"]).to_yaml())
    accelerator.wait_for_everyone()


def _confirmed(run: Run, net: Supernet, entries: list[Entry]) -> list[Entry]:
    """The front of those whose throughput is inside the budget when it is measured once more, on the main process.

    Of many noisy measurements some fall into the window by luck, and the search prefers what is in the window.
    """
    settings = run.recipe
    while best := evolution.front(entries, settings.budget, settings.evolve.objectives):
        for entry in best:
            if run.accelerator.is_main_process and "throughput_again" not in entry:
                architecture = Architecture.model_validate(entry["architecture"])
                entry["throughput_again"] = _throughput(run, net.extract(architecture))
        again: list[Entry] = broadcast_object_list([best])[0]
        outside = {entry["key"] for entry in again
                   if not settings.budget.allows({"throughput": np.array([entry["throughput_again"]])})}  # fmt: skip
        if not outside:
            if run.accelerator.is_main_process:
                write_atomically(run.folder / "evolution" / "front.json", json.dumps(again, indent=1))
            return again
        entries = [entry for entry in entries if entry["key"] not in outside]
    return best


def _throughput(run: Run, model: VisionTransformer) -> float:
    return throughput.measure_throughput(
        model,
        model.architecture.image_size,
        batch_size=run.recipe.budget.throughput_batch,
        device=run.accelerator.device,
    )


def _score(run: Run, net: Supernet, images: decoded.Cached, architecture: Architecture) -> dict[str, Any]:
    """Top-1 in percent, the mean over the supernet's sides, and the costs of one candidate."""
    began = time.perf_counter()
    budget = run.recipe.budget
    entry: dict[str, Any] = cost.count(architecture, run.num_classes)
    models = {side: net.extract(architecture, side) for side in net.sides}
    size = run.recipe.evolve.batch_size
    with explained(lambda: f"evolve: out of memory at architecture {architecture.model_dump_json()}; "
                           f"lower evolve.batch_size from {size}"):  # fmt: skip
        if budget.throughput:
            entry["throughput"] = _throughput(run, models["left"])
        for side, model in models.items():
            right, _, total = run.correct(model, images, size).tolist()
            entry[side] = 100 * right / total
    entry["top1"] = sum(entry[side] for side in models) / len(models)
    return entry | {"seconds": time.perf_counter() - began}
