"""What an architecture costs, counted without a model.

N architectures, D blocks; one token a patch, and one class token.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from vitas.spaces.architecture import Architecture, Block, Population
from vitas.spaces.space import SearchSpace

COUNTED = ("flops", "macs", "params")
"""The costs that are counted from an architecture alone."""

MEASURED = ("throughput", "latency", "memory")
"""The costs that are measured: images a second, milliseconds for one image, bytes at the peak of a forward."""

COSTS = (*COUNTED, *MEASURED)


def counts(population: Population, num_classes: int) -> dict[str, np.ndarray]:
    """Costs (N,) of each architecture for one RGB image, as integers.

    `flops` is the count of the paper's tables: multiply-adds on patch tokens only, the class token left out,
    the classifier counted once a patch. `macs` is exact: what `torch.utils.flop_counter` counts, halved.
    `params` is what the extracted model holds.
    """
    embed = population.embed_dim
    patch_pixels = 3 * population.patch_size**2
    patches = (population.image_size // population.patch_size) ** 2
    head = embed * num_classes

    def body(tokens: np.ndarray) -> np.ndarray:
        tokens = tokens[:, None]
        width = embed[:, None]
        inner = population.qkv_dim // 3
        linear = width * (population.qkv_dim + inner + 2 * population.mlp_dim)
        return (tokens * linear + 2 * tokens**2 * inner).sum(axis=1)

    stem = patches * patch_pixels * embed
    kept = (population.heads > 0).sum(axis=1)
    weights = embed[:, None] * (population.qkv_dim * 4 // 3 + 2 * population.mlp_dim)
    biases = population.qkv_dim + population.mlp_dim
    block_params = (weights + biases).sum(axis=1) + kept * 6 * embed  # two norms, two output biases
    tokens_params = (patches + 2) * embed  # positions of patches and class token; the class token
    return {
        "flops": stem + body(patches) + patches * head,
        "macs": stem + body(patches + 1) + head,
        "params": (patch_pixels + 1) * embed + tokens_params + block_params + 2 * embed + head + num_classes,
    }


def count(architecture: Architecture, num_classes: int) -> dict[str, int]:
    """`counts` of a single architecture, as plain integers."""
    return {name: int(values[0]) for name, values in counts(Population.of([architecture]), num_classes).items()}


def reachable(space: SearchSpace, num_classes: int) -> dict[str, tuple[int, int]]:
    """The smallest and largest counted costs of the whole space: `{"macs": (low, high), ...}`.

    Costs rise with every width and fall with every skipped block; only the patch size is not monotone.
    """
    corners = [space.corner(end, patch) for patch in space.patch_size for end in (0, -1)]
    costs = counts(Population.of(corners), num_classes)
    return {name: (int(values.min()), int(values.max())) for name, values in costs.items()}


def uniform_vit(like: Architecture, num_classes: int, *, min_heads: int = 1) -> Architecture:
    """The smallest plain ViT (DeiT's proportions) that costs no fewer exact MACs than `like`.

    Same image, patch and number of blocks; every block has qkv 3 x and MLP 4 x the embedding, and as many heads as
    most blocks of `like` (of equally frequent counts the largest), but no fewer than `min_heads`.
    """
    frequency = Counter(block.heads for block in like.kept)
    heads = max(min_heads, max(frequency, key=lambda heads: (frequency[heads], heads), default=1))
    return _smallest_vit(like, num_classes, like.patch_size, heads)


def uniform_vits(like: Architecture, num_classes: int, space: SearchSpace) -> list[Architecture]:
    """`uniform_vit`, and those of the other patch sizes and numbers of heads of a space."""
    own = uniform_vit(like, num_classes, min_heads=min(space.heads))
    others = [
        _smallest_vit(like, num_classes, patch, heads) for patch in space.patch_size for heads in sorted(space.heads)
    ]
    return [own, *(vit for vit in others if vit != own)]


def _smallest_vit(like: Architecture, num_classes: int, patch_size: int, heads: int) -> Architecture:
    target = count(like, num_classes)["macs"]
    for width in itertools.count(heads, heads):
        block = Block(heads=heads, qkv_dim=3 * width, mlp_dim=4 * width)
        vit = Architecture(
            image_size=like.image_size, patch_size=patch_size, embed_dim=width, blocks=(block,) * len(like.kept)
        )
        if count(vit, num_classes)["macs"] >= target:
            return vit
    raise AssertionError("costs rise with the width")
