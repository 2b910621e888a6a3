"""The picture of a batch: images as they are, and below each what a model is trained on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitas.files import write_atomically

COLUMNS = 8
LONGEST = 20
"""Characters of a caption."""
SIDE, GAP, CAPTION, MARGIN, NARROWEST = 1.5, 0.05, 0.3, 0.3, 6.0
"""Inches: of an image, between two, above a pair, around them all, and of a picture with few columns."""


def draw(file: Path, before: np.ndarray, after: np.ndarray, captions: Sequence[str], title: str) -> None:
    """Writes a PNG with pairs of images, (N, H, W, 3) uint8 each, and a caption above each pair."""
    columns, rows = min(COLUMNS, len(captions)), -(-len(captions) // COLUMNS)
    across, down = SIDE + GAP, CAPTION + 2 * SIDE + GAP
    width, height = max(MARGIN + columns * across + GAP, NARROWEST), MARGIN + rows * down + GAP
    figure = Figure(figsize=(width, height), dpi=150)
    figure.text(MARGIN / width, 1 - 0.7 * MARGIN / height, title, fontsize=10, parse_math=False)
    for number, caption in enumerate(captions):
        left, top = MARGIN + number % COLUMNS * across, MARGIN + number // COLUMNS * down + CAPTION
        for image, name, place in ((before, "as it is", top), (after, "as trained on", top + SIDE + GAP)):
            bottom = height - place - SIDE
            axes = figure.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))
            axes.imshow(image[number])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
            if image is before:
                short = caption if len(caption) <= LONGEST else caption[: LONGEST - 1] + "…"
                axes.set_title(short, fontsize=8, pad=3, parse_math=False)
            if number % COLUMNS == 0:
                axes.set_ylabel(name, fontsize=8, color="0.4", labelpad=3)
    png = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        FigureCanvasAgg(figure).print_png(png)
    write_atomically(file, png.getvalue())
