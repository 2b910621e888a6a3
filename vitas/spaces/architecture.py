"""One architecture as a value, and many as arrays.

Shape suffixes: N architectures, D blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import yaml
from pydantic import Field, model_validator

from vitas.config import Section, parse, read_yaml

# Far above any network there is, and low enough that no count of costs leaves int64 (tested).
Pixels = Annotated[int, Field(gt=0, le=8192)]
Channels = Annotated[int, Field(gt=0, le=65_536)]
MOST_PATCHES, MOST_BLOCKS, MOST_CLASSES = 65_536, 256, 1_000_000


def check_patches(image_size: int, patch_size: int) -> None:
    """Raises ValueError if images are cut into no patch, or into too many."""
    if not 1 <= (count := (image_size // patch_size) ** 2) <= MOST_PATCHES:
        raise ValueError(
            f"patch_size {patch_size} cuts images of {image_size} pixels into {count:,} patches, "
            f"expected 1 to {MOST_PATCHES:,}"
        )


class Block(Section):
    """One transformer block of an architecture."""

    heads: Channels
    """Attention heads."""
    qkv_dim: Channels
    """Channels of q, k and v together; each has a third, split over the heads."""
    mlp_dim: Channels
    """Hidden channels of the MLP."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Block:
        if self.qkv_dim % (3 * self.heads):
            raise ValueError(f"qkv_dim {self.qkv_dim} is not divisible by 3 x {self.heads} heads")
        return self


class Architecture(Section):
    """One Vision Transformer as a value: hashable, equal when alike, the same after a trip through JSON or YAML.

    A skipped block is `None`, and so has no widths; its position counts, because in a supernet
    each position has weights of its own.
    """

    image_size: Pixels
    """Height and width of the images, in pixels."""
    patch_size: Pixels
    """Height and width of a patch, in pixels."""
    embed_dim: Channels
    """Channels of a token."""
    blocks: Annotated[tuple[Block | None, ...], Field(max_length=MOST_BLOCKS)]
    """The blocks in order; `null` where one is skipped."""

    @model_validator(mode="after")
    def _has_patches(self) -> Architecture:
        check_patches(self.image_size, self.patch_size)
        return self

    @property
    def kept(self) -> list[Block]:
        """The blocks that are not skipped, in order."""
        return [block for block in self.blocks if block is not None]

    @property
    def in_words(self) -> str:
        """The shape in short: `patch 4, width 36, depth 3, heads 2 to 4`."""
        heads = sorted({block.heads for block in self.kept})
        span = " to ".join(dict.fromkeys([str(heads[0]), str(heads[-1])])) if heads else "none"
        return f"patch {self.patch_size}, width {self.embed_dim}, depth {len(self.kept)}, heads {span}"

    @property
    def key(self) -> str:
        """A short name for journals and file names, which YAML never takes for a number; equal ones have equal keys."""
        return "a" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:11]

    def to_yaml(self) -> str:
        """The YAML that `from_yaml` reads back, one line a block."""
        values = self.model_dump()
        blocks = values.pop("blocks")
        lines = [yaml.safe_dump(block, default_flow_style=True, sort_keys=False).split("\n")[0] for block in blocks]
        return yaml.safe_dump(values, sort_keys=False) + "blocks:\n" + "".join(f"- {line}\n" for line in lines)

    @classmethod
    def from_yaml(cls, file: Path | str) -> Architecture:
        """Reads a YAML or JSON file.

        Raises:
            UserError: The file is missing, or says something else than an architecture.
        """
        return parse(cls, read_yaml(file), source=str(file))


class Population(NamedTuple):
    """N architectures as arrays, for costs without a model. A skipped block has zeros."""

    image_size: np.ndarray
    """(N,)"""
    patch_size: np.ndarray
    """(N,)"""
    embed_dim: np.ndarray
    """(N,)"""
    heads: np.ndarray
    """(N, D)"""
    qkv_dim: np.ndarray
    """(N, D)"""
    mlp_dim: np.ndarray
    """(N, D)"""

    @classmethod
    def of(cls, architectures: Sequence[Architecture]) -> Population:
        """The arrays of any architectures, from one space or from several."""
        depth = max((len(a.blocks) for a in architectures), default=0)

        def column(name: str) -> np.ndarray:
            return np.array([getattr(a, name) for a in architectures], dtype=np.int64)

        def table(name: str) -> np.ndarray:
            rows = [[getattr(b, name) if b else 0 for b in a.blocks] for a in architectures]
            return np.array([row + [0] * (depth - len(row)) for row in rows], dtype=np.int64)

        return cls(
            column("image_size"),
            column("patch_size"),
            column("embed_dim"),
            table("heads"),
            table("qkv_dim"),
            table("mlp_dim"),
        )
