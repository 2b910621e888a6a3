"""Ready search spaces by name, for `space.extends` and in Python."""

from __future__ import annotations

from typing import Any, NamedTuple


class Named(NamedTuple):
    """A ready search space."""

    words: str
    """What it is for, in a line."""
    image_sizes: tuple[int, ...]
    """Sizes of images that it is made for, in pixels: all its patch sizes divide them."""
    values: dict[str, Any]
    """The settings, as a recipe says them."""


_PAPER = {
    "image_size": 224,
    "patch_size": [14, 16, 32],
    "embed_dim": {"max": 384},
    "depth": 16,
    "heads": [3, 6, 12, 16],
    "qkv_dim": {"max": 1440},
    "mlp_dim": {"max": 1440},
    "identity": "free",
}

NAMED = {
    "tiny": Named(
        "Images of 16 to 32 pixels, networks of 0.1 to 20 M MACs.",
        (16, 24, 32),
        {
            "image_size": 32,
            "patch_size": [4, 8],
            "embed_dim": {"max": 64, "ratios": [0.5, 0.75, 1.0]},
            "depth": 6,
            "heads": [2, 4],
            "qkv_dim": {"max": 192, "ratios": [0.25, 0.5, 0.75, 1.0]},
            "mlp_dim": {"max": 256, "ratios": [0.25, 0.5, 0.75, 1.0]},
            "identity": "tail",
        },
    ),
    "small": Named(
        "Images of 64 to 96 pixels, networks of 2 to 300 M MACs.",
        (64, 80, 96),
        {
            "image_size": 64,
            "patch_size": [8, 16],
            "embed_dim": {"max": 192, "ratios": [0.5, 0.625, 0.75, 0.875, 1.0]},
            "depth": 10,
            "heads": [3, 6],
            "qkv_dim": {"max": 576, "ratios": [0.25, 0.5, 0.75, 1.0]},
            "mlp_dim": {"max": 768, "ratios": [0.25, 0.5, 0.75, 1.0]},
            "identity": "free",
        },
    ),
    "384": Named(
        "The paper's space for DeiT-Ti and DeiT-S: images of 224 pixels, networks of up to 8 G MACs.", (224,), _PAPER
    ),
    "768": Named(
        "The paper's space of twice the width: images of 224 pixels, networks of up to 26 G MACs.",
        (224,),
        _PAPER
        | {"depth": 13, "embed_dim": {"max": 768}, "qkv_dim": {"max": 2880}, "mlp_dim": {"max": 2880}}
        | {"identity": "none"},
    ),
}
"""The ready spaces, the smallest first."""
