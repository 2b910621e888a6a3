"""A recipe for images that nobody has written one for: `vitas new`."""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from vitas.config import UserError, parse
from vitas.data import looked, sources
from vitas.data.batches import allowed_cores
from vitas.data.looked import Looked
from vitas.report.numbers import amount, duration
from vitas.report.terminal import note
from vitas.runs import fitted, rehearsal
from vitas.runs.rehearsal import Speeds
from vitas.sections import Data
from vitas.spaces.budget import Budget, calibrate_skip
from vitas.spaces.cost import counts, reachable
from vitas.spaces.named import NAMED
from vitas.spaces.space import SearchSpace

SHARES = {"supernet": 0.5, "evolve": 0.12, "retrain": 0.28}
"""Of the time asked for; the rest is for the start, the test, and what a measurement of seconds does not foresee."""
ENOUGH, FEWEST = 40.0, 1.0
"""Epochs of a supernet that make a larger space worth it; and those below which nothing is learnt."""
MOST = 300.0
"""Epochs, as in the paper."""
WORTH_IT = 1.3
"""Times as many epochs that make a smaller space worth it."""
LEAST_IMAGES = 20
FEWEST_SCORES = 32
"""Architectures that a search scores, however short the time."""


@dataclass(frozen=True)
class Choice:
    """A ready space at one image size, and a budget in it."""

    name: str
    space: SearchSpace
    budget: Budget

    @property
    def in_words(self) -> str:
        """In short."""
        return f"{self.name} at {self.space.image_size} pixels"


@dataclass(frozen=True)
class Schedule:
    """How long what is done."""

    supernet: float
    """Epochs."""
    retrain: float
    """Epochs."""
    evolve: dict[str, Any]
    """The search."""
    seconds: dict[str, float]
    """Of each stage, as foreseen."""


@dataclass(frozen=True)
class Plan:
    """All that a recipe says, and why."""

    source: str
    data: dict[str, Any]
    """Where the images are."""
    choice: Choice
    schedule: Schedule
    speeds: Speeds
    how: dict[str, Any]
    """How the images are used."""
    supernet: dict[str, Any]
    training: dict[str, Any]
    """Sections `supernet` and `retrain`, but for their epochs."""


def write(source: str, *, budget: float | None, gpus: int | None, hours: float) -> str:
    """A commented recipe for the images of `source`, that runs for about so many hours on this machine.

    Args:
        source: What `data.train` names.
        budget: The most multiply-adds of a network; left out, what the space has on average.
        gpus: GPUs of the run; left out, those of this machine.
        hours: How long it may run.

    Raises:
        UserError: The images cannot be used, no space has such a budget, there are no such GPUs, or the time is too
            short for anything.
    """
    here, started = torch.cuda.device_count(), time.time() - psutil.Process().create_time()
    gpus = here if gpus is None else gpus
    if gpus and not here:
        raise UserError(f"--gpus: {gpus}: this machine has none to measure on; run it where the training will be")
    data: dict[str, Any] = {"train": source} | looked.where_test_is(Data(train=source))
    train, test = sources.open_splits(parse(Data, data, source=source))
    seen, images, classes = looked.look(train), len(train.indices), len(train.classes)
    if images < LEAST_IMAGES:
        raise UserError(f"{source}: has {images} images for the training, expected at least {LEAST_IMAGES}")
    ranks, seconds = max(1, gpus), 3600 * hours
    choices = _choices(seen.side, classes, budget)
    device: list[float] = []
    for choice in choices:
        device.append(rehearsal.step_speed(choice.space, choice.budget, classes))
        note(f"{choice.in_words}: {device[-1]:,.0f} images/s on the device alone")
        if _too_slow(device[-1] * ranks, seconds, images):
            break  # and so are the larger ones
    at = max(0, len(device) - 1 - _too_slow(device[-1] * ranks, seconds, images))
    plan = _planned(source, data, choices[at], seconds, started, images, len(test.indices), ranks)
    while at and plan.schedule.supernet < ENOUGH:  # reading takes its time as well
        wanted = device[at] * ENOUGH / max(plan.schedule.supernet, 1e-3)
        at = max((place for place in range(at) if device[place] >= wanted), default=0)
        smaller = _planned(source, data, choices[at], seconds, started, images, len(test.indices), ranks)
        if smaller.schedule.supernet < WORTH_IT * plan.schedule.supernet:
            break
        plan = smaller
    if plan.schedule.supernet < FEWEST:
        raise UserError(
            f"--hours: {hours:g}: enough for {plan.schedule.supernet:g} epochs of the smallest supernet, "
            f"expected time for {FEWEST:g}"
        )
    return _text(plan, seen, len(test.indices), gpus, hours)


