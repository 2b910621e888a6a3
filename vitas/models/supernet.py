"""The weight-sharing supernet: every architecture of a space in one set of weights.

Shape suffixes: B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitas.models.elastic import ElasticLayerNorm, ElasticLinear, ElasticStem, Sharing, Sides, idle, sides, take
from vitas.models.linear import Norm, is_on_cpu, linear
from vitas.models.vit import BLOCK_EPS, FINAL_EPS, VisionTransformer, attend, from_state
from vitas.spaces.architecture import Architecture
from vitas.spaces.space import SearchSpace

AttentionSharing = Literal["private_qk", "shared", "private_v", "private"]


class ElasticAttention(nn.Module):
    """The layers of attention, q, k and v each sliced by itself; some have a copy of their own for each head choice."""

    def __init__(self, embed_dim: int, inner_dim: int, heads: list[int], sharing: AttentionSharing) -> None:
        super().__init__()
        self.head_choices = heads
        private = {"private_qk": ("q", "k"), "shared": (), "private_v": ("v",), "private": ("q", "k", "v", "proj")}
        self.private = private[sharing]

        def copies(name: str) -> nn.ModuleList:
            count = len(heads) if name in self.private else 1
            return nn.ModuleList(ElasticLinear(embed_dim, inner_dim) for _ in range(count))

        self.q, self.k, self.v = copies("q"), copies("k"), copies("v")
        for layer in self.k:
            # Softmax ignores it: its gradient is rounding noise, which Adam would blow up (see vitas.models.vit).
            layer.get_parameter("bias").register_hook(torch.zeros_like)
        if "proj" in self.private:
            self.proj = nn.ModuleList(ElasticLinear(inner_dim, embed_dim) for _ in heads)
        else:
            self.proj = ElasticLinear(inner_dim, embed_dim)

    def layers(self, heads: int) -> list[ElasticLinear]:
        """q, k, v and the projection of a subnet with this number of heads."""
        choice = self.head_choices.index(heads)
        parts = [part[min(choice, len(part) - 1)] for part in (self.q, self.k, self.v)]
        parts.append(self.proj[choice] if isinstance(self.proj, nn.ModuleList) else self.proj)
        return parts  # pyright: ignore[reportReturnType]


class ElasticBlock(nn.Module):
    """A pre-norm transformer block of any widths up to the maxima."""

    def __init__(
        self, embed_dim: int, inner_dim: int, mlp_dim: int, heads: list[int], attention: AttentionSharing
    ) -> None:
        super().__init__()
        self.norm1 = ElasticLayerNorm(embed_dim, eps=BLOCK_EPS)
        self.attn = ElasticAttention(embed_dim, inner_dim, heads, attention)
        self.norm2 = ElasticLayerNorm(embed_dim, eps=BLOCK_EPS)
        self.fc1 = ElasticLinear(embed_dim, mlp_dim)
        self.fc2 = ElasticLinear(mlp_dim, embed_dim)

    def forward(
        self, sides_BNC: list[Tensor], heads: int, embed: Sides, inner: Sides, hidden: Sides, last: bool = False
    ) -> list[Tensor]:
        """Of each side (B, N, C) to (B, N, C); of the last block to the class token, which alone is read, (B, 1, C)."""
        *qkv, proj = self.attn.layers(heads)
        layers = [self.norm1(embed), *(layer(embed, inner) for layer in qkv), proj(inner, embed)]
        layers += [self.norm2(embed), self.fc1(embed, hidden), self.fc2(hidden, embed)]
        return [_block(x_BNC, heads, last, *slices) for x_BNC, *slices in zip(sides_BNC, *layers, strict=True)]


Slices = tuple[Tensor, Tensor]
"""Of weight and bias."""


def _block(
    x_BNC: Tensor, heads: int, last: bool,
    norm1: Slices, q: Slices, k: Slices, v: Slices, proj: Slices, norm2: Slices, fc1: Slices, fc2: Slices,
) -> Tensor:  # fmt: skip
    before, between = Norm(*norm1, eps=BLOCK_EPS), Norm(*norm2, eps=BLOCK_EPS)
    if last:
        keys, values = linear(x_BNC, k, v, norm=before).chunk(2, dim=-1)
        x_BNC = x_BNC[:, :1]
        queries = linear(x_BNC, q, norm=before)
    else:
        queries, keys, values = linear(x_BNC, q, k, v, norm=before).chunk(3, dim=-1)
    x_BNC = x_BNC + linear(_attend(queries, keys, values, heads), proj)
    return x_BNC + linear(linear(x_BNC, fc1, norm=between), fc2, gelu=True)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend`; on a CPU in half precision written out: torch's fused one takes three times as long there."""
    if q.dtype == torch.float32 or not is_on_cpu(q):
        return attend(q, k, v, heads, pad=True)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


