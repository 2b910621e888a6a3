"""What a supernet's score gets wrong, learnt from architectures of which more is known.

Networks that share weights do not differ as networks that grow alone do: some choices are undervalued in all of them
(on the table of truth in `benchmarks/quality` the number of heads), others overvalued. That error is much the same for
all architectures of a space, and so a few trainings show it (`Correction`). And what a supernet says of a single
architecture, beyond what its choices tell, is another in every supernet, and largely noise (`Smoothing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitas.spaces.architecture import Architecture

TRUST = 2.0
"""How much larger than the others the supernet's column is: ridge regression then shrinks its weight less."""
SHRINKING = np.logspace(-1, 2, 13)
"""Strengths of ridge regression, of which the one that foretells best is taken."""
LEAST, MOST = 1e-6, 1e6
"""Losses beyond are taken for these; no number at all is the most."""


class Correction:
    """A ridge regression of the loss that architectures have alone on the one in the supernet, and on their choices.

    It is linear in logarithms: the loss is foretold as a product of powers.

    Args:
        architectures: Those that were trained.
        losses: (N,) Their losses in the supernet, in nats.
        alone: (N,) Their losses, each trained alone.
    """

    def __init__(self, architectures: Sequence[Architecture], losses: np.ndarray, alone: np.ndarray) -> None:
        self.patch_sizes = sorted({one.patch_size for one in architectures})
        columns = ColumnTransformer(
            [("supernet", StandardScaler(), [0]), ("choices", StandardScaler(), slice(1, None))],
            transformer_weights={"supernet": TRUST},
        )
        self.model: Any = make_pipeline(columns, RidgeCV(SHRINKING))
        rows, truth = self._rows(architectures, losses), _log(alone)
        by_others: Any = cross_val_predict(self.model, rows, truth, cv=LeaveOneOut())
        self.taus = {"supernet": _tau(losses, truth), "corrected": _tau(by_others, truth)}
        """Kendall's tau with the trainings: of the supernet's loss, and of what the others foretell of each."""
        self.model.fit(rows, truth)

    def __call__(self, architectures: Sequence[Architecture], losses: np.ndarray) -> np.ndarray:
        """(N,) The losses that architectures would have alone, from those that they have in the supernet."""
        if not len(architectures):
            return np.zeros(0)
        return _exp(self.model.predict(self._rows(architectures, losses)))

    def _rows(self, architectures: Sequence[Architecture], losses: np.ndarray) -> np.ndarray:
        """(N, columns) The loss first, then the choices."""
        return np.column_stack([_log(losses), _choices(architectures, self.patch_sizes)])


class Smoothing:
    """The geometric mean of the loss in the supernet and of that which architectures of such choices have there.

    Args:
        architectures: Random ones, from which the latter is learnt.
        losses: (N,) Their losses in the supernet, in nats.
    """

    def __init__(self, architectures: Sequence[Architecture], losses: np.ndarray) -> None:
        self.patch_sizes = sorted({one.patch_size for one in architectures})
        self.model: Any = make_pipeline(StandardScaler(), RidgeCV(SHRINKING))
        truth = _log(losses)
        self.model.fit(_choices(architectures, self.patch_sizes), truth)
        error = -self.model[-1].best_score_  # of each foretold from the others
        self.explained = max(0.0, float(1 - error / truth.var())) if truth.var() else 0.0
        """The part of how the losses differ (of their variance, as logarithms) that choices foretell."""

    def __call__(self, architectures: Sequence[Architecture], losses: np.ndarray) -> np.ndarray:
        """(N,) The smoothed losses of architectures, from those that they have in the supernet."""
        if not len(architectures):
            return np.zeros(0)
        return _exp((self.model.predict(_choices(architectures, self.patch_sizes)) + _log(losses)) / 2)


def _choices(architectures: Sequence[Architecture], patch_sizes: Sequence[int]) -> np.ndarray:
    """(N, columns) All but the patch size as logarithms."""
    columns = [[one.patch_size == size for one in architectures] for size in patch_sizes]
    columns += [np.log([one.embed_dim for one in architectures]), np.log([len(one.kept) for one in architectures])]
    for name in ("heads", "qkv_dim", "mlp_dim"):
        columns.append([np.log([getattr(block, name) for block in one.kept]).mean() for one in architectures])
    return np.array(columns, float).T


def _log(losses: np.ndarray) -> np.ndarray:
    return np.log(np.clip(np.nan_to_num(losses, nan=MOST), LEAST, MOST))


def _exp(logarithms: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(logarithms, *np.log([LEAST, MOST])))


def _tau(one: np.ndarray, other: np.ndarray) -> float:
    found: Any = kendalltau(one, other)
    return float(found.statistic) if np.isfinite(found.statistic) else 0.0
