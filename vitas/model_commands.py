"""The commands that make something of a model: vitas extract.

What a command needs is imported inside it, as in `cli`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vitas.files import expanded


def add(command: Callable[..., Any]) -> None:
    """Adds the commands; `command` takes a name, the work, a help text."""
    extracting = command(
        "extract",
        _extract,
        "turn a subnet of a trained supernet into a model, with the supernet's weights",
        "A start for a training on other images: retrain.init=DIR.",
    )
    extracting.add_argument("run", metavar="RUN", help="the folder of a run with a trained supernet")
    extracting.add_argument(
        "architecture", metavar="ARCHITECTURE", help="best, best:BUDGET, front:2, a key, a name, or a YAML file"
    )
    extracting.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the model")


def _extract(options: argparse.Namespace) -> None:
    from vitas.runs.extract import extract

    folder = expanded(options.output)
    model = extract(expanded(options.run), options.architecture, folder)
    params = sum(parameter.numel() for parameter in model.parameters())
    shape = model.architecture.in_words
    print(f"{folder}: {shape}, {params:,} parameters, {model.num_classes} classes; retrain.init={folder}")
