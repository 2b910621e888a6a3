"""What can be said of an architecture without training anything: the DSS score of TF-TAS (arXiv 2203.12217)."""

from __future__ import annotations

import statistics

import torch
from torch.linalg import matrix_norm

from vitas.models.vit import VisionTransformer
from vitas.spaces.architecture import Architecture

INITIALISATIONS = 3


def dss(architecture: Architecture, num_classes: int) -> float:
    """`synaptic` of an architecture, the mean of a few initialisations; always the same."""
    found = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(INITIALISATIONS):
            torch.manual_seed(seed)
            found.append(synaptic(VisionTransformer(architecture, num_classes)))
    return statistics.fmean(found)


def synaptic(model: VisionTransformer) -> float:
    """Synaptic diversity of attention plus synaptic saliency of the MLPs (section 3 of the paper). Spoils the model.

    Of each weight W of attention, qkv and proj, the nuclear norm of its gradient times that of W; of each weight of an
    MLP the sum of |gradient * W|. The loss is SynFlow's: all parameters are replaced by their absolute values, the
    image is of ones, and the loss is the sum of the outputs.
    """
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones(1, *model.pretrained_cfg["input_size"], dtype=torch.float64)).sum().backward()
    total = 0.0
    for name, weight in model.blocks.named_parameters():
        gradient = weight.grad
        assert gradient is not None
        if name.endswith(("attn.qkv.weight", "attn.proj.weight")):
            total += float(matrix_norm(gradient, "nuc") * matrix_norm(weight.detach(), "nuc"))
        elif name.endswith(("mlp.fc1.weight", "mlp.fc2.weight")):
            total += float((gradient * weight.detach()).abs().sum())
    return total
