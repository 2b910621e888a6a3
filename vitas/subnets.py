"""What the supernet trains at each step, and so how often each choice of the space is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from vitas.recipe import Recipe
from vitas.spaces.architecture import Architecture, Population
from vitas.spaces.budget import sample_inside
from vitas.spaces.cost import counts
from vitas.spaces.space import SearchSpace

Choice = tuple[str, int, int]
"""Its kind, the block from 1 on (0 for those of the whole network), and the value: `("heads", 3, 6)`."""

WHOLE, PER_BLOCK = ("patch_size", "embed_dim", "depth"), ("heads", "qkv_dim", "mlp_dim")
"""The kinds of choices of a network, and of each of its blocks that is not skipped. `depth` is how many are not."""


def subnets(
    recipe: Recipe, num_classes: int, skips: Mapping[str, float], step: int, steps: int
) -> tuple[Architecture, ...]:
    """What the supernet trains at a step, of so many: a random subnet, or the largest, the smallest and random ones."""
    space, seed, many = recipe.space, recipe.seed, recipe.supernet.sandwich
    budgets = list(recipe.every_budget.items())  # in turn, so that the subnets of every budget are trained
    inside = step >= round(steps * (1 - recipe.supernet.in_budget))

    def draw(number: int) -> Architecture:
        name, budget = budgets[number % len(budgets)]
        if inside:
            return sample_inside(space, budget, num_classes, seed=seed, step=number, skip=skips[name])
        return space.sample(seed, number, skip=skips[name])

    if not many:
        return (draw(step),)
    return (*space.ends(seed, step), *(draw(many * step + number) for number in range(many)))


def macs_of(num_classes: int, sides: int, *drawn: Architecture) -> int:
    """Multiply-adds of an image's forward through all subnets of a step."""
    return sides * int(counts(Population.of(drawn), num_classes)["macs"].sum())


def choices(net: Architecture) -> Iterator[Choice]:
    """The choices that make an architecture."""
    yield "patch_size", 0, net.patch_size
    yield "embed_dim", 0, net.embed_dim
    yield "depth", 0, len(net.kept)
    for number, block in enumerate(net.blocks, 1):
        for kind in PER_BLOCK if block else ():
            yield kind, number, getattr(block, kind)


def every_choice(space: SearchSpace) -> list[Choice]:
    """All choices of a space."""
    whole = [
        *(("patch_size", 0, size) for size in sorted(space.patch_size)),
        *(("embed_dim", 0, width) for width in space.embed_dim.choices),
        *(("depth", 0, depth) for depth in range(1 if space.identity != "none" else space.depth, space.depth + 1)),
    ]
    values = {"heads": sorted(space.heads), "qkv_dim": space.qkv_dim.choices, "mlp_dim": space.mlp_dim.choices}
    blocks = range(1, space.depth + 1)
    return whole + [(kind, block, value) for kind in PER_BLOCK for value in values[kind] for block in blocks]


def how_often(
    recipe: Recipe, num_classes: int, skips: Mapping[str, float], steps: int, *, done: int, most: int
) -> tuple[Counter[Choice], int]:
    """In how many steps each choice is trained, and of how many: of the first `done` of `steps`, `most` at most."""
    looked_at = np.random.default_rng(0).permutation(done)[:most].tolist()
    trained: Counter[Choice] = Counter()
    for step in looked_at:
        nets = subnets(recipe, num_classes, skips, step, steps)
        trained.update({choice for net in nets for choice in choices(net)})
    return trained, len(looked_at)
