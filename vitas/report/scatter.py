"""The picture of a ranking: the supernet's score of each architecture, and what training it alone gave."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitas.files import write_atomically


def draw(file: Path, tables: list[dict[str, Any]]) -> None:
    """Writes a PNG with one plot for each table of stage `rank`; bars reach from the worst to the best seed."""
    figure = Figure(figsize=(6.4 * len(tables), 4.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # without pyplot, whose backend is the whole process's
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        rows = table["architectures"]
        score = np.array([row["supernet_top1"] for row in rows])
        seeds = np.array([row["top1"] for row in rows])
        mean = seeds.mean(1)
        bars = np.abs(np.stack([mean - seeds.min(1), seeds.max(1) - mean]))
        axes.errorbar(score, mean, yerr=bars, fmt="none", ecolor="0.7", elinewidth=1, zorder=1)
        dots = axes.scatter(score, mean, c=[row["macs"] for row in rows], cmap="viridis", s=28, zorder=2)
        figure.colorbar(dots, ax=axes, label="multiply-adds")
        favourite = int(score.argmax())
        axes.scatter(score[favourite], mean[favourite], s=130, facecolors="none", edgecolors="tab:red", zorder=3,
                     label=f"the supernet's favourite, {rows[favourite]['key']}")  # fmt: skip
        found = table["rankings"]["supernet"]
        low, high = found["tau_interval"]
        name = f"budget {table['budget']}: " if table["budget"] else ""
        axes.set_title(f"{name}Kendall's tau {found['tau']:.2f} ({low:.2f} to {high:.2f})")
        axes.set_xlabel("score in the supernet: top-1 % on the hold-out")
        axes.set_ylabel(f"trained alone: top-1 % on the test images, {seeds.shape[1]} seed(s)")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    png = BytesIO()
    canvas.print_png(png)
    write_atomically(file, png.getvalue())
