"""Architectures by name: the networks of the paper, registered with timm, and DeiT's shapes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from vitas.config import UserError, did_you_mean, one_line, parse
from vitas.files import expanded
from vitas.models import release
from vitas.models.vit import VisionTransformer, bare_cfg, resample_positions
from vitas.spaces.architecture import Architecture, Block


def _deit(embed_dim: int, heads: int) -> Architecture:
    block = Block(heads=heads, qkv_dim=3 * embed_dim, mlp_dim=4 * embed_dim)
    return Architecture(image_size=224, patch_size=16, embed_dim=embed_dim, blocks=(block,) * 12)


ARCHITECTURES = {
    **{name: published.architecture for name, published in release.PUBLISHED.items()},
    "deit_ti": _deit(192, 3),
    "deit_s": _deit(384, 6),
}
"""The architectures that have a name."""


def named(name: str) -> Architecture:
    """The architecture of this name, such as `vitas_c` or `deit_ti`.

    Raises:
        UserError: There is none; names the nearest.
    """
    if name not in ARCHITECTURES:
        raise UserError(
            f"unknown architecture {one_line(name)}{did_you_mean(name.lower(), ARCHITECTURES)}: "
            f"expected {', '.join(ARCHITECTURES)}, or a YAML file"
        )
    return ARCHITECTURES[name]


def name_of(architecture: Architecture) -> str | None:
    """The name of an architecture, if it has one."""
    return next((name for name, known in ARCHITECTURES.items() if known == architecture), None)


def find(name_or_file: str) -> Architecture:
    """The architecture of a name, of a YAML file, of weights, or of a folder that holds `architecture.yaml`.

    Weights are a `model.safetensors` with such a file beside it, or a `.pth.tar` of a published network.

    Raises:
        UserError: There is no such name and no such file, or the file says something else.
    """
    path = expanded(name_or_file)
    if name_or_file in ARCHITECTURES or not (os.path.exists(path) or path.suffix or len(path.parts) > 1):
        return named(name_or_file)
    if path.suffix == ".safetensors":
        path = path.parent
    elif path.suffix in (".tar", ".pth"):
        return release.convert(path)[0]
    return Architecture.from_yaml(path / "architecture.yaml" if os.path.isdir(path) else path)


DECIDED = {
    *("num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "init_values"),
    *("proj_drop_rate", "attn_drop_rate", "norm_layer", "act_layer", "mlp_layer", "attn_layer"),
}
"""Options of timm's class that our blocks have no place for; unheeded, they would deceive."""

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "pool_size": None,
            **release.PREPROCESSING,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "paper_name": "Vision Transformer Architecture Search",
            "paper_ids": "arXiv:2106.13700",
            "origin_url": "https://github.com/xiusu/ViTAS",
        }
        for name in release.PUBLISHED
    }
)


@register_model
def vitas_a(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViTAS-A: 0.86 G FLOPs, 3.7 M parameters."""
    return _create("vitas_a", pretrained, **options)


@register_model
def vitas_b(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViTAS-B: 0.99 G FLOPs, 4.4 M parameters."""
    return _create("vitas_b", pretrained, **options)


@register_model
def vitas_c(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViTAS-C, of equal blocks: 1.3 G FLOPs, 6.0 M parameters."""
    return _create("vitas_c", pretrained, **options)


@register_model
def vitas_e(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViTAS-E: 2.7 G FLOPs, 12.6 M parameters."""
    return _create("vitas_e", pretrained, **options)


@register_model
def vitas_f(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViTAS-F: 4.9 G FLOPs, 22.5 M parameters."""
    return _create("vitas_f", pretrained, **options)


@register_model
def vitas(
    pretrained: bool = False, *, architecture: Architecture | Mapping[str, Any] | str | None = None, **options: Any
) -> nn.Module:
    """Any architecture: a value, its fields, a name or a file; model folders say theirs in `config.json`."""
    if architecture is None:
        raise UserError("vitas: which architecture? timm.create_model('local-dir:DIR'), or architecture='FILE.yaml'")
    if isinstance(architecture, str):
        architecture = find(architecture)
    elif not isinstance(architecture, Architecture):
        architecture = parse(Architecture, dict(architecture), source="architecture")
    if options.get("pretrained_cfg") is None:
        options["pretrained_cfg"] = bare_cfg(architecture)
    return _create("vitas", pretrained, architecture, **options)


def _create(name: str, pretrained: bool, architecture: Architecture | None = None, **options: Any) -> nn.Module:
    source = resolve_pretrained_cfg(name, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    if pretrained and not (source.has_weights or source.state_dict):
        raise UserError(
            f"{name}: no weights to download: import the original release's file, vitas import FILE.pth.tar -o DIR, "
            f"then timm.create_model({name!r}, checkpoint_path='DIR/model.safetensors')"
        )
    if unheeded := DECIDED & options.keys():
        raise UserError(f"{name}: {min(unheeded)}: not an option here, the architecture decides it")
    architecture = architecture or ARCHITECTURES[name]
    return build_model_with_cfg(
        partial(_build, architecture),
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={
            "out_indices": options.pop("out_indices", min(3, len(architecture.kept))),
            "feature_cls": "getter",
        },
        **options,
    )


def _build(architecture: Architecture, **options: Any) -> VisionTransformer:
    model = VisionTransformer(architecture, **options)
    model.register_load_state_dict_pre_hook(resample_positions)
    return model.to(device=options.get("device"), dtype=options.get("dtype"))
