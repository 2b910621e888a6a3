"""What comes with the package beside its code: recipes, Accelerate's config files, the Slurm template."""

from __future__ import annotations

import os
import re
from pathlib import Path


def folder() -> Path:
    """The folder that holds `recipes/` and `launch/`: the installed package's, or the clone's that we run from."""
    package = Path(__file__).parent
    return package if (package / "recipes").is_dir() else package.parent


def recipes() -> dict[str, Path]:
    """The recipes by name. Those whose names begin with `_` are only there to be extended."""
    return {file.name.removesuffix(".yaml"): file for file in sorted((folder() / "recipes").glob("*.yaml"))}


def find(word: str, beside: Path = Path()) -> Path | None:
    """The recipe that `word` means: a file, seen from the folder `beside`, or the name of one of ours."""
    file = beside / word
    if not os.path.isfile(file) and word in (ours := recipes()):
        return ours[word]
    return file if os.path.exists(file) else None


def summary(recipe: Path) -> str:
    """The first sentence of a recipe's first comment."""
    comment = re.search(r"(?m)(?:^# .*\n)+", recipe.read_text())
    text = " ".join(line.removeprefix("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"(?<=\.)\s", text)[0]