def _too_slow(speed: float, seconds: float, images: int) -> bool:
    return speed * seconds * SHARES["supernet"] < ENOUGH * images


def _planned(source: str, data: dict[str, Any], choice: Choice, seconds: float, started: float, images: int,
             tested: int, ranks: int) -> Plan:  # fmt: skip
    """What fits into the time with a choice, by a rehearsal of it."""
    note(f"{choice.in_words}: a few steps of each stage")
    how = fitted.data(images, choice.space)
    held_out = round(how["holdout"] * images)
    training = fitted.training(images - held_out, choice.space, MOST)
    supernet = fitted.supernet(training)
    values = {
        "data": how | data,
        "space": choice.space.model_dump(),
        "budget": choice.budget.model_dump(),
        "supernet": supernet,
        "retrain": training,
    }
    speeds = rehearsal.measure(values, images, held_out)
    schedule = _schedule(speeds, seconds, started, images, held_out, tested, ranks)
    note(f"{choice.in_words}: {schedule.supernet:g} epochs of the supernet fit into the time")
    return Plan(source, data, choice, schedule, speeds, how, supernet, training)


def _choices(side: int, classes: int, most: float | None) -> list[Choice]:
    """The spaces for images of this shorter side that hold the budget, the smallest first.

    Raises:
        UserError: None holds it; says what they reach.
    """
    every = [
        (name, SearchSpace.model_validate({"extends": name, "image_size": size}))
        for name, ready in NAMED.items()
        for size in ready.image_sizes
    ]
    filled = [one for one in every if one[1].image_size <= side] or every[:1]
    for spaces in (filled, every[len(filled) :]):  # larger images than there are only if the budget asks for them
        found = []
        for name, space in spaces:
            budget = _average(space, classes) if most is None else Budget(macs=(0.8 * most, most))
            try:
                calibrate_skip(space, budget, classes)
            except UserError:
                continue
            low, high = reachable(space, classes)["macs"]
            if budget.macs and low <= budget.macs[1] and budget.macs[0] <= high:
                found.append(Choice(name, space, budget))
        if found:
            return found
    reach = [reachable(space, classes)["macs"] for _, space in every]
    least, largest = min(low for low, _ in reach), max(high for _, high in reach)
    raise UserError(f"--budget: {most:g}: the ready spaces reach {least:,} to {largest:,} multiply-adds")


def _average(space: SearchSpace, classes: int) -> Budget:
    """The budget that random subnets have on average, some blocks skipped."""
    genomes = space.sample_genomes(np.random.default_rng(0), 1000, skip=0.25)
    mean = float(counts(space.widths(genomes), classes)["macs"].mean())
    return Budget(macs=(float(f"{0.8 * mean:.2g}"), float(f"{1.1 * mean:.2g}")))


def _schedule(
    speeds: Speeds, seconds: float, started: float, images: int, held_out: int, tested: int, ranks: int
) -> Schedule:
    """What fits into the time, by what was measured on one rank."""
    rest = started + speeds.decode * (held_out + tested)
    left = max(0.0, seconds - rest)
    candidate = speeds.score * held_out / ranks
    most = fitted.CANDIDATES + fitted.SMOOTH
    evolve = fitted.search(int(min(most, max(FEWEST_SCORES, left * SHARES["evolve"] / candidate))))
    scores = evolve["smooth"] + evolve["population"] * evolve["generations"]
    epochs = {}
    of = {"supernet": images - held_out, "retrain": images}
    for stage, count in of.items():
        epochs[stage] = min(MOST, left * SHARES[stage] * getattr(speeds, stage) * ranks / count)
    took = {stage: epochs[stage] * of[stage] / getattr(speeds, stage) / ranks for stage in epochs}
    took |= {"evolve": scores * candidate, "the rest": rest}
    return Schedule(_rounded(epochs["supernet"]), _rounded(epochs["retrain"]), evolve, took)


