"""The figures of a run as one page: style, script and plots are in it, and nothing is asked of anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from vitas.config import one_line
from vitas.files import write_atomically
from vitas.report.numbers import amount, duration
from vitas.report.page import chosen, drawing, figures, scattered

HERE = Path(__file__).parent
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><link rel="icon" href="data:,">
<style>{style}</style></head><body>
"""

COLUMNS = {
    "flops": "FLOPs",
    "macs": "MACs",
    "params": "params",
    "throughput": "images/s",
    "latency": "ms",
    "memory": "B",
}


def page(found: Mapping[str, Any]) -> str:
    """The page of the figures of one run (`vitas.report.page.figures`)."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    sections: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("Asked for", _asked),
        ("Result", _final),
        ("Architectures", _architectures),
        ("Search", _searches),
        ("Choices", chosen.section),
        ("Ranking", _rankings),
        ("Trainings", _trainings),
        ("Time", _time),
        ("Go on", _next),
    ]
    drawn, lines = [], list(found["told"])
    for name, work in sections:
        try:
            content = work(found)
        except Exception as error:  # of what another version wrote: the rest of the page is worth having
            lines.append(f"{name}: {one_line(error) or type(error).__name__}")
        else:
            drawn += [(name, content)] if content else []
    links = " ".join(f'<a href="#{_id(name)}">{name}</a>' for name, _ in drawn)
    said = "".join(f"<p>{escape(sentence).replace('top-', 'top&#8209;')}</p>" for sentence in found["sentences"])
    told = "".join(f"<li>{escape(line)}</li>" for line in lines)
    body = "".join(f'<section id="{_id(name)}"><h2>{name}</h2>{content}</section>' for name, content in drawn)
    return document(
        f"{found['name']} · vitas",
        f"<h1>{escape(found['name'])}</h1><small>{escape(found['folder'])} · as of {now} · "
        f"vitas {escape(found['version'])}</small>{_progress(found)}"
        f'<div class="said">{said}</div><nav>{links}</nav>{body}'
        + (f'<section class="told"><h2>What could not be read</h2><ul>{told}</ul></section>' if told else ""),
    )


def write(folder: Path, file: Path) -> None:
    """Writes the page of the run in a folder.

    Raises:
        UserError: There is no such folder.
    """
    write_atomically(file, page(figures.figures(folder)))


def document(title: str, body: str) -> str:
    """A whole page around what is in it."""
    style, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return HEAD.format(title=escape(title), style=style) + body + f"<script>{script}</script></body></html>\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = ()) -> str:
    """A table of texts; the columns in `words` stand to the left."""
    kinds = [' class="words"' if name in words else "" for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{escape(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _progress(found: Mapping[str, Any]) -> str:
    parts = ""
    for part in found["progress"]:
        share = 100 * part["share"]
        told = "done" if share == 100 else f"{share:.0f} %"
        bar = f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
        parts += f"<li>{escape(part['stage'])} <b>{told}</b>{bar}</li>"
    return f'<ul class="stages">{parts}</ul>' if parts else ""


def _asked(found: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in found["asked"])
    return f'<table class="asked">{rows}</table>' if rows else ""


def _final(found: Mapping[str, Any]) -> str:
    rows = found["final"]
    if not rows:
        return ""
    costs = [name for name in COLUMNS if any(name in row for row in rows)]
    cells = [
        [row["name"], f"{row['top1']:.2f}", f"{row['top5']:.2f}" if "top5" in row else "",
         *(amount(row[name]) if name in row else "" for name in costs), str(row.get("shape", ""))]
        for row in rows
    ]  # fmt: skip
    images = next((row["images"] for row in rows if "images" in row), None)
    on = f"on {images:,} test images" if images else "on the test images"
    head = ["", "top-1 %", "top-5 %", *(COLUMNS[name] for name in costs), "shape"]
    return table(head, cells, ["shape"]) + f"<small>{on}; costs are of one image</small>"


def _architectures(found: Mapping[str, Any]) -> str:
    shapes = found["architectures"]
    if not shapes:
        return ""
    accuracy = {row["name"]: row["top1"] for row in found["final"]}
    widest = {one["name"]: max(one["shape"][1], *(max(block[1:]) for block in one["shape"][2] if block), 1)
              for one in shapes}  # fmt: skip
    own = max(width for name, width in widest.items() if name == shapes[0]["name"] or name.startswith("uniform"))
    drawn = []
    for one in shapes:
        # To one scale, but for what would not fit: another order of size has its own, and says so.
        times = 1 if widest[one["name"]] <= 1.6 * own else -(-widest[one["name"]] // own)
        scale = 215 / own / times
        width = 26 + widest[one["name"]] * scale + 120
        published = one.get("published")
        top1 = f", {accuracy[one['name']]:.2f} % top-1" if one["name"] in accuracy else (
            f", published with {published:.1f} % top-1" if published else "")  # fmt: skip
        note = f"; drawn at 1/{times:g} of the scale" if times > 1 else ""
        costs = f"{amount(one['macs'])} multiply-adds, {amount(one['params'])} parameters"
        of = f"{one['image_size']} x {one['image_size']} pixels, {one['classes']:,} classes"
        caption = f"<b>{escape(one['name'])}</b>{top1}<br>{costs}, {of}{note}"
        drawn.append(
            f"<figure><figcaption>{caption}</figcaption>{drawing.architecture(one['shape'], scale, width)}</figure>"
        )
    keys = "".join(
        f'<span><i class="box i-{kind}"></i>{name}</span>'
        for kind, name in (("token", "width of a token"), ("q", "q"), ("k", "k"), ("v", "v"), ("mlp", "MLP"))
    )
    return (
        f'<div class="legend">{keys}<span>cuts: heads; numbers: heads (h), q/k/v together, MLP</span></div>'
        f'<div class="shapes">{"".join(drawn)}</div>'
    )


def _searches(found: Mapping[str, Any]) -> str:
    return "".join(
        (f"<h3>{escape(search['name'])}</h3>" if len(found["searches"]) > 1 else "")
        + scattered.section(search, at)
        + _panels(search["generations"])
        for at, search in enumerate(found["searches"])
    )


def _panels(group: Mapping[str, Any]) -> str:
    names = dict.fromkeys(line["name"] for panel in group["panels"] for line in panel["lines"])
    colours = {name: at for at, name in enumerate(names)}  # one line, one colour in all panels
    drawn = "".join(drawing.panel(panel, group["x"], colours) for panel in group["panels"])
    return f'<div class="grid2">{drawn}</div>' if drawn else ""


def _trainings(found: Mapping[str, Any]) -> str:
    return "".join(f"<h3>{escape(one['stage'])}</h3>{_panels(one)}" for one in found["trainings"])


def _rankings(found: Mapping[str, Any]) -> str:
    return "".join(scattered.ranking(one) for one in found["rankings"])


def _time(found: Mapping[str, Any]) -> str:
    rows = found["time"]
    if not rows:
        return ""
    total = sum(row["seconds"] for row in rows) or 1.0
    hours = sum(row.get("device_hours", 0.0) for row in rows)
    cells = [
        [row["stage"], duration(row["seconds"]), f"{100 * row['seconds'] / total:.0f} %",
         f"{row['device_hours']:.3g}" if "device_hours" in row else "",
         f"{row['devices']} x {row['device']}" if row.get("device") else ""]
        for row in rows
    ]  # fmt: skip
    cells.append(["all", duration(total), "", f"{hours:.3g}" if hours else "", ""])
    note = "of training alone, by the images/s that were noted" if rows[0].get("estimated") else ""
    return table(["stage", "time", "share", "device-hours", "devices"], cells, ["devices"]) + f"<small>{note}</small>"


def _next(found: Mapping[str, Any]) -> str:
    return "".join(f"<div>{escape(row['text'])}</div><pre>{escape(row['command'])}</pre>" for row in found["next"])
