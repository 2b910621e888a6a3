"""The search: asks its algorithm for candidates, has them scored, tells it how good they are. Owns no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from vitas.config import UserError
from vitas.evolve.algorithms import Algorithm
from vitas.sections import QUALITIES, Evolution
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget
from vitas.spaces.cost import COSTS, COUNTED, counts, reachable
from vitas.spaces.space import SearchSpace

Entry = dict[str, Any]
"""What is known of a candidate: `key`, `architecture`, costs, and, if it was scored, `top1` and `loss` on `images`,
which are the part `fidelity` of all images."""

Costs = Callable[[list[Architecture]], list[Entry]]
Score = Callable[[list[Architecture], float], list[Entry]]

MAX_DRAWS = 2_000_000
"""Random architectures that are looked at, at most, for one inside the budget."""

NEAR_THE_BEST = 4
"""Candidates that finalists are taken from, for each of these."""

CORRECTED = "corrected"
"""The loss that trials foretell, or a smoothed one (`vitas.evolve.correction`); it is improved in place of a score."""

LARGER_IS_BETTER = ("top1", "throughput")

WORST = 1e30


def random_genomes(
    space: SearchSpace, budget: Budget, num_classes: int, *, seed: int, skip: float
) -> Iterator[np.ndarray]:
    """Different random genomes (G,) inside the counted budget, until a great many draws in a row gave no new one.

    Raises:
        UserError: None is found; names the reachable range.
    """
    rng = np.random.default_rng([seed, 1])
    seen: set[bytes] = set()
    last, patience = 0, min(MAX_DRAWS, 1000 * space.size)
    for draws in range(0, 10**15, 20_000):
        # Sampling at the calibrated skip probability finds most; any other fills up narrow windows.
        genomes = space.sample_genomes(rng, 20_000, skip=skip if draws % 40_000 == 0 else rng.random())
        for genome in genomes[budget.allows(counts(space.widths(genomes), num_classes))]:
            if (name := genome.tobytes()) not in seen:
                seen.add(name)
                last = draws
                yield genome
        if draws - last >= patience or len(seen) == space.size:
            break
    if not seen:
        windows = budget.windows(COUNTED)
        limits = reachable(space, num_classes)
        ranges = ", ".join(f"{name} {limits[name][0]:.4g} to {limits[name][1]:.4g}" for name in windows)
        asked = ", ".join(f"{name} [{low:.4g}, {high:.4g}]" for name, (low, high) in windows.items())
        raise UserError(f"budget: no architecture of the space was found inside {asked}; the space reaches {ranges}")


def first_generation(
    space: SearchSpace, budget: Budget, num_classes: int, size: int, *, seed: int, skip: float
) -> np.ndarray:
    """(up to `size`, G) The first of `random_genomes`."""
    return np.array(list(islice(random_genomes(space, budget, num_classes, seed=seed, skip=skip), size)))


def each_patch_size(genomes: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """`size` of the genomes, all patch sizes among them alike.

    A step from one patch size to another leaves a narrow budget: evolution seldom finds one that its first generation
    lacks, and random ones of a budget may be nearly all of one patch size.
    """
    pool = list(islice(genomes, 20 * size))
    seen: Counter[int] = Counter()
    place = []
    for genome in pool:
        place.append(seen[genome[0]])
        seen[genome[0]] += 1
    return (pool[index] for index in np.argsort(place, kind="stable")[:size])


class _Search:
    """The search for one budget: its algorithm, and what it makes of entries."""

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget,
        settings: Evolution,
        num_classes: int,
        size: int,
        seed: int,
        skip: float,
    ) -> None:
        def allowed(genomes: np.ndarray) -> np.ndarray:
            return budget.allows(counts(space.widths(genomes), num_classes))

        first = random_genomes(space, budget, num_classes, seed=seed, skip=skip)
        if settings.algorithm != "random":
            first = each_patch_size(first, size)
        constraints = 1 + max(1, len(budget.windows()))
        self.space, self.budget, self.objectives, self.size = space, budget, objectives(settings), size
        self.algorithm = Algorithm(settings, space, size, first, allowed, len(self.objectives), constraints, seed)

    def ask(self, most: int) -> list[Architecture]:
        return [self.space.decode(genome) for genome in self.algorithm.ask(most)]

    def tell(self, entries: list[Entry]) -> None:
        # What was scored on a part of the images stands behind all that was scored on more of them.
        unseen = np.array([[1 - entry["fidelity"]] for entry in entries])
        violations = np.hstack([self.budget.violations(_costs(entries)), unseen])
        self.algorithm.tell(_losses(entries, self.objectives), violations)

    def better_half(self, entries: list[Entry]) -> list[Entry]:
        return [entries[index] for index in self.algorithm.better_half(_losses(entries, self.objectives))]


def evolve(
    space: SearchSpace,
    budgets: Mapping[str, Budget],
    settings: Evolution,
    num_classes: int,
    costs: Costs,
    score: Score,
    *,
    seed: int,
    skips: Mapping[str, float],
) -> Iterator[list[Entry]]:
    """Yields the entries of one generation after the other.

    Each budget has a search of its own, with an equal share of the population; all their candidates are scored
    together. The same seed and the same entries give the same generations: a search is resumed by replaying it, and
    continued by asking for more generations.

    Args:
        space: Where architectures come from.
        budgets: Windows, by name. Counted costs are settled before scoring; measured ones are constraints.
        settings: Algorithm and size of the search, its objectives and fidelities.
        num_classes: Outputs of the classifier; it is part of the costs.
        costs: Entries of architectures, in their order, with all costs that are objectives or have a window.
        score: What to add to the entries of architectures, scored on a part of the images: `top1`, `loss`, `images`.
        seed: Seed of the search.
        skips: Skip probability of the first generation, for each budget.
    """
    sizes = [len(part) for part in np.array_split(np.arange(settings.population), len(budgets))]
    searches = [
        _Search(space, budget, settings, num_classes, size, seed + number, skips[name])
        for number, ((name, budget), size) in enumerate(zip(budgets.items(), sizes, strict=True))
    ]
    for _ in range(settings.generations):
        generation: dict[str, Entry] = {}
        due = {search: search.size for search in searches if search.size}
        while due:
            asked = {search: search.ask(most) for search, most in due.items()}
            entries = _scored(asked, settings.fidelity, costs, score)
            generation |= entries
            for search, candidates in asked.items():
                if candidates:
                    search.tell([entries[candidate.key] for candidate in candidates])
                due[search] = due[search] - len(candidates) if candidates else 0
            due = {search: most for search, most in due.items() if most}
        if not generation:
            return  # every architecture inside the budgets has been asked for
        yield list(generation.values())


def _scored(
    asked: Mapping[_Search, list[Architecture]], fidelity: Sequence[float], costs: Costs, score: Score
) -> dict[str, Entry]:
    """The entries of candidates by key, scored on as many images as each is worth."""
    candidates = {candidate.key: candidate for part in asked.values() for candidate in part}
    entries = {entry["key"]: entry | {"fidelity": 0.0, "images": 0} for entry in costs(list(candidates.values()))}
    # What is outside a measured window is not worth a look.
    alive = {
        search: inside([entries[candidate.key] for candidate in part], search.budget) for search, part in asked.items()
    }
    for number, part in enumerate(fidelity):
        if number:
            alive = {search: search.better_half(rest) if rest else [] for search, rest in alive.items()}
        keys = dict.fromkeys(entry["key"] for rest in alive.values() for entry in rest)
        for key, found in zip(keys, score([candidates[key] for key in keys], part), strict=True):
            entries[key] |= found | {"fidelity": part}
    return entries


def inside(entries: Sequence[Entry], budget: Budget) -> list[Entry]:
    """The entries whose costs lie in all windows of a budget."""
    allowed = budget.allows(_costs(entries)) if entries else ()
    return [entry for entry, fits in zip(entries, allowed, strict=True) if fits]


def front(entries: Sequence[Entry], budget: Budget, objectives: Sequence[str]) -> list[Entry]:
    """The entries inside the budget, scored on all images, that no other one beats in all objectives.

    The best first: in top-1 or in loss, whichever objective is named first.
    """
    unique = {entry["key"]: entry for entry in entries if entry["fidelity"] == 1}
    lawful = inside(list(unique.values()), budget)
    if not lawful:
        return []
    chosen: Any = NonDominatedSorting().do(_losses(lawful, objectives), only_non_dominated_front=True)
    worth = _losses(lawful, [quality(objectives)])[:, 0]
    best = sorted(chosen, key=lambda index: (worth[index], lawful[index]["macs"], lawful[index]["key"]))
    return [lawful[index] for index in best]


def finalists(
    entries: Sequence[Entry], budget: Budget, objectives: Sequence[str], space: SearchSpace, count: int
) -> list[Entry]:
    """The best and most different of the entries inside the budget, scored on all images.

    The first is the best; each of the next is, among the best `NEAR_THE_BEST` x `count`, that whose choices differ
    most from all before, that is in most genes from the nearest of them.
    """
    unique = {entry["key"]: entry for entry in entries if entry["fidelity"] == 1}
    lawful = inside(list(unique.values()), budget)
    if not lawful:
        return []
    worth = _losses(lawful, [quality(objectives)])[:, 0]
    order = sorted(range(len(lawful)), key=lambda at: (worth[at], lawful[at]["macs"], lawful[at]["key"]))
    pool = [lawful[at] for at in order[: NEAR_THE_BEST * count]]
    genomes = np.array([space.encode(Architecture.model_validate(entry["architecture"])) for entry in pool])
    chosen = [0]
    distance = np.full(len(pool), genomes.shape[1])
    while len(chosen) < min(count, len(pool)):
        distance = np.minimum(distance, (genomes != genomes[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))  # of equally different ones the best
    return [pool[at] for at in chosen]


def quality(objectives: Sequence[str]) -> str:
    """The objective that decides which candidate is the best: top-1 or the loss, whichever is named first."""
    return next(name for name in objectives if name in (*QUALITIES, CORRECTED))


def objectives(settings: Evolution) -> list[str]:
    """What a search improves: what its settings say, but a corrected loss, where there is one, in place of scores."""
    if not (settings.trials or settings.smooth):
        return list(settings.objectives)
    first = quality(settings.objectives)
    return [
        CORRECTED if name == first else name for name in settings.objectives if name == first or name not in QUALITIES
    ]


def _losses(entries: Sequence[Entry], objectives: Sequence[str]) -> np.ndarray:
    """(N, objectives) What the algorithms make small."""
    signs = {name: -1 if name in LARGER_IS_BETTER else 1 for name in objectives}
    values = np.array([[signs[name] * entry.get(name, 0.0) for name in objectives] for entry in entries])
    # In half precision a loss may be no number: nothing would beat it.
    return np.nan_to_num(values, nan=WORST, posinf=WORST)


def _costs(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    return {name: np.array([entry[name] for entry in entries]) for name in COSTS if name in entries[0]}
