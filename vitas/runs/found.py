"""Which architectures a recipe means by the names it gives them, and where their models are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitas.config import UserError, parse
from vitas.files import read_lines
from vitas.models import registry
from vitas.recipe import Recipe
from vitas.spaces.architecture import Architecture

KEY = r"a[0-9a-f]{11}"

FINALISTS = "finalists.json"
"""The file of a tournament's standings, in the folder of a search."""


def choices(recipe: Recipe) -> dict[str, str]:
    """What is retrained: the folder below that of the stage, and the name; a single one needs no such folder.

    Raises:
        UserError: Two of them would share a folder.
    """
    named = recipe.retrain.architecture
    if named == "best" and recipe.budgets and recipe.retrain.search is None:
        named = [f"best:{budget}" for budget in recipe.budgets]
    if isinstance(named, str):
        return {"": named}
    found: dict[str, str] = {}
    for name in named:
        short = Path(name).stem if name.endswith((".yaml", ".json")) else name
        folder = re.sub(r"[^\w.-]+", "-", short)
        if folder in found:
            raise UserError(f"retrain.architecture: {name}: is there twice, or has the same short name as another")
        found[folder] = name
    return found


def best_file(budget: str) -> str:
    """The file of the best architecture of a budget, in the folder of a search."""
    return f"best_{budget}.yaml" if budget else "best.yaml"


def search_needed(name: str) -> bool:
    """Whether a name is found in the folder of a search."""
    return bool(re.fullmatch(rf"best(:.+)?|front:.*|{KEY}", name))


def won_a_tournament(name: str, recipe: Recipe) -> bool:
    """Whether a name is of a search whose outcome a tournament has decided."""
    return search_needed(name) and (recipe.search_folder / FINALISTS).is_file()


def architecture(name: str, search: Path) -> Architecture:
    """The architecture of a name of `retrain.architecture`; `search` is the folder of the search.

    Raises:
        UserError: There is none; says what there is.
    """
    kind, _, which = name.partition(":")
    if not search_needed(name):
        return registry.find(name)
    if kind == "best":
        return Architecture.from_yaml(search / best_file(which))
    if kind == "front":
        front = read_front(search)
        if not which.isdecimal() or not 1 <= int(which) <= len(front):
            raise UserError(f"{name}: expected front:1 to front:{len(front)}, the best first")
        return Architecture.model_validate(front[int(which) - 1]["architecture"])
    for entry in read_lines(search / "candidates.jsonl"):
        if entry.get("key") == name:
            return Architecture.model_validate(entry["architecture"])
    raise UserError(f"{name}: no candidate of {search} has this key")


def retrained(name: str, recipe: Recipe) -> Architecture:
    """The architecture that is trained by a name of `retrain.architecture`, for images of `retrain.image_size`.

    Raises:
        UserError: There is none, or it has no patches in such images.
    """
    shape, size = architecture(name, recipe.search_folder), recipe.retrain.image_size
    if size is None:
        return shape
    return parse(Architecture, shape.model_dump() | {"image_size": size}, source="retrain.image_size")


def is_of_another(name: str, recipe: Recipe, folder: Path) -> bool:
    """Whether what was trained in a folder is another architecture than a search now has by this name."""
    if not search_needed(name) or not (folder / "architecture.yaml").is_file():
        return False
    try:
        return retrained(name, recipe) != Architecture.from_yaml(folder / "architecture.yaml")
    except UserError:  # the search is no more
        return False


def models(recipe: Recipe) -> Mapping[str, Path]:
    """The trained models of a run, and of the uniform ViTs beside them, by what a table calls them.

    Those trained before another search found something else are called `found before`.
    """
    found: dict[str, Path] = {}
    for below, name in choices(recipe).items():
        folder = recipe.folder / "retrain" / below
        before = " before" if is_of_another(name, recipe, folder) else ""
        found |= {(name if below else "found") + before: folder}
        found |= {(f"uniform ViT ({name})" if below else "uniform ViT") + before: recipe.folder / "baseline" / below}
    return {name: folder for name, folder in found.items() if (folder / "model.safetensors").is_file()}


def read_front(search: Path) -> list[dict[str, Any]]:
    """The entries of the front of a search, the best first.

    Raises:
        UserError: There is none, or it is damaged.
    """
    file = search / "front.json"
    try:
        front = json.loads(file.read_text())
        return [entry for entry in front if Architecture.model_validate(entry["architecture"])]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{file}: damaged; delete it and summary.json beside it, and the search makes it anew"
        ) from None
