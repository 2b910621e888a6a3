"""The logits of a Vision Transformer and nothing else, sooner than its own forward gives them: for scoring.

Shape suffixes: B images, N tokens, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.models.linear import has_onednn
from vitas.models.vit import Block, VisionTransformer, attend

Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def fast(model: VisionTransformer, images: int) -> Function:
    """What gives the logits (B, classes) of `model` in evaluation for images (B, 3, H, W), but for rounding.

    - Of the last block only the class token is computed, for the classifier reads no other.
    - On a CPU, in float32, linear layers are oneDNN's with packed weights and the GELU inside. They are as fast for 32
      images as for 4; MKL's are not where a layer has few outputs.

    Call it in inference mode, under the autocast (or none) under which it was made. It keeps the weights of now, as
    they are or packed: do not change them afterwards.

    Args:
        model: One whose classifier reads the class token.
        images: The usual number of images of a batch; others work too.
    """
    assert model.global_pool == "token" and isinstance(model.fc_norm, nn.Identity)
    rows = images * (model.patch_embed.num_patches + 1)
    blocks: list[Any] = list(model.blocks)
    run = [_block(block, rows) for block in blocks[:-1]] + [_last_block(block, images) for block in blocks[-1:]]

    def logits(images: Tensor) -> Tensor:
        x_BNC = model._pos_embed(model.patch_embed(images))
        for block in run:
            x_BNC = block(x_BNC)
        return model.head(model.norm(x_BNC[:, 0]))

    return logits


def _block(block: Block, rows: int) -> Function:
    qkv, proj, mlp = _linear(block.attn.qkv, rows), _linear(block.attn.proj, rows), _mlp(block, rows)

    def forward(x_BNC: Tensor) -> Tensor:
        attended = attend(*qkv(block.norm1(x_BNC)).chunk(3, dim=-1), heads=block.attn.num_heads, pad=True)
        return mlp(x_BNC.add_(proj(attended)))

    return forward


def _last_block(block: Block, images: int) -> Function:
    """The block from all tokens to the class token, (B, N, C) to (B, 1, C).

    With one query q a head, q (Wk x) = (q Wk) x, and the mean of Wv x is Wv of the mean of x: no keys or values of all
    tokens are needed. The bias of the keys adds the same to all tokens, which softmax ignores.
    """
    heads, inner = block.attn.num_heads, block.attn.proj.in_features
    query, proj = _linear(block.attn.qkv, images, slice(0, inner)), _linear(block.attn.proj, images)
    mlp = _mlp(block, images)
    _, keys_HDC, values_HDC = (part.unflatten(0, (heads, -1)) for part in block.attn.qkv.weight.detach().chunk(3))
    bias = block.attn.qkv.bias.detach()[2 * inner :]

    def forward(x_BNC: Tensor) -> Tensor:
        normed = block.norm1(x_BNC)
        q_BHD = query(normed[:, 0]).unflatten(-1, (heads, -1))
        q_BHC = torch.einsum("bhd,hdc->bhc", q_BHD, keys_HDC)
        mean_B1HC = F.scaled_dot_product_attention(
            q_BHC[:, None], normed[:, None], normed[:, None], scale=(inner // heads) ** -0.5
        )
        attended = torch.einsum("bnhc,hdc->bnhd", mean_B1HC, values_HDC).flatten(2) + bias
        return mlp(x_BNC[:, :1] + proj(attended))

    return forward


def _mlp(block: Block, rows: int) -> Function:
    """The second half of a block; changes its argument."""
    layers: Any = block.mlp
    fc1, fc2 = _linear(layers.fc1, rows, gelu=True), _linear(layers.fc2, rows)
    return lambda x_BNC: x_BNC.add_(fc2(fc1(block.norm2(x_BNC))))


def _linear(layer: nn.Linear, rows: int, outputs: slice = slice(None), *, gelu: bool = False) -> Function:
    """Some outputs of a linear layer, for inputs of so many rows, and perhaps their GELU."""
    weight, bias = layer.weight.detach()[outputs], layer.bias.detach()[outputs]
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        activation = ("gelu", [], "none") if gelu else ("none", [], "")
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, *activation)
    return (lambda x: F.gelu(F.linear(x, weight, bias))) if gelu else partial(F.linear, weight=weight, bias=bias)
