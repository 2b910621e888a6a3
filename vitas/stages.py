"""The stages of a run, in their order: supernet -> evolve -> retrain -> baseline -> evaluate.

Each stage owns a folder of the run. It starts from files that the stages before it left, so that it can run alone,
resumes by itself, and does nothing when it is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors.torch import load_file
from torch import nn

from vitas import cost, data, evolution, models, recipe, tracking
from vitas.config import UserError
from vitas.evaluate import correct
from vitas.recipe import Recipe, Training
from vitas.space import Architecture
from vitas.supernet import Supernet
from vitas.tracking import Tracker, progress, say, write_atomically
from vitas.trainer import EXIT_STOPPED, StopRequest, Trainer
from vitas.vit import VisionTransformer
from vitas.workers import Entry, Journal, Workers


def make_accelerator(settings: Recipe) -> Accelerator:
    """The one Accelerator of a run; the backend is the launcher's choice, the same code serves all."""
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by DeepSpeed when it is imported
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # the launcher's default: one thread, whatever the machine
            cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(max(1, cores - settings.data.workers))
    if not on_cpu:
        torch.set_float32_matmul_precision("high")  # TF32; on CPUs it would mean bfloat16
    handlers: list[Any] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The backend is named outright: DeepSpeed on CPU ranks finds no process group otherwise. The time is
        # long because one rank may decode or count while the others wait.
        handlers.append(InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=timedelta(hours=6)))
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true")
    accelerator = Accelerator(
        # Said outright for ranks that torchrun started: Accelerate would take each for a single process, and
        # synchronise nothing. DeepSpeed on CPU ranks, though, refuses the word.
        cpu=on_cpu and not deepspeed,
        log_with="wandb" if settings.tracking.wandb != "never" else None,
        kwargs_handlers=handlers,
    )
    assert accelerator.num_processes == 1 or accelerator.distributed_type != DistributedType.NO
    return accelerator


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    recipe: Recipe
    accelerator: Accelerator
    tracker: Tracker
    stop: StopRequest
    train: data.Split
    test: data.Split

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.folder

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.train.classes)

    def say(self, text: str) -> None:
        """Prints a line once, not once a rank."""
        if self.accelerator.is_main_process:
            say(text)

    def main_first(self, work: Callable[[bool], Any]) -> Any:
        """`work(True)` on the main process, then `work(False)` on the others, which find what it wrote."""
        if self.accelerator.is_main_process:
            result = work(True)
            self.accelerator.wait_for_everyone()
            return result
        self.accelerator.wait_for_everyone()
        return work(False)

    def cached(self, split: data.Split, name: str) -> data.Cached:
        """The images of a split, decoded once for all ranks."""
        work = partial(
            data.decoded, split, self.folder / "cache" / name, self.recipe.space.image_size, self.recipe.data
        )
        return self.main_first(lambda main: work(write=main))

    def claim(self, stage: str, settings: dict[str, Any]) -> Path:
        """The folder of a stage, whose contents were made with just these settings.

        Raises:
            UserError: There is work in it that was done with others.
        """
        folder = self.folder / stage
        file = folder / "settings.yaml"
        settings = json.loads(json.dumps(settings))
        before = yaml.safe_load(file.read_text()) if file.is_file() else settings
        if before != settings:
            old, new = _flat(before), _flat(settings)
            key = next(key for key in (*new, *old) if old.get(key) != new.get(key))
            raise UserError(
                f"{folder}: made with {key}: {old.get(key)}, and the recipe now says {new.get(key)}; "
                f"give the run another name, or delete {folder}"
            )
        if self.accelerator.is_main_process and not file.is_file():
            write_atomically(file, yaml.safe_dump(settings, sort_keys=False))
        return folder


def run(settings: Recipe) -> None:
    """Does the stages of a recipe, from wherever an earlier run of it stopped."""
    accelerator = make_accelerator(settings)
    with accelerator.main_process_first():
        train, test = data.open_splits(settings.data, train=settings.stages != ["evaluate"])
    if accelerator.is_main_process:
        write_atomically(settings.folder / "recipe.yaml", recipe.dump(settings))
        device = f"{accelerator.num_processes} x {accelerator.device.type}"
        say(f"{settings.name}: {', '.join(settings.stages)} on {device} ({accelerator.distributed_type.value}), "
            f"in {settings.folder}")  # fmt: skip
    accelerator.wait_for_everyone()
    tracker = Tracker(settings, accelerator)
    context = Run(settings, accelerator, tracker, StopRequest(), train, test)
    works = {"supernet": supernet, "evolve": evolve, "retrain": retrain, "baseline": baseline, "evaluate": evaluate}
    for stage in settings.stages:
        works[stage](context)
    tracker.finish()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def skip_probability(run: Run) -> float:
    """The skip probability of the supernet: the recipe's, or the one calibrated to its budget."""
    return run.recipe.skip_probability(run.num_classes)


