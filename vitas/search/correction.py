"""What a supernet's score gets wrong, learnt from a few architectures that were trained alone.

Networks that share weights do not differ as networks that grow alone do: some choices are undervalued in all of them
(on the table of truth in `benchmarks/quality` the number of heads), others overvalued. That error is much the same for
all architectures of a space, and so a few trainings show it.
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
from sklearn.preprocessing import PowerTransformer, StandardScaler

from vitas.spaces.architecture import Architecture

TRUST = 2.0
"""How much larger than the other columns the score is: ridge regression shrinks what it gives weight to the less."""


class Correction:
    """A ridge regression of how well architectures do alone on their scores and their choices.

    Args:
        architectures: Those that were trained.
        scores: (N,) Their scores in the supernet, larger is better.
        losses: (N,) Their losses, each trained alone.
    """

    def __init__(self, architectures: Sequence[Architecture], scores: np.ndarray, losses: np.ndarray) -> None:
        self.patch_sizes = sorted({one.patch_size for one in architectures})
        self.range = 2 * scores.min() - scores.max(), 2 * scores.max() - scores.min()
        columns = ColumnTransformer(
            [("score", PowerTransformer(), [0]), ("choices", StandardScaler(), slice(1, None))],
            transformer_weights={"score": TRUST},
        )
        self.model: Any = make_pipeline(columns, RidgeCV(np.logspace(-1, 2, 13)))
        rows = self._rows(architectures, scores)
        worth: Any = PowerTransformer().fit_transform(-losses[:, np.newaxis]).ravel()  # pyright: ignore[reportAttributeAccessIssue]
        by_others: Any = cross_val_predict(self.model, rows, worth, cv=LeaveOneOut())
        self.taus = {"score": _tau(scores, worth), "corrected": _tau(by_others, worth)}
        """Kendall's tau with the trainings: of the scores, and of what the trainings of all others say of each."""
        self.model.fit(rows, worth)

    def __call__(self, architectures: Sequence[Architecture], scores: np.ndarray) -> np.ndarray:
        """(N,) How well each would do alone: in standard deviations from the mean of those that were trained."""
        return self.model.predict(self._rows(architectures, scores)) if len(architectures) else np.zeros(0)

    def _rows(self, architectures: Sequence[Architecture], scores: np.ndarray) -> np.ndarray:
        """(N, columns) The score first, then the choices; of widths and counts only ratios matter."""
        scores = np.clip(scores, *self.range)  # far from all that was trained nothing is known
        columns = [scores, *([one.patch_size == size for one in architectures] for size in self.patch_sizes)]
        columns += [np.log([one.embed_dim for one in architectures]), np.log([len(one.kept) for one in architectures])]
        for name in ("heads", "qkv_dim", "mlp_dim"):
            columns.append([np.log([getattr(block, name) for block in one.kept]).mean() for one in architectures])
        return np.array(columns, float).T


def _tau(one: np.ndarray, other: np.ndarray) -> float:
    found: Any = kendalltau(one, other)
    return float(found.statistic) if np.isfinite(found.statistic) else 0.0
