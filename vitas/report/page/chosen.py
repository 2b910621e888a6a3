"""The choices of a space on a page: the effect of each on the score, and how often the supernet trained it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vitas.report.numbers import label, ticks
from vitas.report.page.choices import FEW, KINDS
from vitas.report.page.drawing import svg

ROW, WIDTH = 20, 360
LEFT, RIGHT, SHARES = 52, 250, 60
"""Where effects begin and end, and how wide the bar of a choice is that every step trains."""


def section(figures: Mapping[str, Any]) -> str:
    """All of it; empty if nothing is scored or trained yet."""
    effects, trained = figures["effects"], figures["trained"]
    shares = {
        (row["kind"], row["block"], row["value"]): row["share"] for row in (trained["choices"] if trained else ())
    }
    if not effects and not shares:
        return ""
    known = {(row["kind"], row["block"], row["value"]): row for row in effects}
    # Those of a few candidates would make the scale: their whiskers are cut.
    sure = [abs(row["effect"]) for row in effects if not row["block"] and row["candidates"] >= FEW]
    most = 1.25 * max(sure, default=1.0) or 1.0
    every = sorted({*shares, *known}, key=lambda choice: choice[2])
    panels = []
    for kind, name in KINDS.items():
        values = [choice for choice in every if choice[0] == kind and not choice[1]]
        if len(values) > 1:
            panels.append(_forest(name, values, known, shares, most))
    blocks = max((choice[1] for choice in every), default=0)
    maps = [_blocks(name, [choice for choice in every if choice[0] == kind and choice[1]], known, shares, blocks)
            for kind, name in KINDS.items() if any(choice[0] == kind and choice[1] for choice in every)]  # fmt: skip
    notes = []
    if effects:
        notes.append(
            "Dots: mean top-1, in the supernet, of the candidates with this choice, less that of all, in points, with "
            f"its 95 % interval; small ones are of fewer than {FEW} candidates. Candidates descend from each other, "
            "and a budget ties choices together: this is what went along with good scores, not what caused them."
        )
    if trained:
        some, all_of = trained["looked_at"], trained["steps"]
        of = f"all {all_of:,}" if some == all_of else f"{some:,} of the {all_of:,}"
        notes.append(f"Bars: share of the supernet's steps that trained it, of each block on average; by {of} steps.")
    keys = (
        '<div class="legend"><span><i class="box i-good"></i>better than the mean</span>'
        '<span><i class="box i-bad"></i>worse; the paler, the smaller</span></div>'
    )
    by_block = f"<h3>block by block</h3>{keys}<div class='grid2'>{''.join(maps)}</div>" if maps and effects else ""
    return f'<p class="soft">{" ".join(notes)}</p><div class="grid2">{"".join(panels)}</div>{by_block}'


def _forest(
    name: str,
    values: Sequence[tuple[str, int, Any]],
    known: Mapping[Any, Mapping[str, Any]],
    shares: Mapping[Any, float],
    most: float,
) -> str:
    """A row for each value: its effect with the interval, and the share of the steps that trained it."""

    def x(effect: float) -> float:
        return LEFT + (max(-most, min(most, effect)) + most) / (2 * most) * (RIGHT - LEFT)

    top = 22
    bottom = top + ROW * len(values)
    marks = ticks(-most, most, 4)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    parts = [f'<text class="name strong" x="4" y="12">{escape(name)}</text>']
    if known:
        for mark in marks:
            at, sign, kind = f"{x(mark):.1f}", "+" * (mark > 0), "grid" if mark else "zero"
            parts.append(
                f'<line class="{kind}" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>'
                f'<text class="tick" x="{at}" y="{bottom + 13}" text-anchor="middle">{sign}{label(mark, step)}</text>'
            )
    points: list[list[Any]] = []
    for at, choice in enumerate(values):
        y, told = top + ROW * at + ROW / 2, [f"{name} {choice[2]}"]
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{choice[2]}</text>')
        place = (RIGHT + LEFT) / 2
        if row := known.get(choice):
            place = x(row["effect"])
            told.append(_effect(row))
            if row["low"] is not None:
                parts.append(
                    f'<line class="whisker" x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="{y}" y2="{y}"/>'
                )
            parts.append(
                f'<circle class="dot c0" cx="{place:.1f}" cy="{y}" r="{4 if row["candidates"] >= FEW else 2}"/>'
            )
        if choice in shares:
            share = shares[choice]
            told.append(f"in {100 * share:.1f} % of the steps")
            long = share * SHARES
            parts.append(
                f'<rect class="share" x="{RIGHT + 12}" y="{y - 6}" width="{long:.1f}" height="12"/>'
                f'<text class="tick" x="{RIGHT + 16 + long:.1f}" y="{y + 4}">{100 * share:.0f} %</text>'
            )
        points.append([round(place, 1), y, "\n".join(told)])
    return f"<figure>{svg((WIDTH, bottom + 20), ''.join(parts), name, 'forest', points)}</figure>"


def _blocks(
    name: str,
    cells: Sequence[tuple[str, int, Any]],
    known: Mapping[Any, Mapping[str, Any]],
    shares: Mapping[Any, float],
    blocks: int,
) -> str:
    """A cell for each value of each block, coloured by its effect."""
    values = sorted({choice[2] for choice in cells})
    wide, high, left, top = (WIDTH - 56) / blocks, 18, 52, 22
    most = max((abs(known[choice]["effect"]) for choice in cells if choice in known), default=0.0) or 1.0
    parts = [f'<text class="name strong" x="4" y="12">{escape(name)}</text>']
    parts += [f'<text class="tick" x="{left - 8}" y="{top + high * at + 13}" text-anchor="end">{value}</text>'
              for at, value in enumerate(values)]  # fmt: skip
    every = 1 if blocks <= 20 else 4
    below = f'y="{top + high * len(values) + 13}" text-anchor="middle"'
    parts += [
        f'<text class="tick" x="{left + wide * (block - 0.5):.1f}" {below}>{block}</text>'
        for block in range(every, blocks + 1, every)
    ]
    points: list[list[Any]] = []
    for choice in cells:
        x, y = left + wide * (choice[1] - 1), top + high * values.index(choice[2])
        row = known.get(choice)
        kind = "none" if row is None else "good" if row["effect"] >= 0 else "bad"
        opacity = f' fill-opacity="{0.08 + 0.92 * abs(row["effect"]) / most:.2f}"' if row else ""
        parts.append(f'<rect class="cell {kind}" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{high}"{opacity}/>')
        told = [f"{name} {choice[2]} in block {choice[1]}", _effect(row) if row else "no candidate has it"]
        told += [f"in {100 * shares[choice]:.1f} % of the steps"] if choice in shares else []
        points.append([round(x + wide / 2, 1), y + high / 2, "\n".join(told)])
    height = top + high * len(values) + 20
    return f"<figure>{svg((WIDTH, height), ''.join(parts), f'{name} by block', 'blocks', points)}</figure>"


def _effect(row: Mapping[str, Any]) -> str:
    count = row["candidates"]
    text = f"{row['effect']:+.2f} points"
    text += f" ({row['low']:+.2f} to {row['high']:+.2f})" if row["low"] is not None else ""
    return f"{text}, {count:,} candidate{'s' * (count != 1)}"
