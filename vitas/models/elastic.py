"""Which channels a slice takes, and the layers that can be sliced.

Every width is cut by `take`, in the running supernet and in extraction alike, so that the two agree by construction.

Shape suffixes: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitas.models.product import product

Sharing = Literal["ordinal", "bilateral", "cyclic"]
Channels = tuple[slice, ...]
"""One or two runs of channels, taken one after the other."""
Part = tuple[Channels, ...]
"""What is taken of each dimension of a weight, the first ones; of the others all."""
Group = tuple[tuple[Channels, ...], ...]
"""The channels of a layer on sides that are computed at once: several have their slices stacked, (S, ...)."""
ALIGNED = 16
"""Elements that gradients begin at multiples of: 64 bytes in float32."""


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


def idle(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """`x`, made to depend on every parameter that the layers have themselves.

    Each of them then gets a zero gradient: DDP needs no `find_unused_parameters`, and no backend sees a difference
    between a layer that a step leaves out and one that learns nothing from it.
    """
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    return _Idle.apply(x, *parameters) if parameters else x  # pyright: ignore[reportReturnType]


def cut(wanted: Sequence[tuple[Elastic, Sequence[Group]]]) -> list[list[list[Tensor]]]:
    """The slices of some layers: for each layer and each of its groups of sides those of the layer's parameters.

    All of them are one operation, and their gradients parts of one buffer. Under ZeRO-3 each layer cuts its own, in a
    forward of its own: only there has it its weights.
    """
    if any(is_parted(layer) for layer, _ in wanted):
        return [layer(groups) for layer, groups in wanted]
    return _cut(wanted)


def is_parted(module: nn.Module) -> bool:
    """Whether ranks hold parts of the parameters, which ZeRO-3 puts together in the forward of their module."""
    return hasattr(next(module.parameters()), "ds_tensor")


class Elastic(nn.Module):
    """A layer of whose parameters any channels can be taken."""

    halves = 0
    """How many of the parameters, the first ones, autocast casts: those of a matrix product."""
    learns = True
    """Whether the bias has a gradient other than zero."""

    def forward(self, groups: Sequence[Group] | None) -> Any:
        """What `cut` gives of this layer; without groups a zero that depends on its parameters: see `idle`."""
        if groups is None:
            return idle(next(self.parameters()).new_zeros(()), [self])
        return _cut([(self, groups)])[0]

    def parts(self, *channels: Channels) -> list[Part]:
        """What is taken of each parameter with such channels."""
        raise NotImplementedError

    def sliced(self, *channels: Channels) -> list[Tensor]:
        """Such slices of the parameters; views, where channels are one run."""
        return [_take(whole, part) for whole, part in zip(self.parameters(), self.parts(*channels), strict=True)]


class ElasticLinear(Elastic, nn.Linear):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A linear layer of which any inputs x outputs can run."""

    halves = 2

    def parts(self, *channels: Channels) -> list[Part]:
        """Of weight and bias, for inputs and outputs."""
        inputs, outputs = channels
        return [(outputs, inputs), (outputs,)]


class ElasticLayerNorm(Elastic, nn.LayerNorm):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A layer norm over any channels."""

    def parts(self, *channels: Channels) -> list[Part]:
        """Of weight and bias."""
        return [channels, channels]


class ElasticStem(Elastic):
    """From images to tokens for one patch size, with a class token and positions of its own (ViTAS, section 3.1)."""

    halves = 2

    def __init__(self, *, image_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, embed_dim))

    def parts(self, *channels: Channels) -> list[Part]:
        """Of patch weight and bias, class token and positions."""
        return [channels, channels, ((), (), *channels), ((), (), *channels)]

    def tokens(self, patches: Tensor, groups: Sequence[Group]) -> list[Tensor]:
        """Patches (B, N - 1, 3 P P) to tokens (B, N, C), the class token first; of sides at once (S, B, N, C)."""
        [slices] = cut([(self, groups)])
        found = []
        for group, (weight, bias, cls_token, pos_embed) in zip(groups, slices, strict=True):
            sides = (len(group),) if len(group) > 1 else ()
            x = product(patches.to(weight.dtype).expand(*sides, *patches.shape), weight.flatten(-3), bias)
            x = torch.cat([cls_token.to(x.dtype).expand(*sides, len(patches), -1, -1), x], dim=-2)
            found.append(x + pos_embed)
        return found


def patches(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) to (B, H W / P P, 3 P P)."""
    rows = images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
    return rows.flatten(3).flatten(1, 2)


