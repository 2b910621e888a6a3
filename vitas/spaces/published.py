"""The five networks of the paper, and the `net_id` strings by which its release names architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vitas.config import UserError, one_line
from vitas.spaces.architecture import Architecture, Block
from vitas.spaces.space import SearchSpace

IMAGE_SIZE = 224

_SPACE_384, _SPACE_768 = (SearchSpace.model_validate({"extends": name}) for name in ("384", "768"))
SPACES = {space.depth: space for space in (_SPACE_384, _SPACE_768)}
"""The channel-level spaces of the release by their number of blocks: 16 for ViTAS-A, B and E, 13 for F."""


def parse_net_id(net_id: str, space: SearchSpace | None = None) -> Architecture:
    """The architecture of a channel-level `net_id`, whose indices point into the choices of a space.

    For D blocks it holds 3 D + 4 numbers: patch size; for each block its heads, where one past the last choice means
    that the block is skipped; two zeros (norm, classifier); embedding; then qkv and MLP width for each block, skipped
    ones too.

    Args:
        net_id: The numbers, with blanks between.
        space: What they point into; left out, the one of `SPACES` with this number of blocks.

    Raises:
        UserError: Another count of numbers, or a number that is no index.
    """
    try:
        numbers = [int(word) for word in net_id.split()]
    except ValueError:
        raise UserError(f"net_id: expected whole numbers with blanks between, got {one_line(net_id)!r}") from None
    space = space or SPACES.get((len(numbers) - 4) // 3, _SPACE_384)
    depth = space.depth
    if len(numbers) != 3 * depth + 4:
        raise UserError(f"net_id: expected {3 * depth + 4} numbers for {depth} blocks, got {len(numbers)}")

    def choice(position: int, choices: Sequence[Any]) -> Any:
        if not 0 <= numbers[position] < len(choices):
            raise UserError(f"net_id: number {position + 1}: expected 0 to {len(choices) - 1}, got {numbers[position]}")
        return choices[numbers[position]]

    skip = [] if space.identity == "none" else [None]
    widths = depth + 4

    def block(index: int) -> Block | None:
        heads = choice(1 + index, [*space.heads, *skip])
        qkv = choice(widths + 2 * index, space.qkv_dim.choices)
        mlp = choice(widths + 2 * index + 1, space.mlp_dim.choices)
        return Block(heads=heads, qkv_dim=qkv, mlp_dim=mlp) if heads else None

    for position in (depth + 1, depth + 2):  # norm and classifier: nothing to choose
        choice(position, ["only"])
    return Architecture(
        image_size=space.image_size,
        patch_size=choice(0, space.patch_size),
        embed_dim=choice(depth + 3, space.embed_dim.choices),
        blocks=tuple(block(index) for index in range(depth)),
    )


class Published(NamedTuple):
    """A network of the paper."""

    architecture: Architecture
    """Its shape; positions of skipped blocks are those of the release."""
    flops: int
    """FLOPs as the paper counts them, at 1000 classes."""
    top1: float
    """Top-1 accuracy on ImageNet's validation split, in percent."""
    top5: float
    """Top-5 accuracy, in percent."""


_A = "1 2 4 3 4 4 1 3 4 3 4 4 4 4 3 3 4 0 0 3 1 6 7 9 4 3 6 8 4 9 1 8 6 4 9 2 7 6 8 9 3 0 3 8 7 0 5 7 9 8 4 4"
_B = "1 3 4 4 3 4 3 4 4 2 2 4 2 3 4 4 1 0 0 4 1 5 1 6 2 2 2 3 2 9 2 6 3 9 5 7 7 5 6 4 8 1 5 3 2 8 5 9 2 4 5 5"
_E = "1 3 4 3 4 3 1 4 0 4 2 1 2 4 2 1 2 0 0 8 4 4 1 7 6 5 3 8 5 6 5 6 3 6 3 4 4 4 8 8 8 7 4 0 4 5 9 5 3 6 7 8"
_F = "1 3 3 3 3 3 3 3 3 3 3 3 3 3 0 0 3 2 5 0 7 5 2 3 6 6 2 4 4 8 7 4 6 7 2 6 1 6 6 4 7 5 7"
_C = Architecture(
    image_size=IMAGE_SIZE, patch_size=16, embed_dim=230, blocks=(Block(heads=3, qkv_dim=432, mlp_dim=720),) * 12
)

PUBLISHED = {
    "vitas_a": Published(parse_net_id(_A), 858_652_480, 71.1, 89.8),
    "vitas_b": Published(parse_net_id(_B), 990_624_768, 72.4, 90.6),
    "vitas_c": Published(_C, 1_303_042_496, 74.7, 92.0),
    "vitas_e": Published(parse_net_id(_E), 2_706_797_632, 77.4, 93.8),
    "vitas_f": Published(parse_net_id(_F), 4_930_994_656, 80.6, 95.1),
}
"""The five networks of the release, by timm's names for them."""
