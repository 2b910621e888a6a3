"""vitas finds Vision Transformers: train one supernet, search it under a budget, retrain the winner."""

import sys

from vitas.config import UserError
from vitas.models.saved import load_model
from vitas.models.vit import VisionTransformer
from vitas.spaces.architecture import Architecture
from vitas.spaces.space import SearchSpace

__all__ = ["Architecture", "SearchSpace", "UserError", "VisionTransformer", "load_model", "main"]


def main(file: str) -> None:
    """Runs the recipe `file` with the `key=value` overrides of the command line, and exits.

    The last line of a runnable recipe calls it: `accelerate launch recipes/quickstart.yaml evolve.generations=5`.
    """
    from vitas.cli import run_recipe

    sys.exit(run_recipe(file))
