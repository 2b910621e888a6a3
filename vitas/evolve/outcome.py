"""What a search has found: a front for each budget, in which measured costs were measured twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vitas.config import UserError
from vitas.evolve.candidates import Candidates
from vitas.evolve.evolution import Entry, front, inside
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget
from vitas.spaces.cost import MEASURED

Fronts = dict[str, list[Entry]]
"""For each budget its front, the best first."""

Choice = Callable[[Sequence[Entry], Budget], list[Entry]]
"""Takes some of the entries for a budget; none if none is inside."""


def fronts(entries: Sequence[Entry], budgets: Mapping[str, Budget], objectives: Sequence[str]) -> Fronts:
    """The front of each budget, which may be empty."""
    return {name: front(entries, budget, objectives) for name, budget in budgets.items()}


def confirmed(
    candidates: Candidates, entries: Sequence[Entry], budgets: Mapping[str, Budget], choose: Choice
) -> Fronts:
    """What `choose` makes of the entries, of those whose measured costs are inside the budget when measured once more.

    Of many noisy measurements some fall into a window by luck, and the search prefers what is in the window. All ranks
    call it.

    Raises:
        UserError: For a budget nothing is left; says what the candidates reach.
    """
    return {name: _confirmed(candidates, entries, name, budget, choose) for name, budget in budgets.items()}


def _confirmed(
    candidates: Candidates, entries: Sequence[Entry], name: str, budget: Budget, choose: Choice
) -> list[Entry]:
    rest = list(entries)
    while best := choose(rest, budget):
        again = [candidates.costs_again(Architecture.model_validate(entry["architecture"])) for entry in best]
        both = list(zip(best, again, strict=True))
        kept = inside([entry | costs for entry, costs in both], budget)
        if len(kept) == len(best):
            return [entry | {f"{cost}_again": value for cost, value in costs.items()} for entry, costs in both]
        outside = {entry["key"] for entry in best} - {entry["key"] for entry in kept}
        rest = [entry for entry in rest if entry["key"] not in outside]
    windows = budget.windows(MEASURED)
    asked = ", ".join(f"{cost} [{low:.4g}, {high:.4g}]" for cost, (low, high) in windows.items())
    values = {cost: [entry[cost] for entry in entries] for cost in windows}
    reached = ", ".join(f"{cost} {min(found):.4g} to {max(found):.4g}" for cost, found in values.items())
    where = f"budgets.{name}" if name else "budget"
    raise UserError(f"{where}: no candidate was inside {asked}; those that were measured reach {reached}")


def in_one(fronts: Fronts) -> list[Entry]:
    """The entries of all budgets, in their order.

    With several budgets each says by `budgets` for which it is, and by `best_of` of which it is the best.
    """
    entries: dict[str, Entry] = {}
    for name, best in fronts.items():
        for place, entry in enumerate(best):
            marked = entries.setdefault(entry["key"], dict(entry))
            if name:
                marked["budgets"] = [*marked.get("budgets", []), name]
                marked["best_of"] = [*marked.get("best_of", []), *([] if place else [name])]
    return list(entries.values())
