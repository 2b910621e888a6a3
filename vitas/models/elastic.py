"""Which channels a slice takes, and the layers that can be sliced.

Every width is cut by `take`, in the running supernet and in extraction alike, so that the two agree by construction.

Shape suffixes: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Sharing = Literal["ordinal", "bilateral", "cyclic"]
Channels = tuple[slice, ...]
"""One or two runs of channels, taken one after the other."""
Sides = Sequence[Channels]
"""The channels of each side."""
Cut = tuple[tuple[Channels, ...], ...]
"""Of each parameter of a layer the channels of its first dimensions, () for all."""


def sides(sharing: Sharing) -> tuple[str, ...]:
    """The passes of one forward: `bilateral` runs a subnet on its left-most and on its right-most channels."""
    return ("left", "right") if sharing == "bilateral" else ("left",)


def take(width: int, side: str, *, maximum: int, choices: Sequence[int], sharing: Sharing) -> Channels:
    """The channels, of `maximum`, that a slice of `width` uses.

    - `ordinal` (AutoSlim): the first ones.
    - `bilateral` (BCNet): the first ones on the left side, the last ones on the right.
    - `cyclic`: the windows of all `choices` lie one after the other around the circle of channels, so that
      over all widths no channel is used more than once oftener than another.
    """
    if sharing == "cyclic":
        start = sum(choices[: choices.index(width)]) % maximum
        over = start + width - maximum
        return (slice(start, start + width),) if over <= 0 else (slice(start, maximum), slice(0, over))
    if sharing == "bilateral" and side == "right":
        return (slice(maximum - width, maximum),)
    return (slice(0, width),)


def select(whole: Tensor, *channels: Channels) -> Tensor:
    """The `channels` of the first dimensions of a contiguous tensor, () for all: a view, where each is one run."""
    if any(len(runs) > 1 for runs in channels):
        for dim, runs in enumerate(channels):
            if runs:
                whole = torch.cat([whole.narrow(dim, run.start, run.stop - run.start) for run in runs], dim)
        return whole
    # One view rather than one a dimension: in the backward pass each costs zeros as large as the whole.
    sizes, offset = list(whole.shape), whole.storage_offset()
    for dim, runs in enumerate(channels):
        for run in runs:
            sizes[dim] = run.stop - run.start
            offset += run.start * whole.stride(dim)
    return whole.as_strided(sizes, whole.stride(), offset)


def idle(layers: Iterable[nn.Module]) -> Tensor:
    """A zero that depends on every parameter that the layers themselves have.

    Added to the logits, it gives each parameter that a step leaves out a zero gradient: DDP then needs no
    `find_unused_parameters`.
    """
    return _Idle.apply(*(parameter for layer in layers for parameter in layer.parameters(recurse=False)))  # pyright: ignore[reportReturnType]


class _Idle(torch.autograd.Function):
    """One operation for all of them: each by itself they would be half of those of a step."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.shapes = [parameter.shape for parameter in parameters]
        return parameters[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # The same zeros for all: some 100 MB less to write and to keep in the paper's spaces. Nothing but zeros is ever
        # added to them, for all images of a step are of the same architectures.
        zeros = gradient.new_zeros(max(shape.numel() for shape in ctx.shapes))
        return tuple(zeros[: shape.numel()].view(shape) for shape in ctx.shapes)


class Elastic(nn.Module):
    """A layer that can run on some of its channels, on several sides."""

    def forward(self, *sides: Sides) -> Any:
        """Of each side its `sliced`, in a list; without channels `idle`.

        ZeRO-3 puts weights together only in a call of their own layer.
        """
        if not sides:
            return idle([self])
        channels = list(zip(*sides, strict=True))
        if any(len(runs) > 1 for of_side in channels for runs in of_side):
            return [self.sliced(*of_side) for of_side in channels]
        parameters = tuple(self.parameters(recurse=False))
        slices: Any = _Slices.apply([self.cut(*of_side) for of_side in channels], *parameters)
        return [slices[start : start + len(parameters)] for start in range(0, len(slices), len(parameters))]

    def sliced(self, *channels: Channels) -> tuple[Tensor, ...]:
        """The parameters that such a slice runs with, in their order."""
        cut = zip(self.parameters(recurse=False), self.cut(*channels), strict=True)
        return tuple(select(whole, *dims) for whole, dims in cut)

    def cut(self, *channels: Channels) -> Cut:
        """What such a slice takes of each parameter."""
        raise NotImplementedError


class _Slices(torch.autograd.Function):
    """Slices of parameters, for one side after the other: one operation, and one gradient, for all of them."""

    @staticmethod
    def forward(ctx: Any, cuts: Sequence[Cut], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.cuts, ctx.shapes = cuts, [parameter.shape for parameter in parameters]
        return tuple(select(whole, *dims) for cut in cuts for whole, dims in zip(parameters, cut, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        sums = [gradient.new_zeros(shape) for shape, gradient in zip(ctx.shapes, gradients, strict=False)]
        parts = (select(whole, *dims) for cut in ctx.cuts for whole, dims in zip(sums, cut, strict=True))
        for part, gradient in zip(parts, gradients, strict=True):
            part += gradient
        return None, *sums


class ElasticLinear(Elastic, nn.Linear):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A linear layer from any channels to any channels: weight and bias."""

    def cut(self, *channels: Channels) -> Cut:
        """For channels of inputs and of outputs."""
        inputs, outputs = channels
        return (outputs, inputs), (outputs,)


class ElasticLayerNorm(Elastic, nn.LayerNorm):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A layer norm over any channels: weight and bias."""

    def cut(self, *channels: Channels) -> Cut:
        """For the channels."""
        return channels, channels


class ElasticStem(Elastic):
    """From images to tokens for one patch size, with a class token and positions of its own (ViTAS, section 3.1)."""

    def __init__(self, *, image_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, embed_dim))

    def cut(self, *channels: Channels) -> Cut:
        """For channels of the tokens: patches and their bias, class token and positions."""
        (embed,) = channels
        return (embed,), (embed,), ((), (), embed), ((), (), embed)
