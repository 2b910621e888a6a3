"""Several runs side by side, as plain data: what they differ in, their curves, fronts, and means over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitas.report.numbers import amount, is_number
from vitas.report.page import searched
from vitas.report.page.figures import figures
from vitas.report.page.folder import Folder

NOT_COMPARED = {"name", "output", "seed", "tracking", "stages", "extends"}
"""Sections and settings that do not make two runs different: those of one group differ in these alone."""

FIGURES = {
    "found": ("top-1 % of the found", 2),
    "uniform": ("of the uniform ViT", 2),
    "score": ("in the supernet", 2),
    "macs": ("MACs", None),
    "tau": ("tau", 2),
    "hours": ("device-hours", 1),
}
"""What is compared, what it is called in a table, and its decimals; None for counts, which are shortened."""


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The figures of several runs (`vitas.report.page.figures`), and what they are together.

    Raises:
        UserError: One of the folders is missing.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    runs = [figures(folder) for folder in folders]
    settings = [_flat(Folder(folder).values) for folder in folders]
    keys = sorted({key for each in settings for key in each if key.partition(".")[0] not in NOT_COMPARED})
    differ = [key for key in keys if len({json.dumps(each.get(key), default=str) for each in settings}) > 1]
    names = [run["name"] for run in runs]
    rows, groups_of = [], {}
    for run, values, folder in zip(runs, settings, folders, strict=True):
        named = run["name"] if names.count(run["name"]) == 1 else str(folder)
        group = ", ".join(f"{key}={_short(values.get(key))}" for key in differ) if values else named
        whole = json.dumps([values.get(key) for key in differ] if values else named, default=str)
        group = groups_of.setdefault(whole, f"{group} ({named})" if group in groups_of.values() else group or "alike")
        rows.append({"run": named, "group": group, "seed": values.get("seed")} | _outcome(run))
    groups = {name: [row for row in rows if row["group"] == name] for name in dict.fromkeys(r["group"] for r in rows)}
    return {
        "differ": differ,
        "runs": rows,
        "groups": [{"group": name, "runs": len(each)} | _together(each) for name, each in groups.items()],
        "panels": _panels(runs, [row["run"] for row in rows]),
        "fronts": _fronts(runs, [row["run"] for row in rows]),
        "told": [f"{row['run']}: {line}" for run, row in zip(runs, rows, strict=True) for line in run["told"]],
    }


def table(found: Mapping[str, Any]) -> str:
    """The comparison as text: a line for each group, with the mean and the standard deviation over its runs."""
    names = [name for name in FIGURES if any(name in group for group in found["groups"])]
    head = ["", "runs", *(FIGURES[name][0] for name in names)]
    lines = [
        [group["group"], str(group["runs"]), *(spread(group, name) for name in names)] for group in found["groups"]
    ]
    widths = [max(len(line[at]) for line in [head, *lines]) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not at else cell.rjust(width)
                  for at, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in [head, *lines]
    )  # fmt: skip


def spread(group: Mapping[str, Any], name: str) -> str:
    """Mean and standard deviation of a figure: `75.31 ± 0.20`; of one run the figure alone."""
    if name not in group:
        return "-"
    deviation, text = group[name]["deviation"], shown(name, group[name]["mean"])
    return text if deviation is None else f"{text} ± {shown(name, deviation)}"


def shown(name: str, value: float) -> str:
    """A figure as text."""
    decimals = FIGURES[name][1]
    return amount(value) if decimals is None else f"{value:.{decimals}f}"


def _outcome(run: Mapping[str, Any]) -> dict[str, float]:
    """What came out of a run, as far as it is there; of several budgets for the one that is trained, or the first."""
    final = run["final"]
    own = next((row for row in final if not row["name"].startswith("uniform ViT")), None)
    other = next((row for row in final if row["name"].startswith("uniform ViT")), None)
    found: dict[str, Any] = {}
    if own:
        found |= {"found": own["top1"], "macs": own.get("macs")}
    if other:
        found["uniform"] = other["top1"]
    if run["searches"]:
        search = run["searches"][0]
        named = [own["name"]] if own and own["name"] in search["best"] else searched.best_names(search)
        key = next((search["best"][name] for name in named if name in search["best"]), None)
        best = next((one for one in search["shown"] if one["key"] == key), None)
        best = best or max(search["shown"], key=lambda one: one["top1"])
        trained = own and next((one["shape"] for one in run["architectures"] if one["name"] == _folder(own)), None)
        if trained in (None, best["shape"]):  # else a search came after the training
            found = {"score": best["top1"], "macs": best["macs"]} | found
    if run["rankings"]:
        found["tau"] = run["rankings"][0]["rankings"]["supernet"]["tau"]
    hours = sum(row.get("device_hours", 0.0) for row in run["time"])
    found |= {"hours": hours} if hours else {}
    return {name: value for name, value in found.items() if is_number(value)}


def _together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for name in FIGURES:
        values = [row[name] for row in rows if name in row]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "deviation": deviation, "runs": len(values)}
    return found


def _panels(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """A panel for each curve that several have: of a training its loss and top-1, of a search the best so far."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run, name in zip(runs, names, strict=True):
        groups = [(one["stage"], one) for one in run["trainings"]]
        groups += [(search["name"], search["generations"]) for search in run["searches"]]
        for stage, group in groups:
            for panel in group["panels"]:
                if panel["name"].split(" ")[0] not in ("loss", "top-1"):
                    continue
                # Of a training's loss that in training, else what is validated last: the average, or random subnets.
                first = panel["lines"][0]
                line = first if first["name"].startswith(("in training", "best so far")) else panel["lines"][-1]
                titled = f"{stage}: {panel['name']}, {line['name']}"
                place = found.setdefault((stage, panel["name"]), panel | {"name": titled, "x": group["x"], "lines": []})
                place["lines"].append({"name": name, "points": line["points"]})
    return list(found.values())


def _fronts(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each cost the fronts of all first searches."""
    found: dict[str, dict[str, Any]] = {}
    for run, name in zip(runs, names, strict=True):
        for search in run["searches"][:1]:
            by_key = {one["key"]: one for one in search["shown"]}
            for cost in search["costs"]:
                place = found.setdefault(cost["name"], {"cost": cost["name"], "label": cost["label"], "lines": []})
                points = [[by_key[key][cost["name"]], by_key[key]["top1"]] for key in cost["front"] if key in by_key]
                if points:
                    place["lines"].append({"name": name, "points": points})
    return [front for front in found.values() if front["lines"]]


def _folder(row: Mapping[str, Any]) -> str:
    """What `figures` calls the architecture of a row of the final table, by its folder."""
    return row["name"].removesuffix(" before").replace(":", "-")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-27:]}"  # paths differ at their ends


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {key: value for name, part in values.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
