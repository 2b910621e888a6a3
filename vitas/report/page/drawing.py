"""Plots as SVG for a page, whose style sheet gives colours, and whose script the numbers under the pointer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from vitas.report.numbers import amount, label, ticks

SMALL, LARGE = (360, 220), (760, 420)
"""Width and height of plots, in units of the page at its natural size."""

COLOURS = 8
"""Classes `c0` ... of the style sheet; a ninth line has the first one's colour again."""

TEXT = 12
"""Height of a letter, in the same units."""


class Plot:
    """Axes, and what is drawn within them. `points` are `[x, y, text]` in the units of the drawing.

    Args:
        x: Least and largest value along the x axis.
        y: Least and largest value along the y axis.
        size: Width and height.
        x_name: Under the x axis.
        y_name: Above the y axis.
        whole: Whether x counts things, so that ticks are whole numbers.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        size: tuple[int, int] = SMALL,
        x_name: str = "",
        y_name: str = "",
        whole: bool = False,
    ) -> None:
        self.x_range, self.y_range, self.size = _wide(x), _wide(y), size
        self.x_name, self.y_name, self.whole = x_name, y_name, whole
        self.left, self.right, self.top, self.bottom = (52, 14, 22, 40) if size[0] <= SMALL[0] else (64, 14, 34, 58)
        self.parts: list[str] = []
        self.points: list[list[Any]] = []

    def x(self, value: float) -> float:
        """Where a value lies."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.size[0] - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Where a value lies."""
        low, high = self.y_range
        return round(self.size[1] - self.bottom - (value - low) / (high - low) * (
            self.size[1] - self.top - self.bottom), 1)  # fmt: skip

    def add(self, part: str) -> None:
        """Draws more."""
        self.parts.append(part)

    def line(self, points: Sequence[Sequence[float]], kind: str, told: Callable[[float, float], str]) -> None:
        """A line through `points`, whose `told` is shown under the pointer; a single one is a dot."""
        places = [(self.x(x), self.y(y)) for x, y in points]
        path = " ".join(f"{x:g},{y:g}" for x, y in places)
        if len(places) == 1:
            self.add(f'<circle class="dot {kind}" cx="{places[0][0]:g}" cy="{places[0][1]:g}" r="3.5"/>')
        else:
            self.add(f'<polyline class="line {kind}" points="{path}"/>')
        self.points += [
            [*place, told(*point)] for place, point in zip(places, [(x, y) for x, y in points], strict=True)
        ]

    def x_axis(self) -> str:
        """The ticks of the x axis and its name."""
        bottom, below = self.size[1] - self.bottom, 15 if self.size[0] <= SMALL[0] else 22
        marks = ticks(*self.x_range, most=4 if self.size[0] <= SMALL[0] else 7)
        marks = [mark for mark in marks if mark == int(mark)] if self.whole else marks
        step = marks[1] - marks[0] if len(marks) > 1 else 1
        drawn = [
            f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{self.top}" y2="{bottom}"/>'
            f'<text class="tick" x="{x:g}" y="{bottom + below}" text-anchor="middle">{label(mark, step)}</text>'
            for mark, x in ((mark, self.x(mark)) for mark in marks)
        ]
        name = f'<text class="name" x="{self.size[0] - self.right}" y="{self.size[1] - 6}" text-anchor="end">'
        return "".join(drawn) + f"{name}{escape(self.x_name)}</text>"

    def y_axis(self) -> str:
        """The ticks of the y axis and its name."""
        marks = ticks(*self.y_range, most=5)
        step = marks[1] - marks[0] if len(marks) > 1 else 1
        drawn = [
            f'<line class="grid" x1="{self.left}" x2="{self.size[0] - self.right}" y1="{self.y(mark):g}" '
            f'y2="{self.y(mark):g}"/><text class="tick" x="{self.left - 6}" y="{self.y(mark) + 4:g}" '
            f'text-anchor="end">{label(mark, step)}</text>'
            for mark in marks
        ]
        return "".join(drawn) + f'<text class="name strong" x="4" y="{TEXT}">{escape(self.y_name)}</text>'

    def svg(self, title: str, kind: str = "") -> str:
        """The whole drawing; `title` is read to those who do not see it."""
        axes = f'<g class="y">{self.y_axis()}</g><g class="x">{self.x_axis()}</g>'
        return svg(self.size, axes + "".join(self.parts), title, kind, self.points)


