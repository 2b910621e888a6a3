"""How well one ranking of architectures agrees with another: with what training each of them alone gives.

N architectures, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

RESAMPLES = 1000
"""Bootstrap samples of the architectures behind an interval."""

WITHOUT_SUPERNET = {
    "macs": "counting multiply-adds",
    "params": "counting parameters",
    "dss": "the training-free DSS",
}
"""What ranks without a supernet, in words."""

BY = {"supernet": "", "supernet_loss": ", by its loss,", "supernet_smoothed": ", by its smoothed loss,"}
"""What a search may go by."""


def compare(
    scores: Mapping[str, np.ndarray], top1: np.ndarray, *, seed: int = 0, judged: str = "supernet"
) -> dict[str, Any]:
    """How each of several rankings agrees with trainings, `supernet` and those of `WITHOUT_SUPERNET` among them.

    Args:
        scores: Of each ranking the scores (N,), larger for what it takes for better.
        top1: (N, S) Top-1 in percent of each architecture, trained alone with each seed.
        seed: Seed of the bootstrap.
        judged: The ranking that the search goes by, one of `BY`.

    Returns:
        `rankings`: of each `tau` (Kendall), `rho` (Spearman), with 95 % intervals, and `regret` (see there);
        `ceiling`: the tau that the true ranking would have, for seeds differ; None if there is one seed;
        `seed_deviation`: the standard deviation between seeds, in points; `rival`: the best ranking without a
        supernet; `judged`; `lead`: the 95 % interval of its tau less the rival's; `verdict`: one line.
    """
    truth, seeds = top1.mean(1), top1.shape[1]
    rng = np.random.default_rng(seed)
    resamples = rng.integers(0, len(truth), (RESAMPLES, len(truth)))  # the same for all, so that leads are of pairs

    def resampled(agreement: Callable[[np.ndarray, np.ndarray], float], values: np.ndarray) -> np.ndarray:
        return np.array([agreement(values[rows], truth[rows]) for rows in resamples])

    taus = {name: resampled(_tau, values) for name, values in scores.items()}
    found = {
        name: {
            "tau": _number(_tau(values, truth)),
            "tau_interval": _interval(taus[name]),
            "rho": _number(_rho(values, truth)),
            "rho_interval": _interval(resampled(_rho, values)),
            "regret": regret(values, top1),
        }
        for name, values in scores.items()
    }
    rival = max(WITHOUT_SUPERNET, key=lambda name: found[name]["tau"])
    lead = _interval(taus[judged] - taus[rival])
    return {
        "rankings": found,
        "ceiling": attainable(ceiling(top1)) if seeds > 1 else None,
        "seed_deviation": float(np.sqrt(top1.var(1, ddof=1).mean())) if seeds > 1 else None,
        "rival": rival,
        "judged": judged,
        "lead": lead,
        "verdict": verdict(
            found[judged]["tau"],
            found[rival]["tau"],
            WITHOUT_SUPERNET[rival],
            lead,
            by_loss=found["supernet_loss"]["tau"] if judged == "supernet" else None,
            by=BY[judged],
        ),
    }


def verdict(supernet: float, other: float, what: str, lead: list[float], *, by_loss: float | None, by: str = "") -> str:
    """Whether the supernet ranks better than the best ranking without one, in a line.

    Args:
        supernet: Its tau.
        other: The tau of that ranking.
        what: What ranks so, in words.
        lead: The interval of their difference.
        by_loss: The tau of the supernet's loss where the search does not go by it: it may see more.
        by: What of the supernet the search goes by, in words.
    """
    taus, wide = f"tau {supernet:.2f} against {other:.2f}", f"{lead[0]:.2f} to {lead[1]:.2f}"
    unsure = lead[0] <= 0 <= lead[1]
    if supernet <= other:
        line = f"the supernet{by} ranks no better than {what} ({taus}): train it longer, or see docs/QUALITY.md"
        line += (
            f"; its loss ranks better, with a tau of {by_loss:.2f}" if by_loss is not None and by_loss > other else ""
        )
        return line + (f"; the difference may be {wide}: a larger rank.sample tells more" if unsure else "")
    if unsure:
        return f"too few to tell whether the supernet{by} ranks better than {what} ({taus}): the difference may be " \
               f"{wide}; a larger rank.sample tells more"  # fmt: skip
    return f"the supernet{by} ranks better than {what}: {taus}, a difference of {wide}"


def regret(scores: np.ndarray, top1: np.ndarray) -> float:
    """Points of top-1 that are lost by taking the favourite of `scores` (N,) and not the best of `top1` (N, S).

    The best of noisy figures is partly lucky. With several seeds it is therefore chosen by all but one and compared on
    the one left out, each in turn; a small negative regret is noise. Of equals the mean counts.
    """
    seeds = top1.shape[1]
    favourite = top1[scores == scores.max()].mean(0)
    lost = []
    for left_out in range(seeds):
        others = np.delete(top1, left_out, 1).mean(1) if seeds > 1 else top1[:, 0]
        lost.append(top1[others == others.max(), left_out].mean() - favourite[left_out])
    return float(np.mean(lost))


def lengthened(tau: float, times: float) -> float:
    """Kendall's tau between two rankings, if each were the mean of `times` as many seeds (Spearman-Brown).

    The formula is one of Pearson's r; tau and r of normal variables are one function of each other (Greiner).
    Rankings that disagree do so whatever the seeds: 0.
    """
    r = max(0.0, math.sin(math.pi / 2 * tau))
    return 2 / math.pi * math.asin(times * r / (1 + (times - 1) * r))


def attainable(tau: float) -> float:
    """The tau that the true ranking has with a table, if two such tables have `tau` with each other."""
    return 2 / math.pi * math.asin(math.sqrt(max(0.0, math.sin(math.pi / 2 * tau))))


def ceiling(top1: np.ndarray) -> float:
    """Of (N, S), S > 1: tau of the table with another one like it, from the halves of its seeds."""
    seeds = top1.shape[1]
    half = seeds // 2
    taus = [
        _number(_tau(top1[:, list(left)].mean(1), top1[:, list(right)].mean(1)))
        for left in combinations(range(seeds), half)
        for right in combinations(sorted(set(range(seeds)) - set(left)), half)
        if left < right
    ]
    return lengthened(float(np.mean(taus)), seeds / half)


def _tau(some: np.ndarray, others: np.ndarray) -> float:
    found: Any = None if _says_nothing(some, others) else kendalltau(some, others)
    return found.statistic if found else math.nan


def _rho(some: np.ndarray, others: np.ndarray) -> float:
    found: Any = None if _says_nothing(some, others) else spearmanr(some, others)
    return found.statistic if found else math.nan


def _says_nothing(*values: np.ndarray) -> bool:
    return any(np.ptp(part) == 0 for part in values)


def _number(agreement: float) -> float:
    """A ranking that tells nothing apart agrees with none."""
    return 0.0 if math.isnan(agreement) else agreement


def _interval(resampled: np.ndarray) -> list[float]:
    """Where 95 % of the values lie; resamples of equals alone do not count."""
    values = resampled[~np.isnan(resampled)]
    return np.quantile(values, [0.025, 0.975]).tolist() if len(values) else [-1.0, 1.0]
