"""One fixed architecture as a timm Vision Transformer whose blocks may differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, resample_abs_pos_embed
from timm.models import vision_transformer
from torch import Tensor, nn

from vitas.spaces import architecture
from vitas.spaces.architecture import Architecture

BLOCK_EPS, FINAL_EPS = 1e-6, 1e-5
"""Epsilon of the layer norms in blocks, and of the last one: those of the original release."""

NARROW = 16
"""On a CPU heads of fewer channels take longer, up to 1.6 times, than of these."""


class Attention(nn.Module):
    """Self-attention whose inner width is free of the embedding's."""

    def __init__(self, embed_dim: int, heads: int, qkv_dim: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(embed_dim, qkv_dim)
        self.qkv.bias.register_hook(_without_keys)
        self.proj = nn.Linear(qkv_dim // 3, embed_dim)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, class_token: bool = False
    ) -> Tensor:
        """(B, N, C) to (B, N, C), or (B, 1, C) of the class token; the mask is `scaled_dot_product_attention`'s."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if class_token:
            q = q[:, :1]
        return self.proj(attend(q, k, v, self.num_heads, attn_mask, is_causal, pad=self.training))


class Block(nn.Module):
    """A pre-norm transformer block, named as timm names its parts."""

    def __init__(self, embed_dim: int, block: architecture.Block, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=BLOCK_EPS)
        self.attn = Attention(embed_dim, block.heads, block.qkv_dim)
        self.norm2 = nn.LayerNorm(embed_dim, eps=BLOCK_EPS)
        self.mlp = Mlp(embed_dim, block.mlp_dim)
        self.drop_path = DropPath(drop_path)
        self.class_token_only = False

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C), or in training, with `class_token_only`, to (B, 1, C)."""
        class_token = self.class_token_only and self.training
        attended = self.drop_path(self.attn(self.norm1(x), attn_mask, is_causal, class_token))
        x = (x[:, :1] if class_token else x) + attended
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(vision_transformer.VisionTransformer):
    """timm's Vision Transformer with the blocks of an `Architecture`; skipped blocks are left out.

    All that timm's class does works here too: `forward_features`, `forward_head`, `reset_classifier`,
    `set_grad_checkpointing`, `forward_intermediates`, `set_input_size`.

    Args:
        architecture: The shape.
        num_classes: Outputs of the classifier; 0 for none.
        img_size: Another image size than the architecture's.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        **timm_options: What else timm's class takes.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] | None = None,
        drop_path_rate: float = 0.0,
        **timm_options: Any,
    ) -> None:
        blocks = iter(architecture.kept)
        super().__init__(
            img_size=img_size or architecture.image_size,
            patch_size=architecture.patch_size,
            embed_dim=architecture.embed_dim,
            depth=len(architecture.kept),
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            # timm builds the blocks in order, and knows the drop path of each.
            block_fn=lambda *, drop_path, **_: Block(architecture.embed_dim, next(blocks), drop_path),  # pyright: ignore[reportArgumentType]
            **timm_options,
        )
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.eps = FINAL_EPS
        self.architecture = architecture
        self.pretrained_cfg: dict[str, Any] = bare_cfg(architecture) | {"num_classes": num_classes}
        """What is known of the model, under timm's names; whoever trains or loads it adds classes and preprocessing."""
        self._follow_input_size()

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """Timm's: a new classifier. The names of other classes are names no more."""
        super().reset_classifier(num_classes, *args, **kwargs)
        self.pretrained_cfg["num_classes"] = num_classes
        self.pretrained_cfg.pop("label_names", None)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Timm's: another size of images or of patches; the positions are resampled."""
        super().set_input_size(*args, **kwargs)
        self._follow_input_size()

    def _follow_input_size(self) -> None:
        if self.patch_embed.img_size is None:  # any size
            return
        (height, width), (patch_size, _) = self.patch_embed.img_size, self.patch_embed.patch_size
        self.pretrained_cfg["input_size"] = (3, height, width)
        if height == width:  # an Architecture is square
            self.architecture = self.architecture.model_copy(update={"image_size": height, "patch_size": patch_size})

    def set_class_token_only(self, enable: bool = True) -> None:
        """Whether a training computes of the last block the class token alone, as the classifier reads no other.

        `forward_features` gives no other then, until `eval()`.
        """
        self.blocks[-1].class_token_only = enable  # pyright: ignore[reportArgumentType]

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Timm's initialisation, but class token and positions start at zero, as in ViTAS."""
        super().init_weights(*args, **kwargs)
        for tokens in (self.cls_token, self.pos_embed):
            if tokens is not None:
                nn.init.zeros_(tokens)


def bare_cfg(architecture: Architecture) -> dict[str, Any]:
    """What timm wants to know of any model of this shape."""
    return {
        "architecture": "vitas",
        "input_size": (3, architecture.image_size, architecture.image_size),
        "fixed_input_size": True,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def _without_keys(gradient: Tensor) -> Tensor:
    """The gradient of a qkv bias with zeros for k: softmax ignores that part, so its true gradient is zero.

    What arithmetic leaves there is rounding noise. Adam would blow it up to full steps, another on each backend.
    """
    q, k, v = gradient.chunk(3)
    return torch.cat([q, torch.zeros_like(k), v])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    pad: bool = False,
    narrow: int = NARROW,  # TorchScript knows no globals
) -> Tensor:
    """Scaled dot-product attention of (B, N, C) tensors, their channels split over `heads`; (B, N, C).

    With `pad` heads of fewer channels than `narrow` are filled up with zeros on a CPU, which takes less time.
    """
    q, k, v = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in [q, k, v]]  # in a form that TorchScript reads
    width = q.shape[-1]
    pad = pad and width < narrow and q.device.type == "cpu"
    if pad:
        q, k, v = [F.pad(x, (0, narrow - width)) for x in [q, k, v]]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, scale=width**-0.5)
    return (mixed[..., :width] if pad else mixed).transpose(1, 2).flatten(2)


torch.fx.wrap("attend")  # symbolic tracing cannot tell which way it takes


def from_state(
    architecture: Architecture, state: dict[str, Tensor], pretrained_cfg: Mapping[str, Any] | None = None
) -> VisionTransformer:
    """The model with the weights of `state`; costs no initialisation. In evaluation mode.

    `pretrained_cfg` holds what else is known of it, such as `label_names` and `mean`, under timm's names.
    """
    head = state.get("head.weight")
    with torch.device("meta"):
        model = VisionTransformer(architecture, 0 if head is None else len(head), weight_init="skip")
    model.load_state_dict(state, assign=True)
    model.pretrained_cfg |= pretrained_cfg or {}
    return model.eval()


def start_from(model: VisionTransformer, other: VisionTransformer) -> None:
    """Gives a new model the weights of another one of the same blocks, for a training.

    Positions are resampled to its images; the classifier stays new if the other one's classes are not its.
    """
    state = other.state_dict()
    names, theirs = (one.pretrained_cfg.get("label_names") for one in (model, other))
    if model.num_classes != other.num_classes or (names and theirs and list(names) != list(theirs)):
        state |= {f"head.{name}": value for name, value in model.head.state_dict().items()}
    resample_positions(model, state, "")
    model.load_state_dict(state)


def resample_positions(model: VisionTransformer, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Fits positions of another image size in `state` to the model."""
    name = f"{prefix}pos_embed"
    own = model.pos_embed
    if own is not None and name in state and state[name].shape[1] != own.shape[1]:
        tokens = model.num_prefix_tokens
        state[name] = resample_abs_pos_embed(state[name], model.patch_embed.grid_size, num_prefix_tokens=tokens)
