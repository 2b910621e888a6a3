"""Figures as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from vitas.report import tracking
from vitas.spaces.architecture import Architecture
from vitas.spaces.cost import COUNTED, MEASURED

MOST_ROWS = 20

HEADINGS = {
    "flops": "FLOPs",
    "macs": "MACs",
    "params": "params",
    "throughput": "images/s",
    "latency": "ms",
    "memory": "MB",
}


RANKINGS = {
    "supernet": "supernet, by top-1",
    "supernet_loss": "supernet, by loss",
    "supernet_smoothed": "supernet, loss smoothed",
    "macs": "multiply-adds",
    "params": "parameters",
    "dss": "DSS (nothing trained)",
}


def table(rows: dict[str, dict[str, Any]], images: int) -> str:
    """The final figures as text, a line for each model; below them what shape each has."""
    width = max(12, *(len(name) + 1 for name in rows))
    lines = [f"{'':<{width}}{'top-1 %':>9}{'top-5 %':>9}{'MACs':>16}{'params':>13}{'images/s':>10}"]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}{row[tracking.TOP1]:>9.2f}{row[tracking.TOP5]:>9.2f}{row['macs']:>16,}"
                     f"{row['params']:>13,}{row[tracking.THROUGHPUT]:>10.0f}")  # fmt: skip
    lines += [f"{name}: {row['shape']}" for name, row in rows.items()]
    return "\n".join([*lines, f"on {images} test images"])


def training_table(stage: str, lines: Sequence[dict[str, Any]]) -> str:
    """What a training has come to, as text: its last figures, and those of its last validation."""
    of_models = {line[tracking.MODEL]: line for line in lines if tracking.MODEL in line}
    *_, last = [{}, *(line for line in lines if tracking.LOSS in line)]
    columns = {
        "steps": (tracking.STEP, ",d"), "epochs": (tracking.EPOCH, ".1f"), "loss": (tracking.LOSS, ".4f"),
        "images/s": (tracking.IMAGES_PER_SECOND, ",.0f"), "left out": (tracking.LEFT_OUT, ",d"),
    }  # fmt: skip
    shown = {head: format(last[name], how) for head, (name, how) in columns.items() if name in last}
    width = max(16, *(len(name) + 2 for name in (stage, *of_models)))
    text = [f"{stage:<{width}}" + "".join(f"{head:>10}" for head in shown)]
    text.append(f"{'trained':<{width}}" + "".join(f"{value:>10}" for value in shown.values()))
    if of_models:
        (images,) = {name for line in of_models.values() for name in (tracking.HOLDOUT, tracking.TEST)
                     if f"{name}_{tracking.TOP1}" in line}  # fmt: skip
        text.append(f"{'on the ' + images:<{width}}{'top-1 %':>10}{'top-5 %':>10}{'loss':>10}")
        for model, line in of_models.items():
            top1, top5, loss = (line[f"{images}_{name}"] for name in (tracking.TOP1, tracking.TOP5, tracking.LOSS))
            text.append(f"{model:<{width}}{top1:>10.2f}{top5:>10.2f}{loss:>10.4f}")
    return "\n".join(text)


def time_table(times: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> str:
    """How long the stages of a run took, of all its starts, as text, and for how many device-hours.

    `times` are lines of `times.json`: see `vitas.runs.reporting`.
    """
    rows = {stage: [one for one in times if one["stage"] == stage] for stage in stages}
    rows["all"] = [one for each in rows.values() for one in each]
    lines = [f"{'':<16}{'time':>10}{'device-hours':>14}"]
    for name, each in rows.items():
        seconds = sum(one["seconds"] for one in each)
        of_devices = sum(one["seconds"] * one["devices"] for one in each)
        lines.append(f"{name:<16}{tqdm.format_interval(seconds):>10}{of_devices / 3600:>14.3f}")
    return "\n".join(lines)


def front_table(front: Sequence[dict[str, Any]], *, images: int, loss: bool = False) -> str:
    """The front of a search as text, a line for each architecture, numbered as in `retrain.architecture=front:N`.

    The best of each budget are marked with its name. The loss is shown if it is wanted, a corrected one if there is.
    """
    costs = [*COUNTED, *(name for name in MEASURED if name in front[0])]
    corrected = "corrected" in front[0]
    lines = [
        f"{'front':<7}{'top-1 %':>8}"
        + f"{'loss':>8}" * loss
        + f"{'corrected':>11}" * corrected
        + "".join(f"{HEADINGS[name]:>15}" for name in costs)
        + "  shape, key"
    ]
    for number, entry in enumerate(front, 1):
        first = entry.get("best_of", ["best"] if number == 1 else [])
        shape = Architecture.model_validate(entry["architecture"]).in_words
        line = f"{number:<7}{entry['top1']:>8.2f}" + (f"{entry['loss']:>8.4f}" if loss else "")
        line += f"{entry['corrected']:>11.4f}" if corrected else ""
        line += "".join(f"{_shown(name, entry[name]):>15}" for name in costs)
        if number <= MOST_ROWS or first:
            lines.append(f"{line}  {shape}, {entry['key']}" + "".join(f" <- {name}" for name in first))
    if len(front) > MOST_ROWS:
        lines.append(f"... {len(front)} in all, in front.json")
    return "\n".join([*lines, f"scored in the supernet, on {images:,} images"])


def standings_table(standings: Sequence[dict[str, Any]], title: str) -> str:
    """A tournament as text, a line for each architecture, the winner first: its losses after each round."""
    rounds = max(len(one["rounds"]) for one in standings)
    played = next(one["rounds"] for one in standings if len(one["rounds"]) == rounds)
    after = "".join(f"{'after ' + format(each['epochs'], '.3g'):>12}" for each in played)
    lines = [f"{title}: held-out loss after so many epochs, the better half stays", f"{'':<7}{after}"]
    for number, one in enumerate(standings, 1):
        losses = "".join(f"{each['loss']:>12.4f}" for each in one["rounds"])
        lines.append(f"{number:<7}{losses:<{12 * rounds}}  {one['shape']}, {one['key']}")
    return "\n".join(lines)


def ranking_table(found: dict[str, Any]) -> str:
    """One budget's table of stage `rank` as text, a line for each way to rank, and what follows from it."""
    rows = found["architectures"]
    named = f" of budget {found['budget']}" if found["budget"] else ""
    lines = [f"{'ranked by':<24}{'tau':>6}{'95 %':>16}{'rho':>8}{'95 %':>16}{'regret':>9}"]
    for name, row in found["rankings"].items():
        tau, rho = (f"{row[part][0]:.2f} to {row[part][1]:.2f}" for part in ("tau_interval", "rho_interval"))
        lines.append(f"{RANKINGS[name]:<24}{row['tau']:>6.2f}{tau:>16}{row['rho']:>8.2f}{rho:>16}{row['regret']:>9.2f}")
    seeds = len(rows[0]["top1"])
    lines.append(
        f"against the top-1 of {len(rows)} architectures{named}, each trained alone with {seeds} seed(s); "
        "regret in points of it"
    )
    if found["ceiling"] is None:
        lines.append("one seed does not tell how much of this is noise")
    else:
        lines.append(
            f"seeds of one architecture differ by {found['seed_deviation']:.2f} points (standard deviation): "
            f"the true ranking would have a tau of {found['ceiling']:.2f}"
        )
    return "\n".join([*lines, found["verdict"]])


def _shown(name: str, value: float) -> str:
    if name in COUNTED:
        return f"{value:,}"
    return f"{value / 1e6:,.1f}" if name == "memory" else f"{value:,.2f}" if name == "latency" else f"{value:,.0f}"
