"""The figures of a run, or of several, as PNG for papers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitas.files import write_atomically
from vitas.report.page.choices import FEW, KINDS

WIDTH, HEIGHT = 4.2, 3.0
"""Inches of a small plot."""

COLUMNS = 3

COLOURS = {"q": "#6aa5e3", "k": "#4286cf", "v": "#1f62ad", "mlp": "#e39a54", "token": "#dfe4ea"}


def write(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes a PNG for each group of plots there is something to show in; returns the files.

    Args:
        found: `vitas.report.page.figures` of a run, or `vitas.report.page.compare` of several.
        folder: Where to.
    """
    drawn: dict[str, Figure] = {}
    for one in found.get("trainings", []):
        drawn[f"training_{one['stage']}"] = panels(one["panels"], one["x"])
    for search in found.get("searches", []):
        name = search["name"]
        if search["generations"]["panels"]:
            drawn[f"{name}_generations"] = panels(search["generations"]["panels"], "generation")
        for cost in search["costs"]:
            drawn[f"{name}_{cost['name']}"] = candidates(search, cost)
    if found.get("architectures"):
        drawn["architectures"] = architectures(found["architectures"])
    if found.get("effects"):
        drawn["choices"] = choices(found["effects"])
    if found.get("panels"):
        drawn["curves"] = panels(found["panels"], "")
    if found.get("fronts"):
        names = {"name": "top-1 in the supernet", "unit": "%"}
        drawn["fronts"] = panels([front | names | {"x": front["label"]} for front in found["fronts"]], "")
    files = []
    for name, figure in drawn.items():
        png = BytesIO()
        FigureCanvasAgg(figure).print_png(png)
        files.append(folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.png")
        write_atomically(files[-1], png.getvalue())
    return files


def panels(group: Sequence[Mapping[str, Any]], x: str) -> Figure:
    """The panels of `vitas.report.page.curves`, one beside the other; a line has one colour in all of them."""
    names = list(dict.fromkeys(line["name"] for panel in group for line in panel["lines"]))
    figure, every = _grid(len(group))
    for axes, panel in zip(every, group, strict=True):
        for line in panel["lines"]:
            xs, ys = zip(*line["points"], strict=True)
            marker = "o" if len(xs) == 1 else ""
            axes.plot(xs, ys, label=line["name"], color=f"C{names.index(line['name']) % 10}", lw=1.3, marker=marker)
        axes.set_title(panel["name"] + (f", {panel['unit']}" if panel["unit"] else ""), fontsize=9)
        axes.set_xlabel(panel.get("x", x))
        if len(panel["lines"]) > 1:
            axes.legend(fontsize=6.5)
    return figure


def candidates(search: Mapping[str, Any], cost: Mapping[str, Any]) -> Figure:
    """Top-1 of all shown candidates against a cost, with the budget, and the line that no cheaper one is above."""
    figure = Figure(figsize=(6.0, 4.2), dpi=200, layout="constrained")
    axes, name, shown = figure.subplots(), cost["name"], search["shown"]
    for windows in search["windows"].values():
        if name in windows:
            axes.axvspan(*windows[name], color="C0", alpha=0.08, lw=0)
    axes.scatter([one[name] for one in shown], [one["top1"] for one in shown], s=6, alpha=0.4, lw=0, label="scored")
    by_key = {one["key"]: one for one in shown}
    front = [by_key[key] for key in cost["front"] if key in by_key]
    where = "pre" if name == "throughput" else "post"
    axes.step([one[name] for one in front], [one["top1"] for one in front], where=where, color="C1", lw=1.2)
    for keys, colour, size, label in (
        (search["front"], "C1", 22, "the search's front"),
        (search["best"].values(), "C3", 40, "the best"),
    ):
        chosen = [by_key[key] for key in keys if key in by_key]
        axes.scatter([one[name] for one in chosen], [one["top1"] for one in chosen], s=size, color=colour, label=label)
    lowest, highest = min(one[name] for one in shown), max(one[name] for one in shown)
    pad = 0.04 * (highest - lowest) or 1.0
    axes.set_xlim(lowest - pad, highest + pad)
    axes.set_xlabel(cost["label"] + (f", {cost['unit']}" if cost["unit"] else ""))
    axes.set_ylabel(f"top-1 % in the supernet, {search['scored_on']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def architectures(shapes: Sequence[Mapping[str, Any]]) -> Figure:
    """Architectures block by block, each from its patches at the top: a bar for q, k and v, and one for the MLP."""
    deepest = max(len(one["shape"][2]) for one in shapes)
    widest = [max(one["shape"][1], *(max(block[1:]) for block in one["shape"][2] if block)) for one in shapes]
    alike = max(widest) <= 3 * min(widest)
    figure = Figure(figsize=(3.4 * len(shapes), 0.9 + 0.24 * deepest), dpi=200, layout="constrained")
    for axes, one in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        patch, embed, blocks = one["shape"]
        for at, block in enumerate(blocks):
            axes.barh(at, embed, 0.84, color=COLOURS["token"])
            if block is None:
                axes.text(0, at, " skipped", va="center", fontsize=5, color="0.4")
                continue
            heads, qkv, mlp = block
            for part, name in enumerate("qkv"):
                axes.barh([at - 0.2] * heads, qkv / 3 / heads, 0.36, color=COLOURS[name], edgecolor="w", lw=0.3,
                          left=[(part + head / heads) * qkv / 3 for head in range(heads)])  # fmt: skip
            axes.barh(at + 0.2, mlp, 0.36, color=COLOURS["mlp"])
        axes.set_title(f"{one['name']}\npatch {patch}, width {embed}", fontsize=8)
        axes.set_ylim(deepest - 0.5, -0.5)
        axes.set_xlim(0, 1.05 * max(widest) if alike else None)
        axes.set_yticks(range(len(blocks)), [str(at + 1) for at in range(len(blocks))], fontsize=5)
        axes.set_xlabel("channels of q/k/v (cut into heads) and MLP", fontsize=6)
        axes.tick_params(axis="x", labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def choices(effects: Sequence[Mapping[str, Any]]) -> Figure:
    """The marginal effect of each choice, with its 95 % interval."""
    rows = {kind: [row for row in effects if row["kind"] == kind and not row["block"]] for kind in KINDS}
    rows = {kind: each for kind, each in rows.items() if len(each) > 1}
    figure, every = _grid(max(1, len(rows)))
    for axes, (kind, each) in zip(every, rows.items(), strict=False):
        for at, row in enumerate(each):
            low, high = (row[end] if row[end] is not None else row["effect"] for end in ("low", "high"))
            axes.plot([low, high], [at, at], color="C0", lw=1)
            axes.plot(row["effect"], at, "o", color="C0", ms=4)
        sure = [abs(row["effect"]) for row in each if row["candidates"] >= FEW]
        most = 1.6 * max(sure, default=0.0) or None  # intervals of a few candidates are cut
        axes.set_xlim(most and -most, most)
        axes.axvline(0, color="0.5", lw=0.8)
        axes.set_yticks(range(len(each)), [str(row["value"]) for row in each], fontsize=7)
        axes.set_title(KINDS[kind], fontsize=9)
        axes.set_xlabel("points of top-1")
    return figure


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """So many small plots."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), dpi=200, layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in every[count:]:
        axes.set_axis_off()
    for axes in every[:count]:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    return figure, every[:count]
