"""The losses of a sandwich, against what the papers write."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from vitas.train import objectives
from vitas.train.objectives import OBJECTIVES

LABELS = torch.tensor([0, 3, 6, 6])
MIXED = 0.7 * one_hot(LABELS, 7) + 0.3 * one_hot(LABELS.flip(0), 7)


def logits(scale: float = 3.0) -> torch.Tensor:
    return (scale * torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))).requires_grad_()


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["labels", "mixed"])
def test_soft_distillation_is_the_mean_of_the_cross_entropies_with_labels_and_with_the_teacher(labels):
    found, expected = logits(), logits()
    OBJECTIVES["soft"](found, labels, 0.1).backward()
    teacher, *students = expected
    whole = cross_entropy(teacher, labels, label_smoothing=0.1)
    for student in students:
        whole = whole - (teacher.detach().softmax(1) * student.log_softmax(1)).sum(1).mean()
    (whole / 3).backward()
    torch.testing.assert_close(found.grad, expected.grad)
    torch.testing.assert_close(OBJECTIVES["soft"](found, labels, 0.1), whole / 3)


def test_the_alpha_divergence_and_its_gradient_are_the_papers():
    student, teacher = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student.requires_grad_()
    (slope,) = torch.autograd.grad(objectives.adaptive_alpha(student, teacher).sum(), student)
    values = objectives.adaptive_alpha(student, teacher)
    sides = []
    for image in range(50):
        p, q = teacher[image].softmax(0), student[image].detach().softmax(0)
        clipped = (q / p).clamp(max=5.0)
        kl, other = (p * (p / q).log()).sum(), 0.5 * ((q * clipped).sum() - 1)
        sides.append(bool(kl > other))
        torch.testing.assert_close(values[image], max(kl, other))
        # E_q[w grad log q] by the logits is q (w - E_q[w]), with weights p/q for alpha 1 and q/p, clipped, for -1.
        weights, sign = (p / q, -1) if kl > other else (clipped, 1)
        torch.testing.assert_close(slope[image], sign * q * (weights - (q * weights).sum()))
    assert 10 < sum(sides) < 40


def test_students_teach_the_teacher_nothing_and_nothing_overflows():
    for name in ("soft", "alpha"):
        given = logits(300.0)
        OBJECTIVES[name](given.half(), LABELS, 0.0).backward()
        alone = logits(300.0)
        (OBJECTIVES["none"](alone.half()[0], LABELS, 0.0) / 3).backward()
        torch.testing.assert_close(given.grad[0], alone.grad[0])
        assert given.grad.isfinite().all()
