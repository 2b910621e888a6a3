"""The search space: sampling, genomes, canonical form.

Shape suffixes: N architectures, D blocks, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from vitas.config import Section, UserError, did_you_mean, one_line
from vitas.spaces.architecture import (
    MOST_BLOCKS,
    Architecture,
    Block,
    Channels,
    Pixels,
    Population,
    check_patches,
)
from vitas.spaces.named import NAMED

Ratio = Annotated[float, Field(gt=0, le=1)]


class Widths(Section):
    """The widths of one dimension: `round(max * ratio)` for each ratio."""

    max: Channels
    """The largest width."""
    ratios: list[Ratio] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    """Fractions of the maximum that a subnet may use."""

    @model_validator(mode="after")
    def _ascending(self) -> Widths:
        choices = self.choices
        if not choices or list(choices) != sorted(set(choices)) or choices[0] < 1:
            raise ValueError(f"ratios must rise and give different widths of at least 1, got widths {list(choices)}")
        return self

    @property
    def choices(self) -> tuple[int, ...]:
        """The widths in channels, ascending."""
        return tuple(round(self.max * ratio) for ratio in self.ratios)


class SearchSpace(Section):
    """All architectures that one supernet holds (ViTAS, section 3)."""

    image_size: Pixels
    """Height and width of the images, in pixels."""
    patch_size: list[Pixels]
    """Choices of the patch size, in pixels."""
    embed_dim: Widths
    """Channels of a token."""
    depth: Annotated[int, Field(gt=0, le=MOST_BLOCKS)]
    """Number of blocks, skipped ones included."""
    heads: list[Channels]
    """Choices of the number of attention heads, for each block."""
    qkv_dim: Widths
    """Channels of q, k and v together, for each block."""
    mlp_dim: Widths
    """Hidden channels of the MLP, for each block."""
    identity: Literal["none", "free", "tail"] = "none"
    """Whether blocks may be skipped: never, anywhere, or only at the end."""
    tied_blocks: bool = False
    """One head count, qkv width and MLP width for all blocks (block-level search)."""
    extends: Annotated[str | int | None, Field(exclude=True, repr=False)] = None
    """A ready space, `tiny`, `small`, `384` or `768`, which the other settings change; `vitas recipes` lists them."""

    @model_validator(mode="before")
    @classmethod
    def _extended(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("extends") is None:
            return values
        name = str(values["extends"])
        if name not in NAMED:
            raise ValueError(
                f"extends: expected one of {', '.join(NAMED)}, got {one_line(name)}{did_you_mean(name, NAMED)}"
            )
        return NAMED[name].values | values | {"extends": None}

    @field_validator("patch_size", "heads")
    @classmethod
    def _distinct(cls, values: list[int]) -> list[int]:
        if not values or len(set(values)) < len(values):
            raise ValueError(f"expected one or more different numbers, got {values}")
        return values

    @model_validator(mode="after")
    def _fits(self) -> SearchSpace:
        for patch in self.patch_size:
            if self.image_size % patch:
                raise ValueError(f"patch_size {patch} does not divide image_size {self.image_size}")
            check_patches(self.image_size, patch)
        for heads in self.heads:
            for width in self.qkv_dim.choices:
                if width % (3 * heads):
                    raise ValueError(
                        f"heads {heads} does not divide qkv_dim {width} "
                        f"({self.qkv_dim.max} x ratio): each of q, k and v would have {width / 3:g} channels"
                    )
        return self

    # A genome is a row of choice indices: patch, embedding, then
    #   (operator, qkv, mlp) for each block, where operator len(heads) means "skip", or, with tied blocks,
    #   heads, qkv, mlp once, and then (if blocks may be skipped) 0 = keep or 1 = skip for each block.

    @property
    def cardinality(self) -> np.ndarray:
        """(G,) The number of choices of each gene."""
        widths = [len(self.qkv_dim.choices), len(self.mlp_dim.choices)]
        stem = [len(self.patch_size), len(self.embed_dim.choices)]
        may_skip = self.identity != "none"
        if self.tied_blocks:
            return np.array([*stem, len(self.heads), *widths, *[2] * (self.depth * may_skip)])
        return np.array([*stem, *[len(self.heads) + may_skip, *widths] * self.depth])

    def corner(self, end: Literal[0, -1], patch_size: int) -> Architecture:
        """The architecture with the smallest (0) or the largest (-1) of all choices, but for the patch size."""
        block = Block(heads=self.heads[0], qkv_dim=self.qkv_dim.choices[end], mlp_dim=self.mlp_dim.choices[end])
        kept = self.depth if end or self.identity == "none" else 1
        blocks = (block,) * kept + (None,) * (self.depth - kept)
        embed_dim = self.embed_dim.choices[end]
        return Architecture(image_size=self.image_size, patch_size=patch_size, embed_dim=embed_dim, blocks=blocks)

    @property
    def size(self) -> int:
        """The number of different architectures."""
        block = len(self.heads) * len(self.qkv_dim.choices) * len(self.mlp_dim.choices)
        kept = block if not self.tied_blocks else 1
        bodies = {
            "none": kept**self.depth,
            "free": (kept + 1) ** self.depth - 1,
            "tail": sum(kept**depth for depth in range(1, self.depth + 1)),
        }[self.identity]
        return len(self.patch_size) * len(self.embed_dim.choices) * bodies * (block if self.tied_blocks else 1)

    def sample_genomes(self, rng: np.random.Generator, count: int, *, skip: float = 0.0) -> np.ndarray:
        """Draws (count, G) genomes: each block skipped with probability `skip`, every other choice uniform."""
        if self.identity == "none":
            skip = 0.0
        # One order of draws whatever `skip` is: calibrating it by bisection then compares like with like.
        genomes = rng.integers(0, self.cardinality, size=(count, len(self.cardinality)))
        skipped = rng.random((count, self.depth)) < skip
        operators = rng.integers(0, len(self.heads), size=(count, self.depth))
        if not self.tied_blocks:
            genomes[:, 2::3] = np.where(skipped, len(self.heads), operators)
        elif self.identity != "none":
            genomes[:, 5:] = skipped
        return self.canonical(genomes)

    def sample(self, seed: int, step: int, *, skip: float = 0.0) -> Architecture:
        """The architecture of one training step: the same on every rank, without a broadcast."""
        return self.decode(self.sample_genomes(np.random.default_rng([seed, step]), 1, skip=skip)[0])

    def ends(self, seed: int, step: int) -> list[Architecture]:
        """The largest and the smallest architecture, as `corner` says, for one training step.

        Patch sizes and head counts, each with weights of its own, are others at each step, so that all are trained.
        """
        found = []
        for end, genome in zip((-1, 0), self.sample_genomes(np.random.default_rng([seed, step, 1]), 2), strict=True):
            drawn = self.decode(genome)  # nothing is skipped
            corner = self.corner(end, drawn.patch_size)
            blocks = tuple(
                block and like and block.model_copy(update={"heads": like.heads})
                for block, like in zip(corner.blocks, drawn.blocks, strict=True)
            )
            found.append(corner.model_copy(update={"blocks": blocks}))
        return found

    def canonical(self, genomes: np.ndarray) -> np.ndarray:
        """(N, G) The one genome of each architecture: genes of skipped blocks are zero, at least one block is kept.

        With `identity: tail` the kept blocks move to the front, in their order (identity shifting).
        """
        patch, embed, operators, qkv, mlp = self._unpack(np.atleast_2d(genomes))
        nothing = len(self.heads)
        if self.identity == "tail":
            order = np.argsort(operators == nothing, axis=1, kind="stable")
            operators, qkv, mlp = (np.take_along_axis(genes, order, axis=1) for genes in (operators, qkv, mlp))
        skipped = operators == nothing
        operators[skipped.all(axis=1), 0] = 0
        qkv, mlp = np.where(skipped, 0, qkv), np.where(skipped, 0, mlp)
        return self._pack(patch, embed, operators, qkv, mlp)

    def decode(self, genome: np.ndarray) -> Architecture:
        """The architecture of one genome (G,)."""
        population = self.widths(self.canonical(genome))
        blocks = [
            Block(heads=int(heads), qkv_dim=int(qkv), mlp_dim=int(mlp)) if heads else None
            for heads, qkv, mlp in zip(population.heads[0], population.qkv_dim[0], population.mlp_dim[0], strict=True)
        ]
        return Architecture(
            image_size=self.image_size,
            patch_size=int(population.patch_size[0]),
            embed_dim=int(population.embed_dim[0]),
            blocks=tuple(blocks),
        )

    def encode(self, architecture: Architecture) -> np.ndarray:
        """The canonical genome (G,) of an architecture of this space.

        Raises:
            UserError: The architecture is not in this space; says what does not fit.
        """
        if architecture.image_size != self.image_size or len(architecture.blocks) != self.depth:
            raise UserError(
                f"the architecture has {len(architecture.blocks)} blocks at {architecture.image_size} pixels, "
                f"the space {self.depth} at {self.image_size}"
            )

        def index(name: str, value: int, choices: Sequence[int]) -> int:
            if value not in choices:
                raise UserError(f"the architecture's {name} {value} is not among the space's {list(choices)}")
            return choices.index(value)

        rows = np.array(
            [
                [
                    index("heads", block.heads, self.heads),
                    index("qkv_dim", block.qkv_dim, self.qkv_dim.choices),
                    index("mlp_dim", block.mlp_dim, self.mlp_dim.choices),
                ]
                if block
                else [len(self.heads), 0, 0]
                for block in architecture.blocks
            ]
        )
        genome = self._pack(
            np.array([index("patch_size", architecture.patch_size, self.patch_size)]),
            np.array([index("embed_dim", architecture.embed_dim, self.embed_dim.choices)]),
            *rows.T[:, None, :],
        )[0]
        if self.decode(genome) != architecture:
            raise UserError(
                f"the architecture does not fit the space's identity: {self.identity} "
                f"and tied_blocks: {str(self.tied_blocks).lower()}"
            )
        return genome

    def widths(self, genomes: np.ndarray) -> Population:
        """The arrays of (N, G) canonical genomes, for `vitas.spaces.cost`."""
        patch, embed, operators, qkv, mlp = self._unpack(np.atleast_2d(genomes))
        skipped = operators == len(self.heads)
        return Population(
            image_size=np.full(len(patch), self.image_size),
            patch_size=np.array(self.patch_size)[patch],
            embed_dim=np.array(self.embed_dim.choices)[embed],
            heads=np.array([*self.heads, 0])[operators],
            qkv_dim=np.where(skipped, 0, np.array(self.qkv_dim.choices)[qkv]),
            mlp_dim=np.where(skipped, 0, np.array(self.mlp_dim.choices)[mlp]),
        )

    def _unpack(self, genomes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Choice indices: patch (N,), embedding (N,), operator, qkv and mlp (N, D)."""
        patch = genomes[:, 0]
        embed = genomes[:, 1]
        genes = genomes[:, 2:]
        if not self.tied_blocks:
            return patch, embed, genes[:, 0::3].copy(), genes[:, 1::3], genes[:, 2::3]
        operators, qkv, mlp = (np.repeat(genes[:, [gene]], self.depth, axis=1) for gene in range(3))
        if self.identity != "none":
            operators[genes[:, 3:] == 1] = len(self.heads)
        return patch, embed, operators, qkv, mlp

    def _pack(self, patch: Any, embed: Any, operators: Any, qkv: Any, mlp: Any) -> np.ndarray:
        if not self.tied_blocks:
            genes = np.stack([operators, qkv, mlp], axis=2).reshape(len(patch), -1)
            return np.column_stack([patch, embed, genes])
        skipped = operators == len(self.heads)
        row = np.arange(len(patch))
        first = skipped.argmin(axis=1)
        tied = [genes[row, first] for genes in (operators, qkv, mlp)]
        flags = [skipped.astype(np.int64)] if self.identity != "none" else []
        return np.column_stack([patch, embed, *tied, *flags])
