"""vitas finds Vision Transformers: train one supernet, search it under a budget, retrain the winner."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitas.version import __version__

if TYPE_CHECKING:
    from vitas.api import evaluate, rank, retrain, search
    from vitas.config import UserError
    from vitas.models.saved import load_model
    from vitas.models.vit import VisionTransformer
    from vitas.runs.result import Result
    from vitas.spaces.architecture import Architecture
    from vitas.spaces.space import SearchSpace

__all__ = [
    "Architecture", "Result", "SearchSpace", "UserError", "VisionTransformer", "__version__", "evaluate", "load_model",
    "main", "rank", "retrain", "search",
]  # fmt: skip

_ROOMS = {
    "Architecture": "vitas.spaces.architecture",
    "Result": "vitas.runs.result",
    "SearchSpace": "vitas.spaces.space",
    "UserError": "vitas.config",
    "VisionTransformer": "vitas.models.vit",
    "load_model": "vitas.models.saved",
} | dict.fromkeys(("evaluate", "rank", "retrain", "search"), "vitas.api")


def main(file: str) -> None:
    """Runs the recipe `file` with the `key=value` overrides of the command line, and exits.

    The last line of a runnable recipe calls it: `accelerate launch recipes/quickstart.yaml evolve.generations=5`.
    """
    from vitas import cli

    sys.exit(cli.main(["run", file, *sys.argv[1:]]))


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_the_program() -> bool:
    """Whether `vitas`, `python -m vitas` or a recipe runs: they import torch, which takes seconds, if they need it."""
    program, line = Path(sys.argv[0]), sys.orig_argv
    if program.name == "-m":  # what Python calls a module until it has found it
        return "-m" in line and line[line.index("-m") + 1] == "vitas"
    return program.stem == "vitas" or program.suffix in (".yaml", ".yml")


if not _is_the_program():
    import_module("vitas.models.registry")  # so that timm knows vitas_a, vitas_b, ...
