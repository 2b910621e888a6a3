"""The search: asks NSGA-II for genomes, tells it scores. Owns no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.problems.static import StaticProblem
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from vitas.config import UserError
from vitas.recipe import Evolution
from vitas.search.journal import Entry
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget
from vitas.spaces.cost import counts, reachable
from vitas.spaces.space import SearchSpace

MAX_DRAWS = 2_000_000
"""Random architectures that are looked at, at most, for a first generation inside the budget."""


class _Canonical(Repair):
    """Brings every child to the one genome of its architecture, so that duplicates are seen."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem: Any, X: np.ndarray, **_: Any) -> np.ndarray:
        return self.space.canonical(X.astype(np.int64))


class _Redraw(Mutation):
    """Draws each gene anew with a given probability; polynomial mutation hardly moves a gene of few choices."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **_: Any) -> np.ndarray:
        drawn = random_state.integers(0, problem.xu + 1, size=X.shape)
        return np.where(random_state.random(X.shape) < self.probability, drawn, X)


class _NewAndAllowed(DefaultDuplicateElimination):
    """Drops children that are outside the counted budget, too: mating then goes on until a generation is full."""

    def __init__(self, allowed: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.allowed = allowed

    def do(self, pop: Any, *args: Any, **options: Any) -> Any:
        return super().do(pop[self.allowed(pop.get("X"))] if len(pop) else pop, *args, **options)


def first_generation(
    space: SearchSpace, budget: Budget, num_classes: int, size: int, *, seed: int, skip: float
) -> np.ndarray:
    """(up to `size`, G) different random genomes inside the counted budget.

    Raises:
        UserError: None is found; names the reachable range.
    """
    rng = np.random.default_rng([seed, 1])
    found = np.empty((0, len(space.cardinality)), dtype=np.int64)
    for draws in range(0, MAX_DRAWS, 20_000):
        # Sampling at the calibrated skip probability finds most; any other fills up narrow windows.
        genomes = space.sample_genomes(rng, 20_000, skip=skip if draws % 40_000 == 0 else rng.random())
        genomes = genomes[budget.allows(counts(space.widths(genomes), num_classes))]
        found = np.concatenate([found, genomes])
        found = found[np.sort(np.unique(found, axis=0, return_index=True)[1])][:size]
        if len(found) == size or space.size <= draws:
            break
    if not len(found):
        windows = budget.windows()
        limits = reachable(space, num_classes)
        ranges = ", ".join(f"{name} {limits[name][0]:.4g} to {limits[name][1]:.4g}" for name in windows)
        asked = ", ".join(f"{name} [{low:.4g}, {high:.4g}]" for name, (low, high) in windows.items())
        raise UserError(f"budget: no architecture of the space was found inside {asked}; the space reaches {ranges}")
    return found


def evolve(
    space: SearchSpace,
    budget: Budget,
    settings: Evolution,
    num_classes: int,
    score: Callable[[list[Architecture]], list[Entry]],
    *,
    seed: int,
    skip: float,
) -> Iterator[list[Entry]]:
    """Yields the entries of one generation after the other, by NSGA-II with constraint domination.

    The same seed and the same scores give the same generations: a search is resumed by replaying it.

    Args:
        space: Where architectures come from.
        budget: Windows. Counted costs are settled before scoring; measured throughput afterwards, as a constraint.
        settings: Size of the search, and its objectives.
        num_classes: Outputs of the classifier; it is part of the costs.
        score: Entries of architectures, in their order, with `top1`, the counted costs, and `throughput` if asked for.
        seed: Seed of the search.
        skip: Skip probability of the first generation.
    """

    def allowed(genomes: np.ndarray) -> np.ndarray:
        return budget.allows(counts(space.widths(genomes.astype(np.int64)), num_classes))

    windows = max(1, len(budget.windows(("flops", "macs", "params", "throughput"))))
    problem = Problem(
        n_var=len(space.cardinality),
        n_obj=len(settings.objectives),
        n_ieq_constr=windows,
        xl=0,
        xu=space.cardinality - 1,
        vtype=int,
    )
    operators: dict[str, Any] = {
        "sampling": first_generation(space, budget, num_classes, settings.population, seed=seed, skip=skip),
        "crossover": TwoPointCrossover(),
        "mutation": _Redraw(settings.mutation),
        "repair": _Canonical(space),
        "eliminate_duplicates": _NewAndAllowed(allowed),
    }
    algorithm = NSGA2(pop_size=settings.population, **operators)
    algorithm.setup(problem, termination=("n_gen", settings.generations), seed=seed)
    while algorithm.has_next():
        generation: Any = algorithm.ask()
        if generation is None or not len(generation):
            return  # every architecture inside the budget is in the population
        entries = score([space.decode(genome) for genome in generation.get("X")])
        # Through the algorithm's own evaluator: else it counts no evaluations, and some terminations never come.
        losses = _losses(entries, settings.objectives)
        violations = budget.violations(_costs(entries))
        algorithm.evaluator.eval(StaticProblem(problem, F=losses, G=violations), generation)
        algorithm.tell(infills=generation)
        yield entries


def front(entries: list[Entry], budget: Budget, objectives: Sequence[str]) -> list[Entry]:
    """The entries inside the budget that no other one beats in all objectives, the best top-1 first."""
    unique = list({entry["key"]: entry for entry in entries}.values())
    inside = (
        [entry for entry, fits in zip(unique, budget.allows(_costs(unique)), strict=True) if fits] if unique else []
    )
    if not inside:
        return []
    chosen: Any = NonDominatedSorting().do(_losses(inside, objectives), only_non_dominated_front=True)
    return sorted((inside[index] for index in chosen), key=lambda entry: (-entry["top1"], entry["macs"], entry["key"]))


def _losses(entries: list[Entry], objectives: Sequence[str]) -> np.ndarray:
    """(N, objectives) What NSGA-II makes small."""
    return np.array([[-entry[name] if name == "top1" else entry[name] for name in objectives] for entry in entries])


def _costs(entries: list[Entry]) -> dict[str, np.ndarray]:
    names = ("flops", "macs", "params", "throughput")
    return {name: np.array([entry[name] for entry in entries]) for name in names if name in entries[0]}