class Supernet(nn.Module):
    """All architectures of `space` in one set of weights (ViTAS, section 3).

    Args:
        space: The search space.
        num_classes: Outputs of the classifier.
        sharing: Which channels a width takes; see `vitas.models.elastic.take`.
        attention: `private_qk`: each head choice has its own q and k, and all share v (the paper's);
            `shared`: all share q, k and v; `private_v`: each has its own v, and all share q and k;
            `private`: each has its own q, k, v and projection.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int,
        *,
        sharing: Sharing = "bilateral",
        attention: AttentionSharing = "private_qk",
    ) -> None:
        super().__init__()
        self.space = space
        self.num_classes = num_classes
        self.sides = sides(sharing)
        embed_dim = space.embed_dim.max
        inner_dim = space.qkv_dim.max // 3
        mlp_dim = space.mlp_dim.max
        inner_choices = [width // 3 for width in space.qkv_dim.choices]
        self._embed = partial(take, maximum=embed_dim, choices=space.embed_dim.choices, sharing=sharing)
        self._inner = partial(take, maximum=inner_dim, choices=inner_choices, sharing=sharing)
        self._hidden = partial(take, maximum=mlp_dim, choices=space.mlp_dim.choices, sharing=sharing)

        self.stems = nn.ModuleList(
            ElasticStem(image_size=space.image_size, patch_size=patch, embed_dim=embed_dim)
            for patch in space.patch_size
        )
        self.blocks = nn.ModuleList(
            ElasticBlock(embed_dim, inner_dim, mlp_dim, space.heads, attention) for _ in range(space.depth)
        )
        self.grad_checkpointing = False
        self.norm = ElasticLayerNorm(embed_dim, eps=FINAL_EPS)
        self.head = ElasticLinear(embed_dim, num_classes)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Linear weights and patches: truncated normal 0.02. Biases, class tokens and positions: zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                trunc_normal_(parameter, std=0.02)
            elif not name.endswith("weight"):
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor, *architectures: Architecture) -> Tensor:
        """Logits (B, classes) of one subnet, or (K, B, classes) of several, for images (B, 3, H, W).

        Each is summed over its sides. Every parameter takes part in the graph, whatever the architectures: see
        `vitas.models.elastic.idle`.
        """
        found = [
            torch.stack(self._forward_sides(images, architecture, self.sides)).sum(0) for architecture in architectures
        ]
        logits = found[0] if len(found) == 1 else torch.stack(found)
        layers = list(self._idle_layers(architectures))
        if hasattr(self.head.weight, "ds_tensor"):  # ZeRO-3, which has the weights of a layer only in a call of it
            return logits + sum(layer() for layer in layers)
        return logits + idle(layers) if layers else logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks compute their activations again in the backward pass; timm's name."""
        self.grad_checkpointing = enable

    def _forward_side(self, images: Tensor, architecture: Architecture, side: str) -> Tensor:
        return self._forward_sides(images, architecture, [side])[0]

    def _forward_sides(self, images: Tensor, architecture: Architecture, sides: Sequence[str]) -> list[Tensor]:
        """The logits of each side. The sides of a layer are run together: so its gradients are there at once."""
        embed = [self._embed(architecture.embed_dim, side) for side in sides]
        stem = self._stem(architecture)
        tokens = []
        for patch, bias, cls_token, pos_embed in stem(embed):
            x_BNC = F.conv2d(images, patch, bias, stride=stem.patch_size).flatten(2).mT
            tokens.append(torch.cat([cls_token.expand(len(images), -1, -1), x_BNC], dim=1) + pos_embed)
        kept = [(layer, block) for layer, block in zip(self.blocks, architecture.blocks, strict=True) if block]
        for layer, block in kept:
            inner = [self._inner(block.qkv_dim // 3, side) for side in sides]
            hidden = [self._hidden(block.mlp_dim, side) for side in sides]
            given = (tokens, block.heads, embed, inner, hidden, layer is kept[-1][0])
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(layer, *given, use_reentrant=False)
            else:
                tokens = layer(*given)
        classes = [(slice(0, self.num_classes),)] * len(sides)
        last = zip(tokens, self.norm(embed), self.head(embed, classes), strict=True)
        return [linear(x_BNC[:, 0], head, norm=Norm(*norm, eps=FINAL_EPS)) for x_BNC, norm, head in last]

    def _stem(self, architecture: Architecture) -> ElasticStem:
        return self.stems[self.space.patch_size.index(architecture.patch_size)]  # pyright: ignore[reportReturnType]

    def _idle_layers(self, architectures: Sequence[Architecture]) -> Iterator[nn.Module]:
        """The layers with parameters that none of the architectures calls."""
        stems = [self._stem(architecture) for architecture in architectures]
        yield from (other for other in self.stems if other not in stems)
        for layer, *blocks in zip(self.blocks, *(each.blocks for each in architectures), strict=True):
            heads = {block.heads for block in blocks if block}
            if not heads:
                yield from (part for part in layer.modules() if next(part.parameters(recurse=False), None) is not None)
            else:
                attention: ElasticAttention = layer.attn  # pyright: ignore[reportAssignmentType]
                used = [part for choice in heads for part in attention.layers(choice)]
                for name in attention.private:
                    yield from (part for part in attention.get_submodule(name).children() if part not in used)

    @torch.no_grad()
    def extract(self, architecture: Architecture, side: str = "left") -> VisionTransformer:
        """The subnet as a model of its own, with a copy of its weights; in evaluation mode.

        Its logits are those of the supernet's side.

        Raises:
            UserError: The architecture is not in the supernet's space.
        """
        self.space.encode(architecture)  # raises for what does not fit
        embed = self._embed(architecture.embed_dim, side)
        classes = (slice(0, self.num_classes),)
        state: dict[str, Tensor] = {}

        def put(name: str, weight: Tensor, bias: Tensor) -> None:
            state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias

        weight, bias, state["cls_token"], state["pos_embed"] = self._stem(architecture).sliced(embed)
        put("patch_embed.proj", weight, bias)
        kept = [(layer, block) for layer, block in zip(self.blocks, architecture.blocks, strict=True) if block]
        layer: ElasticBlock
        for index, (layer, block) in enumerate(kept):  # pyright: ignore[reportAssignmentType]
            inner = self._inner(block.qkv_dim // 3, side)
            hidden = self._hidden(block.mlp_dim, side)
            *qkv, proj = layer.attn.layers(block.heads)
            weights, biases = zip(*[part.sliced(embed, inner) for part in qkv], strict=True)
            put(f"blocks.{index}.norm1", *layer.norm1.sliced(embed))
            put(f"blocks.{index}.attn.qkv", torch.cat(weights), torch.cat(biases))
            put(f"blocks.{index}.attn.proj", *proj.sliced(inner, embed))
            put(f"blocks.{index}.norm2", *layer.norm2.sliced(embed))
            put(f"blocks.{index}.mlp.fc1", *layer.fc1.sliced(embed, hidden))
            put(f"blocks.{index}.mlp.fc2", *layer.fc2.sliced(hidden, embed))
        put("norm", *self.norm.sliced(embed))
        put("head", *self.head.sliced(embed, classes))
        copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        return from_state(architecture, copies)
