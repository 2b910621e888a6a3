"""How a search goes on, generation by generation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from pymoo.indicators.hv import HV

from vitas.evolve import evolution
from vitas.evolve.evolution import LARGER_IS_BETTER, Entry
from vitas.evolve.outcome import Fronts
from vitas.report import tracking
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget
from vitas.spaces.cost import COUNTED, reachable
from vitas.spaces.space import SearchSpace


def figures(
    generation: Sequence[Entry], fronts: Fronts, budgets: Mapping[str, Budget], names: Sequence[str]
) -> dict[str, float]:
    """The metrics of a generation: the best so far of each budget, the median and the mean, the share that is feasible.

    Args:
        generation: Its entries.
        fronts: The fronts so far.
        budgets: Windows, by name.
        names: Of the figures of an entry, `top1` and perhaps `loss`.
    """
    best = {
        tracking.BEST[figure] + (name and f"_{name}"): front[0][figure]
        for figure in names
        for name, front in fronts.items()
        if front
    }
    scored = [entry for entry in generation if entry["images"]]
    medians = {tracking.MEDIAN[name]: statistics.median(entry[name] for entry in scored) for name in names if scored}
    inside = {entry["key"] for budget in budgets.values() for entry in evolution.inside(generation, budget)}
    mean = statistics.fmean(entry["top1"] for entry in scored) if scored else 0.0
    return best | medians | {tracking.TOP1: mean, tracking.FEASIBLE: 100 * len(inside) / len(generation)}


class Hypervolume:
    """The part of all that could be had which a front dominates, from 0 to 1.

    Each objective counts as a part of the worst that is allowed: top-1 of 0 %, the loss of guessing, the upper end of
    the budget's window of a cost, or where it has none the most that the space, or the first generation, reaches.
    """

    def __init__(
        self, objectives: Sequence[str], space: SearchSpace, budget: Budget, num_classes: int, first: Sequence[Entry]
    ) -> None:
        windows, most = budget.windows(), reachable(space, num_classes)
        self.objectives, self.worst = objectives, dict[str, float]()
        for name in objectives:
            low, high = windows.get(name, (0.0, math.inf))
            seen = [entry[name] for entry in first if name in entry]
            if name == "top1":
                self.worst[name] = 100.0
            elif name in ("loss", evolution.CORRECTED):
                self.worst[name] = math.log(num_classes)
            elif name in LARGER_IS_BETTER:
                self.worst[name] = low or min(seen)
            elif math.isfinite(high):
                self.worst[name] = high
            else:
                self.worst[name] = most[name][1] if name in COUNTED else max(seen)

    def of(self, front: Sequence[Entry]) -> float:
        """That of a front."""
        parts = np.array([[self._part(name, entry[name]) for name in self.objectives] for entry in front])
        found: float | None = HV(ref_point=np.ones(len(self.objectives)))(np.clip(parts, 0, 1)) if front else 0.0
        return float(found or 0.0)

    def _part(self, name: str, value: float) -> float:
        worst = self.worst[name]
        if not math.isfinite(value):
            return 1.0
        if name == "top1":
            return 1 - value / worst
        return worst / value if name in LARGER_IS_BETTER else value / worst


def choices(generation: Sequence[Entry]) -> dict[str, list[int]]:
    """What the architectures of a generation have chosen, each kept block's heads and widths."""
    architectures = [Architecture.model_validate(entry["architecture"]) for entry in generation]
    chosen = [
        {name: [getattr(one, name)] for name in ("patch_size", "embed_dim")}
        | {"depth": [len(one.kept)]}
        | {name: [getattr(block, name) for block in one.kept] for name in ("heads", "qkv_dim", "mlp_dim")}
        for one in architectures
    ]
    return {name: [value for each in chosen for value in each[name]] for name in tracking.CHOSEN}
