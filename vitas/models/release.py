"""The original release of ViTAS: its five networks, its `net_id` strings, its `.pth.tar` files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vitas.config import UserError, one_line, parse, read_yaml
from vitas.models.vit import VisionTransformer
from vitas.spaces.architecture import Architecture, Block
from vitas.spaces.space import SearchSpace

IMAGE_SIZE = 224

PREPROCESSING = {
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}
"""How the release prepares test images, under timm's names."""

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


def architecture_from_config(model: dict[str, Any]) -> Architecture:
    """The architecture of the release's own model config: with a `net_id` (channel level), or without (block level).

    Of the rows of `backbone` these places matter: in `init_stem` 2, the patch sizes; in `Block` 0, the depth, 1, 2, 3
    and 5, the embedding, head counts, qkv and MLP width, and the last, the operators: `id` where blocks may be
    skipped. Beside a `net_id` the widths are the largest ones.

    Raises:
        UserError: The config lacks something, or does not decide on one network.
    """
    try:
        patch_sizes = list(model["backbone"]["init_stem"][2])
        depth, embed_dim, heads, qkv_dim, _, mlp_dim, *_, operators = model["backbone"]["Block"]
        depth, heads, operators = int(depth), list(heads), list(operators)
        net_id = model.get("net_id")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UserError("model config: expected backbone.init_stem and backbone.Block as in the release") from None
    if net_id is None:
        return _block_level(patch_sizes, depth, embed_dim, heads, qkv_dim, mlp_dim)
    ratios = {"ratios": model["channel_percent"]} if "channel_percent" in model else {}
    space = parse(
        SearchSpace,
        {
            "image_size": IMAGE_SIZE,
            "patch_size": patch_sizes,
            "embed_dim": {"max": embed_dim} | ratios,
            "depth": depth,
            "heads": heads,
            "qkv_dim": {"max": qkv_dim} | ratios,
            "mlp_dim": {"max": mlp_dim} | ratios,
            "identity": "free" if "id" in operators else "none",
        },
        source="model config",
    )
    return parse_net_id(net_id if isinstance(net_id, str) else " ".join(map(str, net_id)), space)


def _block_level(patch_sizes: list[int], depth: int, embed: int, heads: list[int], qkv: int, mlp: int) -> Architecture:
    if len(patch_sizes) != 1 or len(heads) != 1:
        raise UserError(
            f"model config: without net_id expected one patch size and one head count, got {patch_sizes} and {heads}"
        )
    block = {"heads": heads[0], "qkv_dim": qkv, "mlp_dim": mlp}
    values = {"image_size": IMAGE_SIZE, "patch_size": patch_sizes[0], "embed_dim": embed, "blocks": [block] * depth}
    return parse(Architecture, values, source="model config")


def convert(file: Path | str, config: Path | str | None = None) -> tuple[Architecture, dict[str, Tensor]]:
    """Reads a `.pth.tar` of the release.

    Args:
        file: The checkpoint.
        config: JSON or YAML with the release's model config: itself, under `model`, or a whole file of the release.
            Left out, `file` must hold one of the `PUBLISHED` networks; it is recognised by its blocks and widths.

    Returns:
        The architecture, and the state dict of its `vitas.models.vit.VisionTransformer`.

    Raises:
        UserError: A file is missing, is no checkpoint of the release, or does not fit the config; names the keys.
    """
    tensors = read(file)
    architecture = _recognise(tensors, file) if config is None else _read_config(config)
    return architecture, translate(tensors, architecture, source=file)


def read(file: Path | str) -> dict[str, Tensor]:
    """The network's tensors by their names in the release, without the prefix `module.net.`.

    Raises:
        UserError: The file is missing or damaged, or holds more than tensors and plain values.
    """
    try:
        open(file, "rb").close()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file}: refused: expected tensors and plain values only, and it holds {foreign[1]}, "
                "which could run foreign code when read"
            ) from None
        raise UserError(f"{file}: not a PyTorch checkpoint of tensors, or damaged") from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{file}: expected a dict of tensors, or one under the key model")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{file}: {name}: expected a tensor, got {type(value).__name__}")
    return {re.sub(r"^(module\.)*(net\.)?", "", str(name)): value for name, value in state.items()}


