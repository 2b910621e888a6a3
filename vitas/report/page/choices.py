"""Which choices matter, and how often each was trained, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from vitas.recipe import Recipe
from vitas.subnets import PER_BLOCK, WHOLE, Choice, every_choice, how_often

STEPS_LOOKED_AT = 1000
"""Of the supernet's steps, for what they train."""

FEW = 5
"""Candidates with a choice below which its effect is mostly chance."""

KINDS = {
    "patch_size": "patch size",
    "embed_dim": "width",
    "depth": "depth",
    "heads": "heads",
    "qkv_dim": "q/k/v width",
    "mlp_dim": "MLP width",
}


def of_shape(shape: Mapping[str, Any]) -> list[Choice]:
    """The choices that make an architecture, as it lies in a file."""
    kept = [(number, block) for number, block in enumerate(shape["blocks"], 1) if block]
    whole = [
        ("patch_size", 0, shape["patch_size"]),
        ("embed_dim", 0, shape["embed_dim"]),
        ("depth", 0, len(kept)),
    ]
    return whole + [(kind, number, block[kind]) for number, block in kept for kind in PER_BLOCK]


def effects(candidates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The marginal effect of each choice: the mean top-1 of the candidates that have it, less that of all.

    With a 95 % interval, by Student's t. Of a block all are those that do not skip it, else its choices would be
    credited with the depth. `block` 0 stands for all blocks together: a candidate counts there as often as it has the
    choice, and the interval is that of candidates, not of blocks. Candidates of an evolution descend from each other,
    and a budget ties choices together: an effect says what went along with good scores.
    """
    if len(candidates) < 2:
        return []
    score = np.array([entry["top1"] for entry in candidates])
    having: dict[Choice, np.ndarray] = {}
    for at, entry in enumerate(candidates):
        for kind, block, value in of_shape(entry["architecture"]):
            for place in {0, block}:
                having.setdefault((kind, place, value), np.zeros(len(score)))[at] += 1
    all_of: dict[tuple[str, int], np.ndarray] = {}
    for (kind, block, _), weights in having.items():
        all_of[kind, block] = all_of.get((kind, block), 0) + weights
    order = [*WHOLE, *PER_BLOCK]
    rows = []
    for (kind, block, value), weights in sorted(having.items(), key=lambda one: (order.index(one[0][0]), one[0][1:])):
        count, effect, half = int((weights > 0).sum()), *_effect(score, weights, all_of[kind, block])
        rows.append({"kind": kind, "block": block, "value": value, "candidates": count, "effect": effect,
                     "low": None if half is None else effect - half,
                     "high": None if half is None else effect + half})  # fmt: skip
    return rows


def _effect(score: np.ndarray, weights: np.ndarray, every: np.ndarray) -> tuple[float, float | None]:
    """The weighted mean less the mean of all, and half of its interval; None of a single candidate."""
    mean, of_all = (float(each @ score / each.sum()) for each in (weights, every))
    count, effect = int((weights > 0).sum()), mean - of_all
    if count < 2:
        return effect, None
    # The difference of two means over the same candidates: what each adds to one and takes from the other.
    parts = weights / weights.sum() * (score - mean) - every / every.sum() * (score - of_all)
    error = float(np.sqrt((parts**2).sum() * count / (count - 1)))
    return effect, float(stdtrit(count - 1, 0.975)) * error


def trained(recipe: Recipe, num_classes: int, skips: Mapping[str, float], done: int, steps: int) -> dict[str, Any]:
    """In which share of the steps done so far each choice was trained, computed from (seed, step).

    `block` 0 stands for the mean over all blocks.
    """
    counted, looked_at = how_often(recipe, num_classes, skips, steps, done=done, most=STEPS_LOOKED_AT)
    shares: dict[Choice, float] = {}
    depth = recipe.space.depth
    for choice in every_choice(recipe.space):
        kind, block, value = choice
        share = counted[choice] / looked_at if looked_at else 0.0
        shares[choice] = share
        if block:
            shares[kind, 0, value] = shares.get((kind, 0, value), 0.0) + share / depth
    rows = [{"kind": kind, "block": block, "value": value, "share": share}
            for (kind, block, value), share in shares.items()]  # fmt: skip
    return {"steps": done, "looked_at": looked_at, "choices": rows}
