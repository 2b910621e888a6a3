"""Linear layers together with what comes before them: a layer norm, a GELU or nothing.

Shape suffixes: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

aten: Any = torch.ops.aten
FEWEST = 10_000_000
"""Multiply-adds of the smallest product that oneDNN computes: smaller ones have ended before it begins."""


class Norm(NamedTuple):
    """A layer norm."""

    scale: Tensor
    shift: Tensor
    eps: float


def linear(x_BNC: Tensor, *layers: Sequence[Tensor], norm: Norm | None = None, gelu: bool = False) -> Tensor:
    """Linear layers, each of weight and bias, of x, of its layer norm or of its GELU; (B, N, C) to all outputs in turn.

    In float32 on a CPU products are oneDNN's: MKL's take twice as long on processors that are not Intel's. Of all this
    only `x_BNC` is then kept for the backward pass, for norm and GELU cost little to compute again.
    """
    weights, biases = zip(*layers, strict=True)
    multiply_adds = x_BNC.numel() * sum(len(bias) for bias in biases)
    if multiply_adds >= FEWEST and x_BNC.dtype == torch.float32 and is_on_cpu(x_BNC) and has_onednn():
        scale, shift, eps = norm or (None, None, 0.0)
        return _Linear.apply(x_BNC, scale, shift, eps, gelu, *weights, *biases)  # pyright: ignore[reportReturnType]
    if norm:
        x_BNC = F.layer_norm(x_BNC, x_BNC.shape[-1:], *norm)
    return F.linear(F.gelu(x_BNC) if gelu else x_BNC, _joined(weights), _joined(biases))


def is_on_cpu(x: Tensor) -> bool:
    """Whether a CPU computes with `x`. A tensor without contents stands for one of a GPU (see `vitas.train.memory`)."""
    return x.device.type == "cpu" and not isinstance(x, FakeTensor)


def has_onednn() -> bool:
    """Whether oneDNN's linear layers are there, and float32 is what is asked for."""
    onednn: Any = torch.backends.mkldnn
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return known and onednn.is_available() and onednn.enabled and not torch.is_autocast_enabled("cpu")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, gelu: bool, *layers: Tensor
    ) -> Tensor:
        input, *statistics = _before(x, scale, shift, eps, gelu)
        ctx.save_for_backward(x, scale, shift, *layers, *statistics)
        ctx.eps, ctx.gelu, ctx.count = eps, gelu, len(layers)
        weights, biases = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        return _product(input, _joined(weights), _joined(biases))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale, shift, *rest = ctx.saved_tensors
        weights, statistics = rest[: ctx.count // 2], rest[ctx.count :]
        input, *_ = _before(x, scale, shift, ctx.eps, ctx.gelu)
        rows, sizes = d_out.flatten(0, -2), [len(weight) for weight in weights]
        d_weights, d_biases = _product(rows.t(), input.flatten(0, -2).t()).split(sizes), rows.sum(0).split(sizes)
        del input
        d_x, d_scale, d_shift = _product(d_out, _joined(weights).t()), None, None
        if ctx.gelu:
            d_x = aten.gelu_backward(d_x, x)
        elif scale is not None:
            d_x, d_scale, d_shift = aten.native_layer_norm_backward(
                d_x, x, x.shape[-1:], *statistics, scale, shift, [True] * 3
            )
        return d_x, d_scale, d_shift, None, None, *d_weights, *d_biases


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _before(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, gelu: bool) -> tuple[Tensor, ...]:
    """What goes into the product, and the statistics of a norm."""
    if scale is not None:
        return aten.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
    return (F.gelu(x) if gelu else x,)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(x: Tensor) -> Tensor:
    """Of parts of wider matrices oneDNN's products are slow."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()
