"""A supernet straight from the paper's description, and with AutoFormer's slicing: what ours is measured beside.

The parameters have the names of `vitas.models.supernet`, so that both can have the same weights.

Shape suffixes: B images, N tokens, C channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.models.elastic import take
from vitas.spaces.architecture import Architecture
from vitas.spaces.space import SearchSpace

Cut = Callable[[Tensor], Tensor]


class PlainSupernet(nn.Module):
    """ViTAS's supernet as of 2021: a forward for each side, attention written out, layers left out not called.

    Args:
        space: The search space.
        num_classes: Outputs of the classifier.
        joint: AutoFormer's attention instead (arXiv 2107.00651): one matrix of q, k and v in turn, shared by all head
            choices; a slice takes every third row three times and joins them. Fused attention, as it has today.
    """

    def __init__(self, space: SearchSpace, num_classes: int, *, joint: bool = False) -> None:
        super().__init__()
        self.space, self.joint = space, joint
        embed, inner, hidden = space.embed_dim.max, space.qkv_dim.max // 3, space.mlp_dim.max
        self.stems = nn.ModuleList(
            _Stem(embed, patch, (space.image_size // patch) ** 2 + 1) for patch in space.patch_size
        )
        self.blocks = nn.ModuleList(_Block(embed, inner, hidden, len(space.heads), joint) for _ in range(space.depth))
        self.norm, self.head = nn.LayerNorm(embed, eps=1e-5), nn.Linear(embed, num_classes)

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """The summed logits (B, classes) of both sides."""
        return self._side(images, architecture, "left") + self._side(images, architecture, "right")

    def _side(self, images: Tensor, architecture: Architecture, side: str) -> Tensor:
        def cut(width: int, most: int) -> slice:
            return take(width, side, maximum=most, choices=(), sharing="bilateral")[0]

        space = self.space
        embed = cut(architecture.embed_dim, space.embed_dim.max)
        stem = self.stems[space.patch_size.index(architecture.patch_size)]
        x = F.conv2d(images, stem.weight[embed], stem.bias[embed], stride=architecture.patch_size)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([stem.cls_token[..., embed].expand(len(x), -1, -1), x], dim=1) + stem.pos_embed[..., embed]
        for layer, block in zip(self.blocks, architecture.blocks, strict=True):
            if block is not None:
                inner = cut(block.qkv_dim // 3, space.qkv_dim.max // 3)
                hidden = cut(block.mlp_dim, space.mlp_dim.max)
                y = _norm(layer.norm1, x, embed)
                choice = space.heads.index(block.heads)
                x = x + self._attention(layer.attn, y, block.heads, choice, embed, inner)
                y = F.gelu(_linear(layer.fc1, _norm(layer.norm2, x, embed), embed, hidden))
                x = x + _linear(layer.fc2, y, hidden, embed)
        return _linear(self.head, _norm(self.norm, x[:, 0], embed), embed, slice(None))

    def _attention(self, layer: nn.Module, x: Tensor, heads: int, choice: int, embed: slice, inner: slice) -> Tensor:
        if self.joint:
            rows = slice(3 * inner.start, 3 * inner.stop)
            weight, bias = layer.qkv.weight[rows, embed], layer.qkv.bias[rows]
            weight, bias = (torch.cat([whole[third::3] for third in range(3)]) for whole in (weight, bias))
            q, k, v = _heads(F.linear(x, weight, bias).chunk(3, dim=-1), heads)
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            parts = [_linear(part[min(choice, len(part) - 1)], x, embed, inner) for part in (layer.q, layer.k, layer.v)]
            q, k, v = _heads(parts, heads)
            mixed = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        return _linear(layer.proj, mixed.transpose(1, 2).flatten(2), inner, embed)


class _Stem(nn.Module):
    def __init__(self, embed: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(embed, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(embed))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed))


class _Block(nn.Module):
    def __init__(self, embed: int, inner: int, hidden: int, choices: int, joint: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed, eps=1e-6), nn.LayerNorm(embed, eps=1e-6)
        self.attn = nn.Module()
        if joint:
            self.attn.qkv = nn.Linear(embed, 3 * inner)
        else:
            for name, copies in (("q", choices), ("k", choices), ("v", 1)):
                self.attn.add_module(name, nn.ModuleList(nn.Linear(embed, inner) for _ in range(copies)))
        self.attn.proj = nn.Linear(inner, embed)
        self.fc1, self.fc2 = nn.Linear(embed, hidden), nn.Linear(hidden, embed)


def _linear(layer: nn.Linear, x: Tensor, inputs: slice, outputs: slice) -> Tensor:
    return F.linear(x, layer.weight[outputs, inputs], layer.bias[outputs])


def _norm(layer: nn.LayerNorm, x: Tensor, channels: slice) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], layer.weight[channels], layer.bias[channels], layer.eps)


def _heads(parts: list[Tensor], heads: int) -> list[Tensor]:
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]
