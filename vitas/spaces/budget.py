"""The budget: windows of costs, and how often blocks are skipped to meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from vitas.config import Section, UserError
from vitas.spaces.architecture import Architecture
from vitas.spaces.cost import COSTS, COUNTED, counts
from vitas.spaces.space import SearchSpace

N = TypeVar("N")

DRAWS = 300
"""Random architectures of which one inside the budget is taken: more come nearer to its cost, and take longer."""


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"expected [lowest, highest], got [{values[0]:g}, {values[1]:g}]")
    return values


Rising = Annotated[tuple[N, N], AfterValidator(_rising)]
"""A pair `[lowest, highest]`."""

Window = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]], AfterValidator(_rising)]


class Budget(Section):
    """Windows `[lowest, highest]` that every returned architecture lies in; all that are given hold at once."""

    flops: Window | None = None
    """FLOPs for one image as the paper counts them (multiply-adds on patch tokens)."""
    macs: Window | None = None
    """Exact multiply-adds for one image."""
    params: Window | None = None
    """Parameters of the extracted model."""
    throughput: Window | None = None
    """Images a second, measured on the device of the search."""
    latency: Window | None = None
    """Milliseconds for a single image, measured on the device of the search."""
    memory: Window | None = None
    """Bytes at the peak of a forward of `throughput_batch` images, weights included."""
    throughput_batch: Annotated[int, Field(gt=0, le=2**20)] = 256
    """Batch size at which throughput and memory are measured."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the deployment: what is measured is measured in it."""
    compile: bool = False
    """Whether the deployment compiles the model with torch.compile."""

    def windows(self, names: Sequence[str] = COSTS) -> dict[str, tuple[float, float]]:
        """The windows that are set, of the costs in `names`."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def deployment(self) -> dict[str, Any]:
        """How costs are measured."""
        return {"throughput_batch": self.throughput_batch, "precision": self.precision, "compile": self.compile}

    def violations(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N, windows) How far each cost lies outside its window, relative to the upper end; <= 0 is inside.

        Windows of costs that are not given do not count.
        """
        size = len(next(iter(costs.values())))
        windows = {name: window for name, window in self.windows().items() if name in costs}
        columns = [np.maximum(low - costs[name], costs[name] - high) / high for name, (low, high) in windows.items()]
        return np.column_stack(columns) if columns else np.full((size, 1), -1.0)

    def allows(self, costs: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N,) Whether all the given costs lie in their windows."""
        return np.all(self.violations(costs) <= 0, axis=1)


def sample_inside(
    space: SearchSpace, budget: Budget, num_classes: int, *, seed: int, step: int, skip: float
) -> Architecture:
    """The architecture of one training step, inside the counted budget and even over the first of its windows.

    Of a few hundred random ones inside, that which is nearest to a cost drawn from the window; if none is inside, that
    which is nearest to the windows. The same on every rank, without a broadcast.
    """
    rng = np.random.default_rng([seed, step])
    name, window = next(iter(budget.windows(COUNTED).items()))
    target = rng.uniform(*window)
    # Half of them at the calibrated skip probability, which finds most; those at any other fill up the window.
    genomes = np.concatenate([space.sample_genomes(rng, DRAWS // 2, skip=chance) for chance in (skip, rng.random())])
    costs = counts(space.widths(genomes), num_classes)
    outside = np.maximum(0, budget.violations(costs).max(axis=1))
    return space.decode(genomes[np.lexsort((np.abs(costs[name] - target), outside))[0]])


def calibrate_skip(space: SearchSpace, budget: Budget, num_classes: int, *, samples: int = 4000) -> float:
    """The skip probability at which sampled subnets have, on average, a cost inside the budget's window.

    Found by bisection on one fixed set of draws, on which the mean falls as the probability rises
    (ViTAS, section 3.3, moves it by 0.01 until it fits, which can oscillate). 0 without skipping or counted budget.

    Raises:
        UserError: No probability reaches the window; names the reachable range.
    """
    windows = budget.windows(COUNTED)
    if space.identity == "none" or not windows:
        return 0.0
    name, (low, high) = next(iter(windows.items()))

    def mean_cost(skip: float) -> float:
        genomes = space.sample_genomes(np.random.default_rng(0), samples, skip=skip)
        return float(counts(space.widths(genomes), num_classes)[name].mean())

    most, least = mean_cost(0.0), mean_cost(1.0)
    if most < low or least > high:
        raise UserError(
            f"budget.{name}: no skip probability brings the mean {name} of sampled subnets into "
            f"[{low:.4g}, {high:.4g}]; it reaches {least:.4g} to {most:.4g} (supernet.skip=0 trains for the upper end)"
        )
    if low <= most <= high:
        return 0.0
    target = (max(low, least) + min(high, most)) / 2
    fewer = 0.0
    more = 1.0
    for _ in range(30):
        middle = (fewer + more) / 2
        fewer, more = (middle, more) if mean_cost(middle) > target else (fewer, middle)
    return (fewer + more) / 2
