"""The stage `baseline`: the opponent of what the search has found."""

from __future__ import annotations

import json
from pathlib import Path

from vitas.evolve.workers import Workers
from vitas.files import write_atomically
from vitas.report.tables import standings_table
from vitas.report.terminal import say
from vitas.runs import found
from vitas.runs.finalists import tournament
from vitas.runs.run import Run
from vitas.runs.training import architectures, train_one
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture


def baseline(run: Run) -> None:
    """Trains a plain uniform ViT of no less cost for each that stage `retrain` trains, in just the same way.

    Of what a search with finalists has found, the opponent wins a tournament as well: that of the uniform ViTs of each
    patch size and number of heads of the space.
    """
    recipe, classes = run.recipe, run.num_classes
    vits: dict[str, Architecture] = {}
    entrants: dict[str, list[Architecture]] = {}
    for (stage, architecture), name in zip(architectures(run, "baseline"), found.choices(recipe).values(), strict=True):
        vits[stage] = cost.uniform_vit(architecture, classes, min_heads=min(recipe.space.heads))
        if found.won_a_tournament(name, recipe):
            every = cost.uniform_vits(architecture, classes, recipe.space)
            if (trained := _trained(run.folder / stage)) in every:
                vits[stage] = trained
            else:
                entrants[stage] = every
    if entrants:
        vits |= _winners(run, entrants)
    for stage, vit in vits.items():
        train_one(run, vit, stage, None)


def _trained(folder: Path) -> Architecture | None:
    """The architecture whose training is done there."""
    return Architecture.from_yaml(folder / "architecture.yaml") if (folder / "model.safetensors").is_file() else None


def _winners(run: Run, entrants: dict[str, list[Architecture]]) -> dict[str, Architecture]:
    """Who wins each tournament, judged on the recipe's hold-out."""
    split, held_out = run.train.hold_out(run.recipe.data.holdout, run.recipe.seed)
    images = run.cached(held_out, "holdout", next(iter(entrants.values()))[0].image_size)
    standings = tournament(
        run,
        "opponents",
        entrants,
        split=split,
        images=run.on_device(images),
        digest=images.digest,
        workers=Workers(run.accelerator),
    )
    if run.accelerator.is_main_process:
        write_atomically(run.folder / "opponents" / found.FINALISTS, json.dumps(standings, indent=1))
        for stage, each in standings.items():
            say(standings_table(each, f"{stage}: uniform ViTs"))
    return {
        stage: next(vit for vit in entrants[stage] if vit.key == each[0]["key"]) for stage, each in standings.items()
    }
