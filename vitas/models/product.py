"""A linear layer with what comes before and after it as one operation of autograd, for one side or several at once.

Shape suffixes: S sides, B images, N tokens, C channels, M = B * N.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
KNOWN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
"""Whether this torch has oneDNN's products."""


class Norm(NamedTuple):
    """A layer norm of weight and bias (C,) or (S, C)."""

    weight: Tensor
    bias: Tensor
    eps: float


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    of: Norm | Literal["gelu"] | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """`plus` + linear(norm or GELU of x): (B, N, C) with a weight (C', C), (S, B, N, C) with one for each side.

    Of all this the backward pass keeps `x`. Norm and GELU are computed again there: that costs less than the memory.
    In half precision `weight` and `bias` are that, and `x` and `plus` may be float32. What is asked of a CPU in float32
    is oneDNN's: MKL's products take twice as long on processors of others.
    """
    first = weight.ndim - 2
    scale, shift, eps = of if isinstance(of, Norm) else (None, None, 0.0)
    added = None if plus is None else plus.flatten(first, -2)
    out: Any = _Product.apply(x.flatten(first, -2), scale, shift, eps, of == "gelu", weight, bias, added)
    return out.view(*x.shape[:-1], -1)


def is_onednns(x: Tensor) -> bool:
    """Whether products with `x` are oneDNN's."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and KNOWN
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        eps: float,
        gelu: bool,
        weight: Tensor,
        bias: Tensor,
        plus: Tensor | None,
    ) -> Tensor:
        before, _, *statistics = _before(x, scale, shift, eps, gelu)
        ctx.save_for_backward(x, scale, shift, weight, *statistics)
        ctx.eps, ctx.gelu, ctx.adds = eps, gelu, plus is not None
        out = _linear(before.to(weight.dtype), weight, bias)
        if plus is None:
            return out
        return out.add_(plus) if out.dtype == plus.dtype else plus + out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale, shift, weight, *statistics = ctx.saved_tensors
        d_out = gradient.to(weight.dtype)
        before, plain, *_ = _before(x, scale, shift, ctx.eps, ctx.gelu)
        d_weight, d_bias = _linear(d_out.mT, before.to(weight.dtype).mT, None), d_out.sum(-2)
        del before
        d_x = d_scale = d_shift = None
        if ctx.needs_input_grad[0]:
            d_x = _linear(d_out, weight.mT, None).to(x.dtype)
            if ctx.gelu:
                d_x = aten.gelu_backward(d_x, x)
            elif scale is not None:
                shape = x.shape[-1:]
                if scale.ndim == 1:
                    d_x, d_scale, d_shift = aten.native_layer_norm_backward(
                        d_x, x, shape, *statistics, scale, shift, [True] * 3
                    )
                else:
                    d_scale, d_shift = (d_x * plain).sum(-2), d_x.sum(-2)
                    d_x, *_ = aten.native_layer_norm_backward(
                        d_x.mul_(scale[:, None]), x, shape, *statistics, None, None, [True, False, False]
                    )
        return d_x, d_scale, d_shift, None, None, d_weight, d_bias, gradient if ctx.adds else None


def _before(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, gelu: bool) -> tuple[Any, ...]:
    """What goes into the product; of sides at once what it is before scale and shift; the statistics of a norm."""
    if gelu:
        return F.gelu(x), None
    if scale is None or shift is None:
        return x, None
    if scale.ndim == 1:
        normed, *statistics = aten.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        return normed, None, *statistics
    plain, *statistics = aten.native_layer_norm(x, x.shape[-1:], None, None, eps)
    return torch.addcmul(shift[:, None], plain, scale[:, None]), plain, *statistics


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(M, C) or (S, M, C) to (M, C') or (S, M, C')."""
    if weight.ndim == 3:
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
    if is_onednns(x):
        return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _dense(x: Tensor) -> Tensor:
    """A matrix or the transposed of one: any other layout oneDNN computes slowly."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()