def _rounded(epochs: float) -> float:
    return math.floor(epochs) if epochs >= 10 else math.floor(10 * epochs) / 10


def _text(plan: Plan, seen: Looked, tested: int, gpus: int, hours: float) -> str:
    """The recipe."""
    source, data, choice, planned, measured = plan.source, plan.data, plan.choice, plan.schedule, plan.speeds
    how, training = plan.how, plan.training
    counts = sorted(seen.counts.items(), key=lambda one: one[1])
    (rarest, few), (commonest, many) = counts[0], counts[-1]
    (wide, high), (widest, highest) = np.median(seen.sizes, axis=0).astype(int), seen.sizes.max(axis=0)
    balance = f"{many:,} of {commonest}" + (f", {few:,} of {rarest}" if few < many else " each")
    uneven = "\n# Some classes are rare: top-1 tells mostly of the others." if many > 5 * few else ""
    machine = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else f"{allowed_cores()} CPU cores"
    times = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in planned.seconds.items())
    low, most = choice.budget.macs or (0.0, 0.0)
    where_test = "# test: those that come with it"
    if "test" in data:
        where_test = "test: " + json.dumps(data["test"])
    elif "test_part" in data:
        where_test = f"test_part: {data['test_part']}  # there are no test images: this part of each class becomes them"
    ratio = training["augment"]["scale"]
    name = re.sub(r"[^\w.-]+", "-", Path(os.path.abspath(source)).name).strip("-._") or "mine"
    launch = "accelerate launch" + (" --mixed_precision bf16" if gpus else "")
    launch += f" --multi_gpu --num_processes {gpus}" if gpus > 1 else ""
    return f'''recipe = r"""
---
# {source}: {choice.in_words}, networks of {amount(low)} to {amount(most)} multiply-adds, in {hours:g} h.
#
#   {launch} FILE [key=value ...]
#
# Images: {seen.images:,} to train with, {tested:,} for the test; {len(counts)} classes: {balance}.
# Size: {wide} x {high} in the median, at most {widest} x {highest}, of {len(seen.sizes)} that were looked at.{uneven}
# Machine: {machine}.
# Measured in a few steps: supernet {measured.supernet:,.0f} images/s, retraining {measured.retrain:,.0f} images/s.
# Foreseen: {times}; {duration(sum(planned.seconds.values()))} in all.

name: {json.dumps(name)}

data:
  train: {json.dumps(source)}
  {where_test}
  holdout: {how["holdout"]}  # of the training images, to score candidates on: {round(how["holdout"] * seen.images):,}
  crop_pct: {how["crop_pct"]}
  workers: {how["workers"]}

space:  # vitas recipes lists the ready ones
  extends: {choice.name}
  image_size: {choice.space.image_size}  # nine of ten images are as large: {seen.side}

supernet:
  epochs: {planned.supernet:g}
  warmup_epochs: {min(5.0, planned.supernet / 10):.2g}
  batch_size: {training["batch_size"]}  # about {fitted.STEPS} steps an epoch, and at most {fitted.LARGEST}
  lr: {plan.supernet["lr"]:.1e}  # half of that of a network alone; lower it if the loss stays near that of guessing
  checkpoint_minutes: {training["checkpoint_minutes"]:g}
  augment: &augment {{scale: {ratio}, hflip: 0.5}}  # hflip: 0.0 where left and right differ, as in letters

budget:
  macs: [{low:.3g}, {most:.3g}]  # vitas check FILE tells what the space reaches

evolve:
  population: {planned.evolve["population"]}
  generations: {planned.evolve["generations"]}
  objectives: {json.dumps(planned.evolve["objectives"])}
  smooth: {planned.evolve["smooth"]}  # random architectures that are scored before, to tell noise from what matters

retrain:
  epochs: {planned.retrain:g}
  warmup_epochs: {min(5.0, planned.retrain / 10):.2g}
  batch_size: {training["batch_size"]}
  lr: {training["lr"]:.1e}
  checkpoint_minutes: {training["checkpoint_minutes"]:g}
  augment: *augment
# """; __name__ == "__main__" and __import__("vitas").main(__file__)
'''
