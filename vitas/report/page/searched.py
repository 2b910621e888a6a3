"""What a search has scored, as plain data: its candidates, its fronts over each cost, and the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitas.report.numbers import is_number
from vitas.report.page import curves
from vitas.report.page.folder import Folder
from vitas.spaces.cost import COSTS

LABELS = {
    "flops": ("FLOPs, as the paper counts them", ""),
    "macs": ("multiply-adds", ""),
    "params": ("parameters", ""),
    "throughput": ("images/s", ""),
    "latency": ("latency of one image", "ms"),
    "memory": ("memory", "B"),
}
"""What a cost is called, and its unit."""

MOST = 4000
"""Candidates that are shown; of more, all that are on a front and some of the others."""


def search(folder: Folder, name: str) -> dict[str, Any] | None:
    """The figures of a search of a run; None if nothing is scored yet."""
    candidates = folder.candidates(name)
    scored = [entry for entry in candidates if is_number(entry.get("top1")) and entry.get("images", 1)]
    if not scored:
        return None
    windows = _windows(folder, name)
    whole = [entry for entry in scored if entry.get("fidelity", 1) == 1]
    quality = _quality(folder, whole)
    inside = {
        budget: {entry["key"] for entry in whole if _is_inside(entry, limits) and is_number(entry.get(quality))}
        for budget, limits in windows.items()
    }
    lawful = [entry for entry in whole if any(entry["key"] in keys for keys in inside.values())]
    asked = [cost for limits in windows.values() for cost in limits]  # what has a budget comes first
    costs = [cost for cost in dict.fromkeys([*asked, "macs", *COSTS])
             if cost in COSTS and all(is_number(entry.get(cost)) for entry in scored)]  # fmt: skip
    fronts = {cost: pareto(lawful, cost) for cost in costs}
    front = [entry["key"] for entry in folder.front(name)]
    chosen = {budget: architecture.key for budget, architecture in folder.best(name).items()}
    kept = {*front, *chosen.values(), *(key for keys in fronts.values() for key in keys)}
    shown = thinned(scored, kept)
    settings = folder.made_with(name).get("evolve")
    on_test = isinstance(settings, dict) and settings.get("score_on") == "test"
    scored_on = "on the test images" if on_test else "on the hold-out"
    return {
        "name": name,
        "quality": quality,
        "candidates": len(candidates),
        "scored": len(scored),
        "scored_on": scored_on,
        "generations": curves.generations(candidates, inside, quality, scored_on),
        "windows": windows,
        "costs": [
            {"name": cost, "label": LABELS[cost][0], "unit": LABELS[cost][1], "front": fronts[cost]} for cost in costs
        ],
        "front": front,
        "best": chosen,
        "inside": lawful,
        "shown": [shape_of(entry) | {cost: entry[cost] for cost in costs} for entry in shown],
    }


def shape_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate in short: of its shape `[patch, width, [[heads, q/k/v, MLP] or null of each block]]`."""
    shape = entry["architecture"]
    blocks = [block and [block["heads"], block["qkv_dim"], block["mlp_dim"]] for block in shape["blocks"]]
    names = ("key", "generation", "top1", "loss", "corrected")
    return {name: entry[name] for name in names if name in entry} | {
        "shape": [shape["patch_size"], shape["embed_dim"], blocks]
    }


def best_names(search: Mapping[str, Any]) -> list[str]:
    """What the best architecture of each budget is called, in the order of the budgets."""
    return [f"best:{budget}" if budget else "best" for budget in search["windows"]]


def pareto(entries: Sequence[Mapping[str, Any]], cost: str) -> list[str]:
    """Keys of the entries that no other one beats in top-1 and in a cost, the cheapest first."""
    sign = -1 if cost == "throughput" else 1
    best, keys = float("-inf"), []
    for entry in sorted(entries, key=lambda one: (sign * one[cost], -one["top1"])):
        if entry["top1"] > best:
            best = entry["top1"]
            keys.append(entry["key"])
    return keys


def thinned(entries: Sequence[dict[str, Any]], kept: set[str], most: int = MOST) -> list[dict[str, Any]]:
    """All of them, or of more than `most` those in `kept`, and of the others every so many."""
    if len(entries) <= most:
        return list(entries)
    every = -(-len(entries) // most)
    return [entry for at, entry in enumerate(entries) if at % every == 0 or entry["key"] in kept]


def _windows(folder: Folder, name: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Those that the search was made for; else those of the recipe as it is now."""
    made_for = folder.made_with(name).get("budgets")
    if not isinstance(made_for, dict):
        return folder.windows
    found = {budget: limits for budget, limits in made_for.items() if isinstance(limits, dict)}
    return {
        "" if budget == "budget" else str(budget): {
            cost: (pair[0], pair[1]) for cost, pair in limits.items() if isinstance(pair, list) and len(pair) == 2
        }
        for budget, limits in found.items()
    } or folder.windows


def _is_inside(entry: Mapping[str, Any], windows: Mapping[str, tuple[float, float]]) -> bool:
    return all(low <= entry[cost] <= high for cost, (low, high) in windows.items() if is_number(entry.get(cost)))


def _quality(folder: Folder, entries: Sequence[Mapping[str, Any]]) -> str:
    """What decides which candidate is the best (see `vitas.evolve.evolution.quality`)."""
    if entries and all(is_number(entry.get("corrected")) for entry in entries):
        return "corrected"
    objectives = folder.section("evolve").get("objectives")
    named = [name for name in objectives if name in ("top1", "loss")] if isinstance(objectives, list) else []
    quality = named[0] if named else "top1"
    return quality if all(is_number(entry.get(quality)) for entry in entries) else "top1"