class _Idle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.shapes, ctx.like = [parameter.shape for parameter in parameters], (parameters[0].dtype, x.device)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, *_zeros(ctx.shapes, *ctx.like)


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: list[tuple[list[list[Part]], torch.dtype, bool]], *wholes: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.how, ctx.shapes = how, [whole.shape for whole in wholes]
        ctx.like = wholes[0].dtype, wholes[0].device
        found = []
        for whole, (groups, dtype, _) in zip(wholes, how, strict=True):
            for group in groups:
                slices = [_take(whole, part) for part in group]
                one = slices[0] if len(slices) == 1 else torch.stack(slices)
                # Copied, where `stack` has not: products of slices that lie in a wider matrix are slow on CPUs.
                found.append(one.to(dtype, copy=len(slices) == 1, memory_format=torch.contiguous_format))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        wholes, left = _zeros(ctx.shapes, *ctx.like), iter(gradients)
        turns: list[tuple[list[Tensor], list[Tensor]]] = []
        for whole, (groups, _, learns) in zip(wholes, ctx.how, strict=True):
            number = 0
            for group in groups:
                gradient = next(left)
                for part, one in zip(group, [gradient] if len(group) == 1 else gradient, strict=True):  # pyright: ignore
                    if learns and gradient is not None:
                        if number == len(turns):
                            turns.append(([], []))
                        _pair(whole, one, part, *turns[number])
                        number += 1
        for number, (targets, sources) in enumerate(turns):  # channels may be of several sides: add, after the first
            (torch._foreach_add_ if number else torch._foreach_copy_)(targets, sources)
        return None, *wholes


def _cut(wanted: Sequence[tuple[Elastic, Sequence[Group]]]) -> list[list[list[Tensor]]]:
    whole: Any
    how, wholes = [], []
    for layer, groups in wanted:
        parts = [[layer.parts(*channels) for channels in group] for group in groups]
        for number, whole in enumerate(layer._parameters.values()):
            kind = whole.device.type
            half = number < layer.halves and torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if half else whole.dtype
            how.append(([[side[number] for side in group] for group in parts], dtype, layer.learns or number == 0))
            wholes.append(whole)
    slices: Any = iter(_Cut.apply(how, *wholes))
    found = []
    for layer, groups in wanted:
        of_layer = [[next(slices) for _ in groups] for _ in layer._parameters]
        found.append([list(of_group) for of_group in zip(*of_layer, strict=True)])
    return found


def _take(whole: Tensor, part: Part) -> Tensor:
    for dim, channels in enumerate(part):
        if channels:
            runs = [whole.narrow(dim, run.start, run.stop - run.start) for run in channels]
            whole = runs[0] if len(runs) == 1 else torch.cat(runs, dim)
    return whole


def _pair(whole: Tensor, one: Tensor, part: Part, targets: list[Tensor], sources: list[Tensor]) -> None:
    """Adds to the lists where in `whole` a slice comes from, and the same of the slice, run by run."""
    pairs = [(whole, one)]
    for dim, channels in enumerate(part):
        if channels:
            at, pieces = 0, []
            for run in channels:
                size = run.stop - run.start
                pieces += [(a.narrow(dim, run.start, size), b.narrow(dim, at, size)) for a, b in pairs]
                at += size
            pairs = pieces
    targets += [target for target, _ in pairs]
    sources += [source for _, source in pairs]


def _zeros(shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Zeros of such shapes, parts of one buffer."""
    sizes = [shape.numel() for shape in shapes]
    starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
    buffer = torch.zeros(starts[-1], dtype=dtype, device=device)
    return [buffer[start : start + size].view(shape) for start, size, shape in zip(starts, sizes, shapes, strict=False)]