def translate(tensors: dict[str, Tensor], architecture: Architecture, *, source: Path | str) -> dict[str, Tensor]:
    """The state dict of the `VisionTransformer` of `architecture`, from tensors under the release's names.

    The release scales attention by `(embedding // heads) ** -0.5`, we by the inverse root of a head's channels;
    the difference goes into the weights of q.

    Raises:
        UserError: Keys are missing, unexpected, or of another shape; names `source` and the keys.
    """
    if problems := _differences(tensors, architecture):
        raise UserError(f"{source}: does not fit the architecture: {problems}")
    state = {ours: tensors[theirs].float() for ours, theirs in _names(architecture).items()}
    for index, block in enumerate(architecture.kept):
        inner = block.qkv_dim // 3
        factor = ((inner // block.heads) / (architecture.embed_dim // block.heads)) ** 0.5
        for part in ("weight", "bias"):
            name = f"blocks.{index}.attn.qkv.{part}"
            q, kv = state[name].split([inner, 2 * inner])
            state[name] = torch.cat([q * factor, kv])
    return state


_HEAD = "backbone_FC_FC_0.0.module.0."


def _names(architecture: Architecture) -> dict[str, str]:
    """The names that the release gives our tensors."""
    prefixes = {"norm.": "backbone_Norm_Norm_0.0.", "head.": _HEAD}
    # Skipped blocks have no tensors there, and yet their numbers; ours are consecutive.
    positions = [position for position, block in enumerate(architecture.blocks) if block]
    prefixes |= {f"blocks.{ours}.": f"backbone_Block_Block_{theirs}.0." for ours, theirs in enumerate(positions)}

    def theirs(name: str) -> str:
        for ours, prefix in prefixes.items():
            if name.startswith(ours):
                return prefix + name.removeprefix(ours)
        return "backbone_init_stem_Patch_init_0.0." + name

    return {name: theirs(name) for name in _shapes(architecture, 1)}


def _shapes(architecture: Architecture, num_classes: int) -> dict[str, list[int]]:
    """The shapes of our tensors."""
    with torch.device("meta"):
        state = VisionTransformer(architecture, num_classes, weight_init="skip").state_dict()
    return {name: list(value.shape) for name, value in state.items()}


def _expected(tensors: dict[str, Tensor], architecture: Architecture) -> dict[str, list[int]]:
    """The shapes of the tensors by their names in the release; the file itself says how many classes there are."""
    head = tensors.get(f"{_HEAD}weight")
    names = _names(architecture)
    num_classes = 1000 if head is None or not head.ndim else len(head)
    return {names[ours]: shape for ours, shape in _shapes(architecture, num_classes).items()}


def _differences(tensors: dict[str, Tensor], architecture: Architecture) -> str:
    """In words: what is missing, unexpected, or of another shape; empty if nothing is."""
    expected = _expected(tensors, architecture)
    found = {name: list(value.shape) for name, value in tensors.items()}
    lists = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    return "; ".join(f"{title} {_some(names)}" for title, names in lists.items() if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _recognise(tensors: dict[str, Tensor], file: Path | str) -> Architecture:
    """The published architecture whose tensors these are."""

    def common(name: str) -> int:
        expected = _expected(tensors, PUBLISHED[name].architecture)
        return sum(list(tensors[theirs].shape) == shape for theirs, shape in expected.items() if theirs in tensors)

    nearest = max(PUBLISHED, key=common)
    architecture = PUBLISHED[nearest].architecture
    if problems := _differences(tensors, architecture):
        raise UserError(
            f"{file}: expected one of {', '.join(PUBLISHED)}; another network needs its config (--config NET.json); "
            f"compared with the nearest, {nearest}: {problems}"
        )
    return architecture


def _read_config(file: Path | str) -> Architecture:
    values = read_yaml(file, otherwise="neither JSON nor YAML")
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values, got {type(values).__name__}")
    # The release's own files hold the space under `model`, and the network under `test` and `retrain`.
    places = [values.get(stage) for stage in ("test", "retrain")] + [values]
    models = [place["model"] for place in places if isinstance(place, dict) and "model" in place]
    try:
        return architecture_from_config(models[0] if models else values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
