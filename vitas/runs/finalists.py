"""A tournament: architectures are trained for a little, the better half again for longer, until one is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from accelerate.utils import broadcast_object_list

from vitas.data.device import DeviceImages
from vitas.data.splits import Split
from vitas.evolve.workers import Workers
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.runs.trainings import Job, Trainings
from vitas.sections import Retraining
from vitas.spaces.architecture import Architecture

SHARE = 0.5
"""What all trainings of a tournament take as a part of one retraining; with entrants that do not halve evenly more."""

Standing = dict[str, Any]
"""An architecture in words and its key; of each round that it was in, `epochs`, and `top1` and `loss` after them."""


def tournament(
    run: Run,
    stage: str,
    entrants: Mapping[str, Sequence[Architecture]],
    *,
    split: Split,
    images: DeviceImages,
    digest: str,
    workers: Workers,
    source: TrainedSupernet | None = None,
) -> dict[str, list[Standing]]:
    """Who wins each of several tournaments, which are held together. All ranks call it.

    A round trains all that are left anew, each on one rank, by the schedule of `retrain` shortened; the half of lower
    loss (of odd ones the larger half) stays, and the next round takes twice the epochs.

    Args:
        run: The run.
        stage: Folder in the run. What was trained in it before is not trained again.
        entrants: The architectures of each tournament, the favourite first: it wins a draw.
        split: What they train on.
        images: What decides, by the loss.
        digest: A name of these images.
        workers: The ranks.
        source: The supernet whose weights they start from; left out, they start from new ones.

    Returns:
        The standings of each, the winner first; then those that came further; then those of lower loss.
    """
    lines: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {architecture.key: [] for architecture in each} for name, each in entrants.items()
    }
    left = {name: list(each) for name, each in entrants.items()}
    most = max(map(len, left.values()))
    for turn in range(rounds(most)):
        schedule = shortened(run.recipe.retrain, most, turn, "supernet" if source else "scratch")
        trainings = Trainings(
            run,
            f"{stage}/{turn + 1}",
            schedule=schedule,
            split=split,
            images=images,
            digest=digest,
            workers=workers,
            source=source,
        )
        jobs = {each.key: Job(each) for name in left for each in left[name] if len(left[name]) > 1}
        known = broadcast_object_list([trainings.do(list(jobs.values()))])[0]
        for name, each in left.items():
            if len(each) > 1:
                found = {one.key: known[Job(one).name] for one in each}
                for key, line in found.items():
                    lines[name][key].append({"epochs": schedule.epochs, "top1": line["top1"], "loss": line["loss"]})
                left[name] = sorted(each, key=lambda one: _place(found[one.key]["loss"]))[: (len(each) + 1) // 2]
    return {name: _standings(each, lines[name]) for name, each in entrants.items()}


def rounds(entrants: int) -> int:
    """How often so many are halved until one is left."""
    return (entrants - 1).bit_length()


def shortened(schedule: Retraining, entrants: int, turn: int, init: Literal["scratch", "supernet"]) -> Retraining:
    """The schedule of a round, the first being 0: all rounds of so many entrants take about `SHARE` of it together."""
    return schedule.short(schedule.epochs * SHARE * 2**turn / (entrants * rounds(entrants)), init)


def _place(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf  # no number would stand wherever it stood before


def _standings(entrants: Sequence[Architecture], lines: Mapping[str, list[dict[str, float]]]) -> list[Standing]:
    def place(standing: Standing) -> tuple[int, float]:
        played = standing["rounds"]
        return -len(played), _place(played[-1]["loss"]) if played else 0.0

    standings = [{"key": one.key, "shape": one.in_words, "rounds": lines[one.key]} for one in entrants]
    return sorted(standings, key=place)
