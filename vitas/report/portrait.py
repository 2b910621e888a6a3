"""The picture of an architecture: what each of its blocks is like."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitas.files import write_atomically
from vitas.spaces.architecture import Architecture


def draw(file: Path, architecture: Architecture) -> None:
    """Writes a PNG: for each block the widths of q, k and v together and of the MLP, and the number of heads."""
    blocks = architecture.blocks
    figure = Figure(figsize=(max(4.8, 1.6 + 0.45 * len(blocks)), 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)  # without pyplot, whose backend is the whole process's
    axes = figure.subplots()
    for number, block in enumerate(blocks, 1):
        if block is None:
            axes.text(number, 0, "skipped", rotation=90, ha="center", va="bottom", color="0.5", fontsize="small")
            continue
        axes.bar(number - 0.2, block.qkv_dim, 0.4, color="tab:blue", label="q, k and v")
        axes.bar(number + 0.2, block.mlp_dim, 0.4, color="tab:orange", label="MLP")
        axes.text(number, max(block.qkv_dim, block.mlp_dim), str(block.heads), ha="center", va="bottom")
    axes.axhline(architecture.embed_dim, color="0.5", linestyle=":", label="embedding")
    axes.set_title(architecture.in_words, fontsize="medium")
    axes.set_xlabel("block; above the bars its heads")
    axes.set_ylabel("channels")
    axes.set_xticks(range(1, len(blocks) + 1))
    axes.margins(y=0.15)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each once
    axes.legend(shown.values(), shown.keys(), loc="lower right", fontsize="small")
    png = BytesIO()
    canvas.print_png(png)
    write_atomically(file, png.getvalue())
