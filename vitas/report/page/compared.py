"""Several runs as one page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from vitas.report.page import drawing
from vitas.report.page.compare import FIGURES, shown, spread
from vitas.report.page.page import document, table


def page(found: Mapping[str, Any]) -> str:
    """The page of a comparison (`vitas.report.page.compare`). A group has a colour; its runs share it."""
    groups = {group["group"]: at for at, group in enumerate(found["groups"])}
    colours = {row["run"]: groups[row["group"]] for row in found["runs"]}
    names = [name for name in FIGURES if any(name in group for group in found["groups"])]
    titles = [FIGURES[name][0] for name in names]
    rows = [[group["group"], str(group["runs"]), *(spread(group, name) for name in names)] for group in found["groups"]]
    means = table(["", "runs", *titles], rows)
    each = [
        [row["run"], row["group"], str(row["seed"]),
         *(shown(name, row[name]) if name in row else "-" for name in names)]
        for row in found["runs"]
    ]  # fmt: skip
    runs = table(["run", "group", "seed", *titles], each, ["group"])
    curves = "".join(drawing.panel(panel, panel["x"], colours, keys=False) for panel in found["panels"])
    fronts = "".join(_front(front, colours) for front in found["fronts"])
    keys = drawing.legend(groups)
    told = "".join(f"<li>{escape(line)}</li>" for line in found["told"])
    differ = ", ".join(found["differ"]) or "nothing but seed and name"
    return document(
        "runs compared · vitas",
        f"<h1>{len(found['runs'])} runs</h1><small>they differ in {escape(differ)}</small>"
        f"<h2>Means</h2>{means}<small>mean ± standard deviation over the runs of a group</small>"
        f"<h2>Runs</h2>{runs}"
        + (f'<h2>Fronts</h2>{keys}<div class="grid2">{fronts}</div>' if fronts else "")
        + (f'<h2>Curves</h2>{keys}<div class="grid2">{curves}</div>' if curves else "")
        + (f'<section class="told"><h2>What could not be read</h2><ul>{told}</ul></section>' if told else ""),
    )


def _front(front: Mapping[str, Any], colours: Mapping[str, int]) -> str:
    panel = {"name": "top-1 in the supernet", "unit": "%", "lines": front["lines"]}
    return drawing.panel(panel, front["label"], colours, keys=False)
