"""The scores of one supernet on one set of images, slice by slice: all searches of it share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vitas.evolve.store import Line, Store


class Scores:
    """What is known of each candidate on each slice of the images. The main rank's alone.

    Args:
        store: Where the lines of `vitas.evolve.scoring.Scorer.score` are kept.
        slices: First and one past the last image of each slice.
        sides: The sides of the supernet.
    """

    def __init__(self, store: Store, slices: Sequence[tuple[int, int]], sides: Sequence[str]) -> None:
        self.slices, self.sides = slices, sides
        self.batch_size: int | None = None
        """Images of a forward in what is known."""
        self._known: dict[str, dict[int, dict[str, tuple[int, float]]]] = {}
        for line in store.read(self._is_sound):
            self.add(line)

    def add(self, line: Line) -> None:
        """Takes in a line of the store."""
        self.batch_size = line["batch_size"]
        known = self._known.setdefault(line["key"], {})
        for at in range(len(line["hits"][self.sides[0]])):
            found = {side: (line["hits"][side][at], line["loss"][side][at]) for side in self.sides}
            known.setdefault(line["first"] + at, found)

    def missing(self, key: str, count: int) -> list[int]:
        """Of the first `count` slices, those on which a candidate was never scored."""
        return [number for number in range(count) if number not in self._known.get(key, {})]

    def entry(self, key: str, count: int) -> dict[str, Any]:
        """Of a candidate on the first `count` slices: top-1 in percent and loss, means over the sides, and images."""
        known = [self._known[key][number] for number in range(count)]
        images = self.slices[count - 1][1]
        top1 = {side: 100 * sum(part[side][0] for part in known) / images for side in self.sides}
        loss = {side: sum(part[side][1] for part in known) / images for side in self.sides}
        mean = {"top1": sum(top1.values()) / len(top1), "loss": sum(loss.values()) / len(loss), "images": images}
        return mean | (top1 if len(top1) > 1 else {})

    def _is_sound(self, line: Line) -> bool:
        try:
            hits, loss = ([line[name][side] for side in self.sides] for name in ("hits", "loss"))
            sizes = [last - first for first, last in self.slices[line["first"] :]]
            return (
                isinstance(line["key"], str)
                and line["batch_size"] > 0
                and line["first"] >= 0
                and len({len(part) for part in (*hits, *loss)}) == 1
                and 0 < len(hits[0]) <= len(sizes)
                and all(0 <= right <= size for part in hits for right, size in zip(part, sizes, strict=False))
                and all(math.isfinite(nats) for part in loss for nats in part)
            )
        except (KeyError, TypeError, IndexError):
            return False
