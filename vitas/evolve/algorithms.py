"""The algorithms of the search, by pymoo, on genomes of a space inside one budget.

N genomes, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.random_search import RandomSearch
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.survival import Survival
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.problems.static import StaticProblem
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from vitas.sections import Evolution
from vitas.spaces.space import SearchSpace

Allowed = Callable[[np.ndarray], np.ndarray]
"""(N, G) genomes to (N,): whether each is inside the counted budget."""


class Algorithm:
    """One of pymoo's algorithms, asked for new genomes and told how good they are.

    The same seed and the same answers give the same genomes: a search is resumed by replaying it.

    Args:
        settings: Which algorithm, and its mutation.
        space: Where genomes come from.
        size: Genomes of a generation.
        first: New random genomes inside the budget, one after the other.
        allowed: Whether genomes are inside the budget, as far as it is counted.
        objectives: How many objectives a genome has.
        constraints: How many constraints it has.
        seed: Seed of the algorithm.
    """

    def __init__(
        self,
        settings: Evolution,
        space: SearchSpace,
        size: int,
        first: Iterator[np.ndarray],
        allowed: Allowed,
        objectives: int,
        constraints: int,
        seed: int,
    ) -> None:
        self.problem = Problem(
            n_var=len(space.cardinality),
            n_obj=objectives,
            n_ieq_constr=constraints,
            xl=0,
            xu=space.cardinality - 1,
            vtype=int,
        )
        self.seen: set[bytes] = set()
        genetic: dict[str, Any] = {
            "pop_size": size,
            "crossover": TwoPointCrossover(prob=0.0 if settings.algorithm == "regularized" else 0.9),
            "sampling": _Next(first),
            "mutation": _Redraw(settings.mutation),
            "repair": _Canonical(space),
            "eliminate_duplicates": _NewAndAllowed(allowed, self.seen),
        }
        self.batch = size
        self._algorithm: Any
        if settings.algorithm == "random":
            self._algorithm = RandomSearch(sampling=genetic["sampling"])
        elif settings.algorithm == "nsga2":
            self._algorithm = NSGA2(**genetic)
        else:
            # Aging evolution (arXiv 1802.01548): the fittest of a random quarter has a child, the oldest dies. A
            # quarter of the population at once, so that ranks have work. pymoo's NoCrossover hands on the parents
            # themselves, which mutation would then change: a crossover that never happens copies them.
            self.batch = max(1, size // 4)
            fittest = TournamentSelection(func_comp=_fittest, pressure=max(2, size // 4))
            self._algorithm = GeneticAlgorithm(
                selection=fittest, survival=_Youngest(), advance_after_initial_infill=True, **genetic
            )
        self._algorithm.setup(self.problem, termination=("n_gen", np.inf), seed=seed)

    def ask(self, most: int) -> np.ndarray:
        """(up to `most`, G) genomes that were never asked for before; none when there are no more."""
        self._algorithm.n_offsprings = self._algorithm.n_points_per_iteration = min(most, self.batch)
        self._asked = self._algorithm.ask()
        if self._asked is None or not len(self._asked):
            return np.empty((0, self.problem.n_var), dtype=np.int64)
        genomes = self._asked.get("X").astype(np.int64)
        self.seen.update(genome.tobytes() for genome in genomes)
        return genomes

    def tell(self, losses: np.ndarray, violations: np.ndarray) -> None:
        """What was asked for last has these losses (N, objectives) and violations (N, constraints)."""
        # Through the algorithm's own evaluator: else it counts no evaluations.
        self._algorithm.evaluator.eval(StaticProblem(self.problem, F=losses, G=violations), self._asked)
        self._algorithm.tell(infills=self._asked)

    def better_half(self, losses: np.ndarray) -> np.ndarray:
        """(ceil(N / 2),) The indices of the better half, in their order."""
        everyone = Population.new("X", np.zeros((len(losses), self.problem.n_var)))
        lawful = np.full((len(losses), self.problem.n_ieq_constr), -1.0)
        Evaluator().eval(StaticProblem(self.problem, F=losses, G=lawful), everyone)
        half = -(-len(losses) // 2)
        always = np.random.default_rng(0)  # of equals the same ones
        kept: Any = RankAndCrowding().do(
            self.problem, everyone, n_survive=half, random_state=always, return_indices=True
        )
        return np.sort(kept)


class _Next(Sampling):
    """The next genomes of an iterator."""

    def __init__(self, genomes: Iterator[np.ndarray]) -> None:
        super().__init__()
        self.genomes = genomes

    def _do(self, problem: Any, n_samples: int, *args: Any, **_: Any) -> Any:
        found = [genome for genome, _ in zip(self.genomes, range(n_samples), strict=False)]
        return np.array(found).reshape(len(found), problem.n_var)


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
    """Drops children that were asked for before or are outside the counted budget: mating then goes on."""

    def __init__(self, allowed: Allowed, seen: set[bytes]) -> None:
        super().__init__()
        self.allowed, self.seen = allowed, seen

    def do(self, pop: Any, *args: Any, **options: Any) -> Any:
        if len(pop):
            genomes = pop.get("X").astype(np.int64)
            new = [genome.tobytes() not in self.seen for genome in genomes]
            pop = pop[self.allowed(genomes) & np.array(new)]
        return super().do(pop, *args, **options)


class _Youngest(Survival):
    """The youngest survive, however fit they are."""

    def __init__(self) -> None:
        super().__init__(filter_infeasible=False)

    def _do(self, problem: Any, pop: Any, *args: Any, n_survive: int | None = None, **_: Any) -> Any:
        return pop[-(n_survive or len(pop)) :]  # children are merged behind those who were there


def _fittest(pop: Any, P: np.ndarray, *, random_state: Any, **_: Any) -> np.ndarray:
    """(N, 1) Of each row of contestants (N, pressure) one that none of the others beats."""
    violations, losses = pop.get("CV")[:, 0], pop.get("F")
    winners = []
    for contestants in P:
        lawful = contestants[violations[contestants] == violations[contestants].min()]
        best: Any = NonDominatedSorting().do(losses[lawful], only_non_dominated_front=True)
        winners.append(random_state.choice(lawful[best]))
    return np.array(winners)[:, None]
