"""What changes over time, as plain data: the curves of every training, and the generations of a search.

A panel is `{"name", "unit", "lines": [{"name", "points": [[x, y], ...]}]}`; a group of panels shares its x.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vitas.report import names
from vitas.report.numbers import is_number

MOST_POINTS = 300
"""Of a curve; of more, neighbours are averaged."""

FIGURES = {
    names.LOSS: ("loss", "nats"),
    names.TOP1: ("top-1", "%"),
    names.TOP5: ("top-5", "%"),
    names.LR: ("learning rate", ""),
    names.IMAGES_PER_SECOND: ("images/s", ""),
    names.GRAD_NORM: ("gradient norm", ""),
    names.MFU: ("share of the device's peak", ""),
    names.LEFT_OUT: ("steps left out", ""),
}
"""What a figure of a training is called and its unit, by its name in `metrics.jsonl`, in the order they are shown.
Other ones follow by their names."""

IMAGES = (f"{names.HOLDOUT}_", f"{names.TEST}_")
"""What the name of a validation's figure begins with."""

UNTOLD = {names.STAGE, names.STEP, names.EPOCH, names.MODEL, names.SECONDS}

Panel = dict[str, Any]


def trainings(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each training its `stage`, the `epoch` and `step` it has come to, and its `panels` over epochs."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in metrics:
        if is_number(line.get("epoch")):
            stages.setdefault(line["stage"], []).append(line)
    return [
        {
            "stage": stage,
            "x": "epoch",
            "epoch": max(line["epoch"] for line in lines),
            "step": max(line["step"] for line in lines),
            "panels": _panels(lines),
        }
        for stage, lines in stages.items()
    ]


def _panels(lines: list[dict[str, Any]]) -> list[Panel]:
    found: dict[str, dict[str, dict[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name in UNTOLD or not is_number(value):
                continue
            figure = name
            for images in IMAGES:
                figure = figure.removeprefix(images)
            validated = [part for part in (name.removesuffix(figure).strip("_"), line.get("model")) if part]
            curve = "in training" if not validated else ": ".join(map(str, validated))
            found.setdefault(figure, {}).setdefault(curve, {})[line["epoch"]] = value
    order = [*FIGURES, *found]
    return [
        {
            "name": FIGURES.get(figure, (figure, ""))[0],
            "unit": FIGURES.get(figure, (figure, ""))[1],
            "lines": [{"name": curve, "points": thinned(sorted(points.items()))} for curve, points in curves.items()],
        }
        for figure, curves in sorted(found.items(), key=lambda one: order.index(one[0]))
    ]


def thinned(points: Sequence[Sequence[float]], most: int = MOST_POINTS) -> list[list[float]]:
    """At most so many points: the means of neighbours; the last one stays."""
    if len(points) <= most:
        return [list(point) for point in points]
    size = -(-(len(points) - 1) // (most - 1))
    parts = [points[at : at + size] for at in range(0, len(points) - 1, size)]
    means = [[statistics.fmean(values) for values in zip(*part, strict=True)] for part in parts]
    return [*means, list(points[-1])]


def generations(
    candidates: Sequence[dict[str, Any]], inside: dict[str, set[str]], quality: str, scored_on: str
) -> dict[str, Any]:
    """Best so far and median of each generation, over generations.

    Args:
        candidates: All, in their order.
        inside: For each budget the keys of those in it that were scored on all images.
        quality: What decides which is the best: `top1`, or `loss`, or another of which less is better.
        scored_on: On which images, in words.
    """
    numbers: dict[int, list[dict[str, Any]]] = {}
    for entry in candidates:
        if is_number(entry.get("generation")):
            numbers.setdefault(int(entry["generation"]), []).append(entry)
    better = (lambda new, old: new > old) if quality == "top1" else (lambda new, old: new < old)
    best: dict[str, dict[str, Any]] = {}
    shown = dict.fromkeys(["top1", quality])
    lines: dict[str, dict[str, list[list[float]]]] = {figure: {} for figure in shown}
    share: list[list[float]] = []
    for number, generation in sorted(numbers.items()):
        scored = [entry for entry in generation if any(entry["key"] in keys for keys in inside.values())]
        for name, keys in inside.items():
            for entry in generation:
                if entry["key"] in keys and (name not in best or better(entry[quality], best[name][quality])):
                    best[name] = entry
            if name in best:
                label = "best so far" + " by the loss" * (quality != "top1") + (f", {name}" if name else "")
                for figure in shown:
                    lines[figure].setdefault(label, []).append([number, best[name][figure]])
        if scored:
            for figure in shown:
                median = statistics.median(entry[figure] for entry in scored)
                lines[figure].setdefault("median of the generation", []).append([number, median])
        share.append([number, 100 * len(scored) / len(generation)])
    panels = [
        {
            "name": f"{FIGURES.get(figure, (figure, ''))[0]} {scored_on}",
            "unit": FIGURES.get(figure, ("", "nats"))[1],
            "lines": [{"name": name, "points": thinned(points)} for name, points in curves.items()],
        }
        for figure, curves in lines.items()
        if curves
    ]
    if any(part < 100 for _, part in share):
        panels.append(
            {"name": "scored on all images, and in the budget", "unit": "%",
             "lines": [{"name": "share of the generation", "points": thinned(share)}]}
        )  # fmt: skip
    return {"x": "generation", "count": max(numbers, default=0), "panels": panels}
