"""What a step makes small, from the logits of one subnet or of the several of a sandwich. All of it in float32.

Shape suffixes: K subnets, the largest first, B images, classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor, float], Tensor]
"""From logits, labels, (B,) or with Mixup (B, classes), and label smoothing to one number."""

ALPHAS, MOST_WEIGHT = (-1.0, 1.0), 5.0
"""AlphaNet's orders of the divergence, and what its importance weights are clipped at."""


def cross_entropy(outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Of logits (B, classes), or the mean over the subnets of (K, B, classes)."""
    if outputs.ndim == 2:
        return F.cross_entropy(outputs.float(), labels, label_smoothing=label_smoothing)
    return torch.stack([cross_entropy(logits, labels, label_smoothing) for logits in outputs]).mean()


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) Cross-entropy with the teacher's softmax as labels (BigNAS, arXiv 2003.11142)."""
    return F.cross_entropy(student, teacher.softmax(1), reduction="none")


def adaptive_alpha(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) For each image the larger of two alpha-divergences from the teacher (AlphaNet, arXiv 2102.07954).

    Alpha -1 punishes what the student holds for possible and the teacher does not, alpha 1 (the KL divergence) the
    reverse. With teacher p and student q, the gradient is -1/alpha E_q[(p/q)^alpha grad log q]; at alpha -1 its weights
    are clipped, for q/p has no bound. At alpha 1 it is that of the cross-entropy with p, which needs no clipping.
    """
    log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
    q, p, log_ratio = log_q.detach().exp(), log_p.exp(), log_p - log_q.detach()
    over, under = ALPHAS
    weights = q * (over * log_ratio).exp().clamp(max=MOST_WEIGHT)
    values = torch.stack([(weights.sum(1) - 1) / (over * (over - 1)), (p * log_ratio).sum(1)])
    slopes = torch.stack([-(weights * log_q).sum(1) / over, -(p * log_q).sum(1) / under])
    worse = values.argmax(0, keepdim=True)
    # The divergence is what is told; its clipped gradient is none of a function that could be told.
    return (values + slopes - slopes.detach()).gather(0, worse)[0]


def _distilled(
    divergence: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, labels: Tensor, label_smoothing: float
) -> Tensor:
    """The mean over (K, B, classes): the largest subnet learns from the labels, the others from what it says."""
    largest, *others = outputs.float()
    losses = [divergence(logits, largest.detach()).mean() for logits in others]
    return torch.stack([cross_entropy(largest, labels, label_smoothing), *losses]).mean()


OBJECTIVES: dict[str, Objective] = {
    "none": cross_entropy,
    "soft": partial(_distilled, soft),
    "alpha": partial(_distilled, adaptive_alpha),
}
"""By the names of `supernet.distill`."""
