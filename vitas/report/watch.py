"""A live view of a run, from its folder alone: from any machine that sees the folder, whatever runs it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from vitas.config import UserError
from vitas.files import read_lines
from vitas.report import names as t
from vitas.report.numbers import is_number
from vitas.report.outlook import FILE

CURVE = "▁▂▃▄▅▆▇█"
LONGEST = 24
"""Places of a curve."""
SILENT = 120.0
"""Seconds without news after which a run is said to be silent."""

FIGURES = {
    t.LOSS: ("loss", ".3f"),
    t.BEST[t.TOP1]: ("best", ".2f"),
    t.BEST[t.LOSS]: ("best loss", ".4f"),
    t.MEDIAN[t.TOP1]: ("median", ".2f"),
    t.IMAGES_PER_SECOND: ("images/s", ",.0f"),
    t.CANDIDATES_PER_HOUR: ("an hour", ",.0f"),
    t.GRAD_NORM: ("gradient", ".2f"),
    t.LR: ("lr", ".1e"),
    f"{t.TAU}_supernet": ("tau", ".2f"),
    f"{t.REGRET}_supernet": ("regret", ".2f"),
}
"""What is shown of the last line of a stage, in this order, and how."""


def watch(folder: Path, *, once: bool, every: float = 2.0) -> None:
    """Shows how far a run is, again and again until it is done; once if asked, or if the output is no terminal.

    Raises:
        UserError: There is no run in the folder.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: no run: there is no recipe.yaml in it")
    while True:
        width = shutil.get_terminal_size().columns
        lines, done = view(folder)
        if once or not sys.stdout.isatty():
            print("\n".join(lines))
            return
        # Home, then each line up to its end: nothing flickers, and no line is wider than the terminal.
        shown = [line[: width - 1] + "\x1b[K\n" for line in lines[: shutil.get_terminal_size().lines - 1]]
        print("\x1b[H" + "".join(shown) + "\x1b[J", end="", flush=True)
        if done:
            return
        time.sleep(every)


def view(folder: Path) -> tuple[list[str], bool]:
    """The lines of a view, and whether the run is done."""
    asked = _read(folder / "recipe.yaml", yaml.safe_load)
    now = _read(folder / FILE, json.loads)
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(folder / "metrics.jsonl", lambda line: isinstance(line.get(t.STAGE), str)):
        lines.setdefault(line[t.STAGE], []).append(line)
    done = bool(now) and now.get("stage") is None
    stages = [str(stage) for stage in asked.get("stages") or []]
    at_work = t.kind(str(now.get("stage") or "")) if not done else ""
    search = str((asked.get("evolve") or {}).get("name", "evolution"))
    if at_work not in stages:  # the bar of a tournament, or of trials
        at_work = {search: "evolve", "opponents": "baseline"}.get(at_work, at_work)
    shown = [f"{asked.get('name', folder.name)}: {', '.join(stages)}", ""]
    finished = {stage for stage in stages if _is_done(folder, stage, search if stage == "evolve" else stage)}
    done = done or (not now and finished == {*stages})  # of a version that did not say
    for stage in stages:
        state = "done" if stage in finished else "at work" if stage == at_work else "waits"
        own = [name for name in lines if t.kind(name) == stage and (stage != "evolve" or _is_of(name, search))]
        shown.append(f"{stage:<9} {state}")
        for name in own:
            shown += [f"  {text}" for text in _figures(name.removeprefix(stage).strip("/"), lines[name])]
    return [*shown, "", *_news(now, done)], done


def _is_of(stage: str, search: str) -> bool:
    return stage == ("evolve" if search == "evolution" else f"evolve/{search}")


def _is_done(folder: Path, stage: str, below: str) -> bool:
    files = {"evolve": f"{below}/summary.json", "rank": "rank/ranking.json", "evaluate": "evaluation.json"}
    if stage in files:
        return (folder / files[stage]).is_file()
    models = [folder / below, *(path for path in (folder / below).glob("*/") if (path / "architecture.yaml").is_file())]
    several = models[1:] or models
    return all((one / "model.safetensors").is_file() for one in several)


def _figures(name: str, lines: list[dict[str, Any]]) -> Iterator[str]:
    """The figures of a stage, its curve, and its last validation or final figures."""
    of_models = {str(line[t.MODEL]): line for line in lines if t.MODEL in line}
    plain = [line for line in lines if t.MODEL not in line and _numbers(line)]
    if plain:
        last = plain[-1]
        told = [
            f"{words} {format(last[key], how)}" for key, (words, how) in FIGURES.items() if is_number(last.get(key))
        ]
        drawn = t.BEST[t.TOP1] if t.BEST[t.TOP1] in last else t.LOSS
        curve = _curve([line[drawn] for line in plain if is_number(line.get(drawn))])
        yield " ".join([*([name] if name else []), f"step {last.get(t.STEP, '?')}: {', '.join(told)}"])
        if curve:
            yield curve
    top1s = [
        f"{model} {line[key]:.1f}"
        for model, line in of_models.items()
        for key in (t.TOP1, f"{t.HOLDOUT}_{t.TOP1}", f"{t.TEST}_{t.TOP1}")
        if is_number(line.get(key))
    ]
    if top1s:
        yield f"top-1 %: {', '.join(top1s)}"


def _news(now: dict[str, Any], done: bool) -> Iterator[str]:
    if done:
        yield "the run is done"
    elif not now:
        yield "nothing was said yet of how far it is"
    else:
        count, total = now.get("done", 0), now.get("total") or 1
        times = [(now.get("left"), "left"), (now.get("run_left"), "of the run")]
        left = ", ".join(
            f"{tqdm.format_interval(one)} {words}" for one, words in times if isinstance(one, (int, float))
        )
        bar = tqdm.format_meter(count, total, 0, ncols=20, bar_format="|{bar}|")
        yield f"{now['stage']} {100 * count / total:.0f}% {bar} {count}/{total} {now.get('unit', '')}s"
        if left:
            yield left
        age = time.time() - float(now.get("time", 0))
        silent = ": it has ended, or does something long" if age > SILENT else ""
        yield f"{tqdm.format_interval(max(0, age))} ago, process {now.get('process')} on {now.get('host')}{silent}"


def _curve(values: list[float]) -> str:
    """The values as a line of bars, means of as many as share a place."""
    if len(values) < 2:
        return ""
    places = min(LONGEST, len(values))
    cuts = [len(values) * place // places for place in range(places + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    return "".join(CURVE[round((one - low) / ((high - low) or 1) * (len(CURVE) - 1))] for one in means)


def _numbers(line: dict[str, Any]) -> list[str]:
    return [key for key in line if key != t.STEP and is_number(line.get(key))]


def _read(file: Path, how: Any) -> dict[str, Any]:
    """What a file says; nothing if it is not there, or is another thing."""
    try:
        found = how(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
