"""Which channels a slice takes, and the layers that can be sliced.

Every width is cut by `take`, in the running supernet and in extraction alike, so that the two agree by construction.

Shape suffixes: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sharing = Literal["ordinal", "bilateral", "cyclic"]
Channels = tuple[slice, ...]
"""One or two runs of channels, taken one after the other."""


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


def select(tensor: Tensor, channels: Channels, dim: int) -> Tensor:
    """The `channels` of `tensor` along `dim`: a view where they are one run."""
    runs = [tensor.narrow(dim, run.start, run.stop - run.start) for run in channels]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim)


def idle(layer: nn.Module) -> Tensor:
    """A zero that depends on every parameter of `layer` itself.

    What a layer returns when it is called without input. Added to the logits, it gives each parameter that a step
    leaves out a zero gradient: DDP then needs no `find_unused_parameters`, and ZeRO-3's hooks fire on every layer.
    """
    return torch.stack([parameter.flatten()[:0].sum() for parameter in layer.parameters(recurse=False)]).sum()


class ElasticLinear(nn.Linear):
    """A linear layer of which any `inputs` x `outputs` channels can run."""

    def forward(self, input: Tensor | None, inputs: Channels = (), outputs: Channels = ()) -> Tensor:
        """(B, N, C) to (B, N, C); without input, `idle`."""
        if input is None:
            return idle(self)
        return F.linear(input, *self.sliced(inputs, outputs))

    def sliced(self, inputs: Channels, outputs: Channels) -> tuple[Tensor, Tensor]:
        """The weight and bias that such a slice runs with."""
        return select(select(self.weight, outputs, 0), inputs, 1), select(self.bias, outputs, 0)


class ElasticLayerNorm(nn.LayerNorm):
    """A layer norm over any `channels`."""

    def forward(self, input: Tensor | None, channels: Channels = ()) -> Tensor:
        """(B, N, C) to (B, N, C); without input, `idle`."""
        if input is None:
            return idle(self)
        return F.layer_norm(input, input.shape[-1:], *self.sliced(channels), self.eps)

    def sliced(self, channels: Channels) -> tuple[Tensor, Tensor]:
        """The weight and bias that such a slice runs with."""
        return select(self.weight, channels, 0), select(self.bias, channels, 0)


class ElasticStem(nn.Module):
    """From images to tokens for one patch size, with a class token and positions of its own (ViTAS, section 3.1)."""

    def __init__(self, *, image_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, embed_dim))

    def forward(self, images: Tensor | None, channels: Channels = ()) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, N, C), the class token first."""
        if images is None:
            return idle(self)
        weight, bias, cls_token, pos_embed = self.sliced(channels)
        x_BNC = F.conv2d(images, weight, bias, stride=self.patch_size).flatten(2).transpose(1, 2)
        return torch.cat([cls_token.expand(len(images), -1, -1), x_BNC], dim=1) + pos_embed

    def sliced(self, channels: Channels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patch weight and bias, class token and positions that such a slice runs with."""
        return (
            select(self.weight, channels, 0),
            select(self.bias, channels, 0),
            select(self.cls_token, channels, 2),
            select(self.pos_embed, channels, 2),
        )
