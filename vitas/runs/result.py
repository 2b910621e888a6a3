"""What a run has found, in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitas import recipe
from vitas.config import UserError, did_you_mean
from vitas.files import expanded
from vitas.models.saved import load_model
from vitas.models.vit import VisionTransformer
from vitas.recipe import Recipe
from vitas.report.tables import front_table, table
from vitas.report.tracking import IMAGES
from vitas.runs import found
from vitas.spaces.architecture import Architecture


class Result:
    """A run, by its folder: what `vitas.search` and `vitas.retrain` return, or `vitas.Result("runs/quickstart")`.

    Everything is read from the files of the run when it is asked for.

    Args:
        folder: The run folder.

    Raises:
        UserError: It is none.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = expanded(folder)
        self.recipe: Recipe = recipe.of_run(self.folder)

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r})"

    @property
    def best(self) -> Architecture:
        """The best architecture; of several budgets that of the first."""
        return self.architecture(next(iter(found.choices(self.recipe).values())))

    @property
    def front(self) -> list[dict[str, Any]]:
        """The front of the search, the best first.

        Of each `architecture`, its `key`, its score in the supernet (`top1` in percent, `loss`, on so many `images`),
        and its costs: `macs`, `flops`, `params`, and those that were measured.
        """
        entries = found.read_front(self.recipe.search_folder)
        return [entry | {"architecture": Architecture.model_validate(entry["architecture"])} for entry in entries]

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each trained model `top1` and `top5` in percent of `images`, costs, and `throughput` in images/s.

        Raises:
            UserError: Nothing was evaluated.
        """
        file = self.folder / "evaluation.json"
        if not file.is_file():
            raise UserError(f"{file}: No such file or directory: nothing was evaluated; add stage evaluate")
        return json.loads(file.read_text())

    def architecture(self, name: str) -> Architecture:
        """The architecture that a recipe calls so: `best`, `best:small`, `front:2`, a key, a name, a file.

        Raises:
            UserError: There is none.
        """
        return found.architecture(name, self.recipe.search_folder)

    def model(self, name: str | None = None) -> VisionTransformer:
        """A trained model, in evaluation mode; the found one, or that of a `name`, as `figures` has them.

        Raises:
            UserError: It is not trained.
        """
        models = found.models(self.recipe)
        if not models:
            raise UserError(f"{self.folder}: holds no trained model; add stage retrain, or train one by vitas.retrain")
        if name is None:
            name = next(iter(models))
            if name.endswith(" before"):
                raise UserError(f"{self.folder}: the last search's best is not trained yet; model('{name}') is")
        if name not in models:
            raise UserError(f"{self.folder}: no model {name}{did_you_mean(name, models)}; there is {', '.join(models)}")
        return load_model(models[name])

    def report(self) -> str:
        """The front and the final figures as text, as far as they are there."""
        parts = []
        if (self.recipe.search_folder / "front.json").is_file():
            front = found.read_front(self.recipe.search_folder)
            parts.append(front_table(front, images=front[0]["images"], loss="loss" in self.recipe.evolve.objectives))
        if (self.folder / "evaluation.json").is_file():
            rows = self.figures
            parts.append(table(rows, next(iter(rows.values()))[IMAGES]))
        return "\n\n".join(parts)
