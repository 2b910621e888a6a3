"""Scatters of a page: accuracy against a cost that the reader picks, and the supernet's ranking against trainings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from vitas.report.numbers import amount
from vitas.report.page.drawing import LARGE, Plot


def section(search: Mapping[str, Any], at: int) -> str:
    """All candidates of a search, with an axis for each cost; the script changes from one to the other."""
    shown, costs = search["shown"], search["costs"]
    top1 = [one["top1"] for one in shown]
    place = {one["key"]: number for number, one in enumerate(shown)}
    axes, first = {}, None
    for cost in costs:
        drawn, axis = _axis(search, cost, top1, place)
        axes[cost["name"]] = axis
        first = first or drawn
    if first is None:
        return ""
    best, front = set(search["best"].values()), set(search["front"])
    kinds = ["best" if one["key"] in best else "front" if one["key"] in front else "some" for one in shown]
    ys = [first.y(value) for value in top1]
    name = costs[0]["name"]
    order = sorted(range(len(shown)), key=lambda number: ("some", "front", "best").index(kinds[number]))
    radius = {"some": 3 if len(shown) < 1000 else 2.2, "front": 4, "best": 6}
    dots = "".join(
        f'<circle class="{kinds[number]}" cx="{axes[name]["x"][number]:g}" cy="{ys[number]:g}" '
        f'r="{radius[kinds[number]]}" data-at="{number}"/>'
        for number in order
    )
    first.add(f'<g class="bands">{axes[name]["bands"]}</g><path class="pareto" d="{axes[name]["pareto"]}"/>{dots}')
    data = {"axes": axes, "y": ys, "shown": shown, "costs": [[cost["name"], cost["label"]] for cost in costs]}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    inputs = "".join(
        f'<label><input type="radio" name="cost{at}" value="{cost["name"]}"{" checked" * (cost["name"] == name)}> '
        f"{escape(cost['label'])}</label>"
        for cost in costs
    )
    of = f"{len(shown):,} of {search['scored']:,}" if len(shown) < search["scored"] else f"{search['scored']:,}"
    keys = [("some", f"{of} scored candidates"), ("front", "the search's front"), ("best", "the best")]
    keys += [("shade", "budget")] if any(axis["bands"] for axis in axes.values()) else []
    legend = "".join(f'<span><i class="box i-{kind}"></i>{escape(words)}</span>' for kind, words in keys)
    return (
        f'<div class="search"><div class="pick">{inputs}</div>'
        f"<figure>{first.svg('top-1 against a cost', 'large candidates')}</figure>"
        f'<div class="legend">{legend}<span><i class="i-front"></i>no cheaper one is as good</span></div>'
        f'<div class="pinned soft">Under the pointer: a candidate; a click keeps it here.</div>'
        f'<script type="application/json">{text}</script></div>'
    )


def _axis(
    search: Mapping[str, Any], cost: Mapping[str, Any], top1: list[float], place: Mapping[str, int]
) -> tuple[Plot, dict[str, Any]]:
    """A plot with this cost along x; and what the script needs to change to it."""
    name = cost["name"]
    values = [one[name] for one in search["shown"]]
    low, high = min(values), max(values)
    limits = [limit for windows in search["windows"].values() for limit in windows.get(name, ()) if limit <= 2 * high]
    low, high = min([low, *limits]), max([high, *limits])
    pad, rise = 0.03 * (high - low), 0.04 * (max(top1) - min(top1))
    unit = f", {cost['unit']}" if cost["unit"] else ""
    drawn = Plot((low - pad, high + pad), (min(top1) - rise, max(top1) + rise), size=LARGE,
                 x_name=cost["label"] + unit, y_name=f"top-1 % in the supernet, {search['scored_on']}")  # fmt: skip
    bands = []
    for budget, windows in search["windows"].items():
        if name in windows:
            edges = [drawn.x(min(max(limit, drawn.x_range[0]), drawn.x_range[1])) for limit in windows[name]]
            bands.append(
                f'<rect class="band" x="{edges[0]:g}" y="{drawn.top}" width="{max(edges[1] - edges[0], 1):g}" '
                f'height="{drawn.size[1] - drawn.top - drawn.bottom}"/>'
                + (
                    f'<text class="tick" x="{edges[0] + 4:g}" y="{drawn.top + 14}">{escape(budget)}</text>'
                    * bool(budget)
                )
            )
    steps = [(drawn.x(values[place[key]]), drawn.y(top1[place[key]])) for key in cost["front"] if key in place]
    path = "".join(
        f"M{x:g} {y:g}" if not at else f"H{x:g}V{y:g}" if name != "throughput" else f"V{y:g}H{x:g}"
        for at, (x, y) in enumerate(steps)
    )
    places = [drawn.x(value) for value in values]
    return drawn, {"x": places, "axis": drawn.x_axis(), "bands": "".join(bands), "pareto": path}


def ranking(table: Mapping[str, Any]) -> str:
    """A table of stage `rank`: what the supernet says of each architecture, and what training it alone gave."""
    rows = table["architectures"]
    xs = [row["supernet_top1"] for row in rows]
    seeds = [row["top1"] for row in rows]
    every = [value for values in seeds for value in values]
    pad, rise = 0.05 * (max(xs) - min(xs)), 0.05 * (max(every) - min(every))
    drawn = Plot((min(xs) - pad, max(xs) + pad), (min(every) - rise, max(every) + rise), size=(360, 270),
                 x_name="top-1 % in the supernet, on the hold-out",
                 y_name=f"top-1 % trained alone, {len(seeds[0])} seed(s)")  # fmt: skip
    for row, x, values in zip(rows, xs, seeds, strict=True):
        mean = sum(values) / len(values)
        at, worst, best = drawn.x(x), drawn.y(min(values)), drawn.y(max(values))
        drawn.add(
            f'<line class="whisker" x1="{at:g}" x2="{at:g}" y1="{worst:g}" y2="{best:g}"/>'
            f'<circle class="dot c0" cx="{at:g}" cy="{drawn.y(mean):g}" r="4"/>'
        )
        told = f"{row['key']}\n{x:.2f} % in the supernet\n{mean:.2f} % alone\n{amount(row['macs'])} multiply-adds"
        drawn.points.append([at, drawn.y(mean), told])
    found = table["rankings"]["supernet"]
    low, high = found["tau_interval"]
    name = f"budget {escape(str(table['budget']))}: " if table.get("budget") else ""
    ranks = ""
    for by, row in table["rankings"].items():
        wide = f"{row['tau_interval'][0]:.2f} to {row['tau_interval'][1]:.2f}"
        cells = [f"{row['tau']:.2f}", wide, f"{row['rho']:.2f}", f"{row['regret']:.2f}"]
        ranks += f"<tr><td>{escape(by.replace('_', ', by '))}</td><td>{'</td><td>'.join(cells)}</td></tr>"
    return (
        f"<p>{name}Kendall's tau {found['tau']:.2f}, with 95 % confidence {low:.2f} to {high:.2f}: "
        f"{escape(str(table.get('verdict', '')))}</p><div class='grid2'><figure>{drawn.svg('ranking')}</figure>"
        '<div class="scroll"><table><tr><th>ranked by</th><th>tau</th><th>95 %</th><th>rho</th><th>regret</th></tr>'
        f"{ranks}</table></div></div>"
    )
