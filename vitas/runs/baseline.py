"""The stage `baseline`: the opponent of what the search has found."""

from __future__ import annotations

import json

from vitas.files import write_atomically
from vitas.report.tables import standings_table
from vitas.report.terminal import say
from vitas.runs import found
from vitas.runs.finalists import tournament
from vitas.runs.run import Run
from vitas.runs.training import architectures, train_one
from vitas.search.workers import Workers
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture


def baseline(run: Run) -> None:
    """Trains a plain uniform ViT of no less cost for each that stage `retrain` trains, in just the same way.

    Of what a search with finalists has found, the opponent is found by a tournament as well: of uniform ViTs of each
    patch size and number of heads of the space.
    """
    chosen = dict(architectures(run, "baseline"))
    if found.had_finalists(run.recipe):
        vits = _fair(run, chosen)
    else:
        fewest = min(run.recipe.space.heads)
        vits = {
            stage: cost.uniform_vit(architecture, run.num_classes, min_heads=fewest)
            for stage, architecture in chosen.items()
        }
    for stage, vit in vits.items():
        train_one(run, vit, stage, None)


def _fair(run: Run, chosen: dict[str, Architecture]) -> dict[str, Architecture]:
    """The winners of a tournament of uniform ViTs for each architecture."""
    recipe = run.recipe
    entrants = {
        stage: cost.uniform_vits(architecture, run.num_classes, recipe.space) for stage, architecture in chosen.items()
    }
    split, held_out = run.train.hold_out(recipe.data.holdout, recipe.seed)
    standings = tournament(
        run,
        "baseline/finalists",
        entrants,
        split=split,
        images=run.cached(held_out, "holdout", recipe.space.image_size),
        workers=Workers(run.accelerator),
    )
    if run.accelerator.is_main_process:
        write_atomically(run.folder / "baseline" / "finalists.json", json.dumps(standings, indent=1))
        for stage, each in standings.items():
            say(standings_table(each, f"{stage}: uniform ViTs"))
    return {
        stage: next(vit for vit in entrants[stage] if vit.key == each[0]["key"]) for stage, each in standings.items()
    }
