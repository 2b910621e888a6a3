"""Validation while training: figures on images that the training does not see, and the best weights by them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vitas.data.decoded import Cached
from vitas.data.device import DeviceImages, even_parts
from vitas.evolve.scoring import Logits, autocast, tally
from vitas.models.fast import fast
from vitas.models.saved import save_weights
from vitas.models.supernet import Supernet
from vitas.models.vit import from_state
from vitas.report import tracking
from vitas.report.terminal import progress, say
from vitas.spaces.architecture import Architecture
from vitas.train.memory import explained
from vitas.train.state import Best, on_host

MODEL, AVERAGE = "model", "average"
"""What a training has: its weights, and their moving average."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""Whole float32 weights by parameter name, of `MODEL` and perhaps of `AVERAGE`. The last ones are what is trained."""

Nets = Callable[[Weights], Iterator[tuple[str, Sequence[Logits]]]]
"""What is validated: a name, and what gives its logits; of a supernet one for each side."""


class Validation:
    """Top-1 and top-5 in percent and loss in nats of what is trained. Of the training it changes nothing.

    The weights are read, in models that are made for it and given up afterwards: no mode, hook or random number of the
    training is touched, and ZeRO's parted weights are whole. Every rank computes some of the batches; their counts are
    summed in one order: any number of ranks gives the same figures.

    Args:
        accelerator: The one Accelerator of the run.
        every: Epochs between two validations.
        nets: What is validated.
        images: The images, decoded.
        named: Their name in metrics.
        on_device: Brings images to the device of this rank, each time anew: training needs the memory in between.
        batch_size: Images of one forward.
        precision: Accelerate's name of that of a forward.
        keeps_best: Whether the best weights are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        every: float,
        nets: Nets,
        images: Cached,
        named: str,
        on_device: Callable[[Cached], DeviceImages],
        batch_size: int,
        precision: str = "no",
        keeps_best: bool = False,
    ) -> None:
        self.accelerator, self.every, self.nets = accelerator, every, nets
        self.named, self.on_device, self.keeps_best = named, on_device, keeps_best
        self.batch_size, self.precision = batch_size, precision
        self.total = len(images.labels)
        self.cuts = even_parts(0, self.total, -(-self.total // batch_size))
        rank, ranks = accelerator.process_index, accelerator.num_processes
        self.mine = range(len(self.cuts) * rank // ranks, len(self.cuts) * (rank + 1) // ranks)
        self.first = self.cuts[self.mine.start][0] if self.mine else 0
        last = self.cuts[self.mine.stop - 1][1] if self.mine else 0
        self.images = images._replace(images=images.images[self.first : last], labels=images.labels[self.first : last])

    def is_due(self, done: int, steps_per_epoch: int, stop: int) -> bool:
        """Whether one follows so many steps of `stop`; one always follows the last."""
        return done == stop or done % max(1, round(self.every * steps_per_epoch)) == 0

    def figures(self, weights: Weights, stage: str, *, show: bool) -> Iterator[tuple[str, dict[str, float]]]:
        """Name and figures of each net, as metrics, the same on all ranks. All ranks call it."""
        began = time.perf_counter()
        with explained(
            lambda: f"{stage}: out of memory in a validation; lower evaluate.batch_size from {self.batch_size}"
        ):
            images, device = self.on_device(self.images), self.accelerator.device
            weights = {of: {name: one.to(device) for name, one in each.items()} for of, each in weights.items()}
            for name, sides in self.nets(weights):
                top1, top5, loss = self._sums(sides, images, f"{stage}: validates {name}", show)
                values = {tracking.TOP1: 100 * top1, tracking.TOP5: 100 * top5, tracking.LOSS: loss}
                found = {self.metric(of): value / (self.total * len(sides)) for of, value in values.items()}
                now = time.perf_counter()
                yield name, found | {tracking.SECONDS: now - began}
                began = now

    def metric(self, name: str) -> str:
        """What a figure is called in metrics."""
        return f"{self.named}_{name}"

    def better(self, best: Best | None, facts: dict[str, Any], weights: Weights) -> Best | None:
        """The best so far, or these weights: of equal top-1 those of the lower loss, of equal loss the earlier ones.

        What did best on other images does not count.
        """

        def merit(of: Mapping[str, Any]) -> tuple[float, float]:
            loss = of[self.metric(tracking.LOSS)]
            return of[self.metric(tracking.TOP1)], -math.inf if math.isnan(loss) else -loss

        facts = {name: value for name, value in facts.items() if name != tracking.SECONDS}
        facts[tracking.IMAGES] = self.images.digest
        comparable = best is not None and best.facts[tracking.IMAGES] == self.images.digest
        if not self.keeps_best or (best and comparable and merit(facts) <= merit(best.facts)):
            return best
        *_, trained = weights.values()
        return Best(facts, on_host(trained))

    def _sums(self, sides: Sequence[Logits], images: DeviceImages, what: str, show: bool) -> list[float]:
        """Right first guesses, right ones of five, and the sum of the loss, over all images and sides."""
        found = torch.zeros(len(self.cuts), 3, dtype=torch.float64)
        with progress(what, len(self.mine), "batch", show=show, leave=False) as bar:
            for number in self.mine:
                start, stop = (place - self.first for place in self.cuts[number])
                how = {"batch_size": self.batch_size, "precision": self.precision}
                parts = [tally(side, images, start, stop, **how)[:3] for side in sides]
                found[number] = torch.tensor(parts, dtype=torch.float64).sum(0)
                bar.update()
        # Of each batch by itself: the others are zero on this rank, and adding zeros rounds nothing.
        whole: Any = self.accelerator.reduce(found.to(self.accelerator.device), "sum")
        return whole.sum(0).tolist()


def leave_best(file: Path, best: Best, stage: str) -> None:
    """Writes the best weights, with what is known of them as metadata, and says what they are."""
    save_weights(file, best.weights, {name: str(value) for name, value in best.facts.items()})
    step, top1 = best.facts[tracking.STEP], best.facts[f"{tracking.TEST}_{tracking.TOP1}"]
    say(
        f"{stage}: best top-1 on the test images {top1:.2f} %, after step {step}, in {file}; chosen by these images, "
        "it is an optimistic figure"
    )


def of_model(architecture: Architecture) -> Nets:
    """Validates a model and its average, by the forward that stage `evaluate` takes."""

    def nets(weights: Weights) -> Iterator[tuple[str, Sequence[Logits]]]:
        for name, state in weights.items():
            yield name, [from_state(architecture, dict(state))]

    return nets


def of_supernet(
    empty: Supernet, subnets: Mapping[str, Architecture], device: torch.device, batch_size: int, precision: str
) -> Nets:
    """Validates subnets of a supernet, as the search scores them.

    Args:
        empty: The supernet on the device `meta`, without weights.
        subnets: Which, by name.
        device: Of the forward.
        batch_size: Images of a forward.
        precision: Accelerate's name of that of the forward.
    """

    def nets(weights: Weights) -> Iterator[tuple[str, Sequence[Logits]]]:
        *_, trained = weights.values()
        net = deepcopy(empty)
        net.load_state_dict(trained, assign=True)
        for name, architecture in subnets.items():
            with autocast(device, precision):
                sides = [fast(net.extract(architecture, side), batch_size) for side in net.sides]
            yield name, sides

    return nets