def supernet(run: Run) -> None:
    """Trains the supernet: another random subnet at each step."""
    settings, space = run.recipe, run.recipe.space
    skip = skip_probability(run)
    folder = run.claim(
        "supernet", _settings(run, "space", "supernet") | {"holdout": settings.data.holdout, "skip": skip}
    )
    if (folder / "model.safetensors").is_file():
        return
    run.say(
        f"supernet: {space.size:.2e} architectures" + (f", blocks skipped with probability {skip:.3f}" if skip else "")
    )
    images, _ = run.train.hold_out(settings.data.holdout, settings.seed)
    _train(
        run,
        _new_supernet(run),
        settings.supernet,
        folder,
        images,
        inputs=lambda step: (space.sample(settings.seed, step, skip=skip),),
    )


def evolve(run: Run) -> None:
    """Searches the supernet; leaves `front.json` and `best.yaml`."""
    settings, accelerator = run.recipe, run.accelerator
    weights = run.folder / "supernet" / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights}: No such file or directory: stage evolve needs a supernet; add stage supernet")
    parts = {"budget": settings.budget.model_dump(), "evolve": settings.evolve.model_dump(exclude={"batch_size"})}
    # Scores belong to one set of weights: after another training of the supernet they would be stale.
    parts |= {"supernet": run.main_first(lambda _: hashlib.sha256(weights.read_bytes()).hexdigest())}
    folder = run.claim("evolution", _settings(run, "space") | parts)
    if (folder / "best.yaml").is_file():
        return
    if settings.evolve.score_on == "test":
        run.say("evolve: candidates are scored on the test images, as in the paper; the test accuracy of the winner "
                "is then an optimistic figure")  # fmt: skip
        images = run.cached(run.test, "test")
    else:
        images = run.cached(run.train.hold_out(settings.data.holdout, settings.seed)[1], "holdout")
    net = _new_supernet(run)
    net.load_state_dict(load_file(weights))
    net = net.to(accelerator.device).eval()
    journal = run.main_first(lambda _: Journal(folder, accelerator.process_index))
    workers = Workers(accelerator, partial(_score, run, net, images), journal)
    total = settings.evolve.population * settings.evolve.generations
    bar = progress("evolve", total, "candidate", show=accelerator.is_main_process)
    entries: list[Entry] = []

    def score(candidates: list[Architecture]) -> list[Entry]:
        before = len(entries)

        def show(done: int) -> None:
            if run.stop:
                sys.exit(EXIT_STOPPED)  # every score so far is in the journal
            bar.update(before + done - bar.n)

        return workers.score_all(candidates, show)

    run.tracker.rewind("evolve", 0)
    generations = evolution.evolve(
        settings.space,
        settings.budget,
        settings.evolve,
        run.num_classes,
        score,
        seed=settings.seed,
        skip=skip_probability(run),
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
    return cost.measure_throughput(
        model,
        model.architecture.image_size,
        batch_size=run.recipe.budget.throughput_batch,
        device=run.accelerator.device,
    )


def _score(run: Run, net: Supernet, images: data.Cached, architecture: Architecture) -> dict[str, Any]:
    """Top-1 in percent, the mean over the supernet's sides, and the costs of one candidate."""
    began, budget = time.perf_counter(), run.recipe.budget
    entry: dict[str, Any] = cost.count(architecture, run.num_classes)
    models = {side: net.extract(architecture, side) for side in net.sides}
    if budget.throughput:
        entry["throughput"] = _throughput(run, models["left"])
    for side, model in models.items():
        right, _, total = _correct(run, model, images, run.recipe.evolve.batch_size).tolist()
        entry[side] = 100 * right / total
    entry["top1"] = sum(entry[side] for side in models) / len(models)
    return entry | {"seconds": time.perf_counter() - began}


def retrain(run: Run) -> None:
    """Trains the found architecture, or the one that the recipe names."""
    architecture = _architecture(run)
    folder = run.claim("retrain", _settings(run, "retrain") | {"shape": architecture.model_dump(mode="json")})
    _train_one(run, architecture, folder, init=run.recipe.retrain.init)


def baseline(run: Run) -> None:
    """Trains a plain uniform ViT of no less cost in just the same way, for comparison."""
    architecture = cost.uniform_vit(_architecture(run), run.num_classes)
    folder = run.claim("baseline", _settings(run, "retrain") | {"shape": architecture.model_dump(mode="json")})
    _train_one(run, architecture, folder, init="scratch")


def evaluate(run: Run) -> None:
    """Top-1, top-5, costs and throughput on the test images, as a table and in `evaluation.json`."""
    settings, accelerator = run.recipe.evaluate, run.accelerator
    if settings.weights is not None:
        chosen = settings.architecture or Path(settings.weights).name
        loaders = {chosen: partial(models.load_model, settings.weights, settings.architecture)}
    else:
        names = {"retrain": "found", "baseline": "uniform ViT"}
        loaders = {name: partial(models.load_model, run.folder / stage) for stage, name in names.items()
                   if (run.folder / stage / "model.safetensors").is_file()}  # fmt: skip
    if not loaders:
        raise UserError(f"{run.folder}: stage evaluate needs a trained model; add stage retrain, or evaluate.weights")
    images = run.cached(run.test, "test")
    rows: dict[str, dict[str, float]] = {}
    total = 0
    for name, load in loaders.items():
        model = load().to(accelerator.device)
        if model.num_classes != run.num_classes:
            raise UserError(f"{name}: has {model.num_classes} classes, the data {run.num_classes}")
        counts = _correct(run, model, images, settings.batch_size, shared=True)
        reduced: Any = accelerator.reduce(counts, "sum")
        right, among_five, total = reduced.tolist()
        rows[name] = {tracking.TOP1: 100 * right / total, tracking.TOP5: 100 * among_five / total}
        rows[name] |= cost.count(model.architecture, run.num_classes)
        if accelerator.is_main_process:  # alone: ranks of one machine would slow each other down
            rows[name][tracking.THROUGHPUT] = cost.measure_throughput(
                model, model.architecture.image_size, batch_size=settings.throughput_batch, device=accelerator.device
            )
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name, row in rows.items():
            run.tracker.log("evaluate", 0, model=name, **row)
        write_atomically(run.folder / "evaluation.json", json.dumps(rows, indent=1))
        run.test.unreadable.tell(say)
        say(table(rows, int(total)))


def table(rows: dict[str, dict[str, float]], images: int) -> str:
    """The final figures as text."""
    lines = [f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}{'MACs':>16}{'params':>13}{'images/s':>10}"]
    for name, row in rows.items():
        lines.append(f"{name:<12}{row[tracking.TOP1]:>9.2f}{row[tracking.TOP5]:>9.2f}{row['macs']:>16,}"
                     f"{row['params']:>13,}{row[tracking.THROUGHPUT]:>10.0f}")  # fmt: skip
    return "\n".join([*lines, f"on {images} test images"])


def _architecture(run: Run) -> Architecture:
    name = run.recipe.retrain.architecture
    if name != "best":
        return models.find(name)
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
        net = _new_supernet(run)
        net.load_state_dict(load_file(run.folder / "supernet" / "model.safetensors"))
        model.load_state_dict(net.extract(architecture).state_dict())
    if run.accelerator.is_main_process:
        write_atomically(folder / "architecture.yaml", architecture.to_yaml())
    _train(run, model, settings, folder, run.train, inputs=lambda step: ())


def _train(run: Run, model: nn.Module, settings: Training, folder: Path, images: data.Split, *,
           inputs: Callable[[int], tuple[Any, ...]]) -> None:  # fmt: skip
    source, seed = run.recipe.data, run.recipe.seed
    transform = data.train_transform(run.recipe.space.image_size, settings.augment, source)
    count = run.main_first(
        lambda _: data.count_images(images, source.examples, run.folder / "cache" / f"{folder.name}_images")
    )
    Trainer(
        accelerator=run.accelerator,
        model=model,
        settings=settings,
        stage=folder.name,
        folder=folder,
        images=count,
        batches=lambda plan: data.loader(
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


def _new_supernet(run: Run) -> Supernet:
    settings = run.recipe.supernet
    torch.manual_seed(run.recipe.seed)
    return Supernet(run.recipe.space, run.num_classes, sharing=settings.sharing, attention=settings.attention)


def _correct(run: Run, model: nn.Module, images: data.Cached, batch_size: int, *, shared: bool = False) -> torch.Tensor:
    """`evaluate.correct` on this rank's device: of all images, or of this rank's part of them."""
    source, accelerator = run.recipe.data, run.accelerator
    rank, world = (accelerator.process_index, accelerator.num_processes) if shared else (0, 1)
    return correct(model, images, mean=source.mean, std=source.std, batch_size=batch_size, device=accelerator.device,
                   rank=rank, world=world)  # fmt: skip


def _settings(run: Run, *sections: str) -> dict[str, Any]:
    """What decides the outcome of a stage: its sections, and the images. Where and how fast it runs does not."""
    how = {"checkpoint_every", "keep_checkpoints", "micro_batch_size", "grad_checkpointing", "compile"}
    images = run.recipe.data.model_dump(mode="json", exclude={"workers", "test", "holdout"})
    chosen = {name: getattr(run.recipe, name).model_dump(mode="json", exclude=how) for name in sections}
    return {"seed": run.recipe.seed, "data": images, **chosen}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, part in values.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