def svg(size: tuple[float, float], content: str, title: str, kind: str = "", points: Sequence[Any] = ()) -> str:
    """A drawing of a size, with what is told under the pointer."""
    told = f" data-points='{_attribute(points)}'" if points else ""
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {size[0]:g} {size[1]:g}" width="{size[0]:g}" height="{size[1]:g}" '
        f'role="img" aria-label="{escape(title)}"{told}>{content}</svg>'
    )


def legend(colours: Mapping[str, int]) -> str:
    """The names of lines, each in its colour."""
    keys = (f'<span><i class="c{at % COLOURS}"></i>{escape(name)}</span>' for name, at in colours.items())
    return f'<div class="legend">{"".join(keys)}</div>'


def panel(panel: Mapping[str, Any], x: str, colours: Mapping[str, int], *, keys: bool = True) -> str:
    """A plot of a panel of `vitas.report.page.curves`, with its legend; `colours` are those of lines, by name."""
    lines = panel["lines"]
    every = [point for line in lines for point in line["points"]]
    xs, ys = [point[0] for point in every], [point[1] for point in every]
    unit = f", {panel['unit']}" if panel["unit"] else ""
    low, high = min(ys), max(ys)
    pad = 0.04 * (high - low)
    at_zero = 0 <= low < 0.25 * high  # a scale that nearly begins at zero begins there
    begins = 0.0 if x == "epoch" else min(xs)
    drawn = Plot((begins, max(xs)), (0.0 if at_zero else low - pad, high + pad),
                 x_name=x, y_name=panel["name"] + unit, whole=x == "generation")  # fmt: skip
    for line in lines:
        name = f"{line['name']}: " if len(lines) > 1 else ""
        kind = f"c{colours[line['name']] % COLOURS}"
        drawn.line(line["points"], kind, lambda a, b, name=name: f"{name}{number(b)}\n{x} {a:.4g}")
    below = legend({line["name"]: colours[line["name"]] for line in lines}) if keys and len(lines) > 1 else ""
    return f"<figure>{drawn.svg(panel['name'])}{below}</figure>"


def number(value: float) -> str:
    """A figure under the pointer."""
    return amount(value) if abs(value) >= 1e4 else f"{value:.4g}"


BLOCK, BAR = 20, 7
"""Height of a block's row and of each of its two bars."""


def architecture(shape: Sequence[Any], scale: float, width: float) -> str:
    """An architecture block by block: behind each the width of a token, on it q, k and v cut into heads, and the MLP.

    Args:
        shape: `[patch, width, [[heads, q/k/v, MLP] or None, ...]]`.
        scale: Units of a channel.
        width: Of the drawing.
    """
    patch, embed, blocks = shape
    left, parts = 26, []
    token = embed * scale
    beside = f'<text class="tick" x="{left + token + 6:.1f}"'
    parts.append(
        f'<rect class="stem" x="{left}" y="2" width="{token:.1f}" height="12"/>'
        f'{beside} y="12">patch {patch}, width {embed}</text>'
    )
    for at, block in enumerate(blocks):
        y = 20 + at * BLOCK
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 12}" text-anchor="end">{at + 1}</text>')
        if block is None:
            parts.append(
                f'<line class="skipped" x1="{left}" x2="{left + token:.1f}" y1="{y + 8}" y2="{y + 8}"/>'
                f'{beside} y="{y + 12}">skipped</text>'
            )
            continue
        heads, qkv, mlp = block
        third = qkv * scale / 3
        parts.append(f'<rect class="width" x="{left}" y="{y}" width="{token:.1f}" height="{BLOCK - 3}"/>')
        parts += [f'<rect class="{name}" x="{left + at * third:.1f}" y="{y + 1}" width="{third:.1f}" height="{BAR}"/>'
                  for at, name in enumerate("qkv")]  # fmt: skip
        cuts = "".join(f"M{left + third * cut / heads:.1f} {y + 1}v{BAR}" for cut in range(1, 3 * heads))
        parts.append(f'<path class="cut" d="{cuts}"/>')
        parts.append(f'<rect class="mlp" x="{left}" y="{y + 2 + BAR}" width="{mlp * scale:.1f}" height="{BAR}"/>')
        end = left + max(embed, qkv, mlp) * scale + 6
        parts.append(f'<text class="tick" x="{end:.1f}" y="{y + 12}">{heads} h · {qkv} · {mlp}</text>')
    return svg((width, 24 + BLOCK * len(blocks)), "".join(parts), "architecture", "shape")


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    """A span that has a width."""
    low, high = span
    if high > low:
        return low, high
    pad = abs(low) * 0.05 or 1.0
    return low - pad, high + pad


def _attribute(points: Sequence[Any]) -> str:
    return json.dumps(points, separators=(",", ":")).replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;")
