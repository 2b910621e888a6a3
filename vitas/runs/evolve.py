"""The stage `evolve`: candidates from the search, scored in the trained supernet, on all ranks."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from vitas.data.decoded import Cached
from vitas.data.plan import make_plan
from vitas.evolve import evolution, outcome
from vitas.evolve.candidates import Candidates
from vitas.evolve.evolution import Entry
from vitas.evolve.outcome import Fronts
from vitas.evolve.progress import Hypervolume, choices, figures
from vitas.files import write_atomically
from vitas.recipe import Recipe
from vitas.report import blocks, tracking
from vitas.report.sinks import Distribution, Picture, Rows
from vitas.report.tables import front_table, standings_table
from vitas.report.terminal import say
from vitas.runs import claims, corrected, trained
from vitas.runs.candidates import scored_by
from vitas.runs.finalists import shortened, tournament
from vitas.runs.found import FINALISTS, best_file, is_of_another
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.spaces.architecture import Architecture


def evolve(run: Run) -> None:
    """Searches the supernet; leaves `front.json`, `candidates.jsonl` and the best architecture of each budget."""
    recipe, settings = run.recipe, run.recipe.evolve
    supernet = trained.find(run, "stage evolve")
    on_test = settings.score_on == "test"
    split = run.test if on_test else supernet.held_out
    windows = {name: budget.windows() for name, budget in recipe.every_budget.items()}
    parts = {
        "budgets": windows if recipe.budgets else {"budget": windows[""]},
        "measured": recipe.budget.deployment if recipe.measured else {},
        "evolve": settings.model_dump(exclude={"batch_size", "generations", "finalists", "trial_epochs", "trial_init"}),
        "trials": recipe.trial_schedule.model_dump(mode="json", exclude=claims.HOW) if settings.trials else {},
        # Scores belong to one set of weights and of images: with others this would be another search.
        "supernet": supernet.checksum,
        "images": claims.images(split) | ({"test": recipe.data.test} if on_test else {}),
    }
    folder = run.claim(settings.name, run.settings("space") | parts, named="evolve.name")
    summary = folder / "summary.json"
    if _is_done(run, summary):
        return
    if on_test:
        run.say(
            "evolve: candidates are scored on the test images, as in the paper; the test accuracy of the winner is "
            "then an optimistic figure"
        )
    if run.accelerator.is_main_process:
        (folder / FINALISTS).unlink(missing_ok=True)  # those of other settings
    if settings.finalists > 1:  # what they cannot be trained with is said before the search
        schedule = shortened(recipe.retrain, settings.finalists, 0, "supernet")
        make_plan(schedule, len(supernet.trained_on.indices), schedule.section, 1)
    decoded = run.cached(split, "test" if on_test else "holdout", recipe.space.image_size)
    candidates, entries = _search(run, supernet, decoded, folder)
    found = outcome.confirmed(
        candidates, entries, recipe.every_budget, partial(evolution.front, objectives=evolution.objectives(settings))
    )
    if settings.finalists > 1:
        found = _decided(run, supernet, decoded, candidates, entries, found)
    if run.accelerator.is_main_process:
        front = outcome.in_one(found)
        for name, best in found.items():
            architecture = Architecture.model_validate(best[0]["architecture"])
            write_atomically(folder / best_file(name), architecture.to_yaml())
        write_atomically(folder / "front.json", json.dumps(front, indent=1))
        write_atomically(summary, json.dumps(_asked(recipe)))
        table = front_table(front, images=front[0]["images"], loss="loss" in settings.objectives)
        say(f"{table}\n{_next(recipe, folder)}")
        _show(run, folder, found, front)
    run.accelerator.wait_for_everyone()


def _show(run: Run, folder: Path, found: Fronts, front: list[Entry]) -> None:
    """The outcome for the trackers that can show it."""
    stage, tracker, step = run.recipe.evolve.stage, run.tracker, run.recipe.evolve.generations
    shapes = {entry["key"]: Architecture.model_validate(entry["architecture"]) for entry in front}
    plain = [{name: value for name, value in entry.items() if isinstance(value, (int, float, str))} for entry in front]
    rows = [row | {"shape": shapes[row["key"]].in_words} for row in plain]
    best = {"architecture" + (name and f"_{name}"): shapes[each[0]["key"]] for name, each in found.items()}
    pictures = {name: Picture(blocks.picture(one), one.in_words) for name, one in best.items()} if tracker.shows else {}
    tracker.show(stage, step, front=Rows(rows), **pictures)
    tracker.keep(stage, [folder / best_file(name) for name in found])


def _asked(recipe: Recipe) -> dict[str, Any]:
    """What a search that is done has done, besides what its folder was claimed for."""
    settings = recipe.evolve
    asked: dict[str, Any] = {"generations": settings.generations, "finalists": settings.finalists}
    if settings.finalists > 1:
        asked["schedule"] = recipe.retrain.model_dump(mode="json", exclude=claims.HOW | {"init", "ema"})
    return asked


def _is_done(run: Run, summary: Path) -> bool:
    """Whether all is done; an earlier version's search, which knew no finalists, is left as it is."""
    recipe = run.recipe
    try:
        done = json.loads(summary.read_text())
        known = "finalists" in done
        as_asked = done == _asked(recipe) if known else done["generations"] == recipe.evolve.generations
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if as_asked and not known and recipe.evolve.finalists > 1:
        run.say(f"{summary.parent}: of a version without finalists, and left as it is; delete {summary} to have them")
    files = [best_file(name) for name in recipe.every_budget]
    return as_asked and all((summary.parent / file).is_file() for file in files)


def _search(run: Run, supernet: TrainedSupernet, images: Cached, folder: Path) -> tuple[Candidates, list[Entry]]:
    """Does all generations; returns their entries."""
    recipe, settings, main = run.recipe, run.recipe.evolve, run.accelerator.is_main_process
    candidates = scored_by(run, supernet, images, lambda *_: _leave_if_stopped(run))
    score = candidates.score
    if settings.trials:
        score = corrected.by_trials(run, supernet, images.digest, candidates)
    elif settings.smooth:
        score = corrected.by_smoothing(run, candidates)
    total = settings.population * settings.generations
    bar = run.tracker.progress(settings.stage, total, "candidate", show=main)
    entries: list[Entry] = []

    def show(done: int, of: int) -> None:
        _leave_if_stopped(run)
        here = settings.population * done // max(1, of)
        bar.update(max(0, min(total, len(entries) + here) - bar.n))

    candidates.on_progress = show
    journal = folder / "candidates.jsonl"
    if not journal.is_file():  # else the search is replayed, and tells what it told before
        run.tracker.rewind(settings.stage, 0)
    generations = evolution.evolve(
        recipe.space,
        recipe.every_budget,
        settings,
        run.num_classes,
        candidates.costs,
        score,
        seed=recipe.seed,
        skips=run.skips,
    )
    objectives = evolution.objectives(settings)
    quality = evolution.quality(objectives)
    names = ["top1"] + ["loss"] * ("loss" in settings.objectives)
    if main:
        journal.write_text("")
    volumes: dict[str, Hypervolume] = {}
    candidates.fresh.clear()  # what corrects scores was scored before
    began = time.perf_counter()
    for number, generation in enumerate(generations, 1):
        entries += generation
        fronts = outcome.fronts(entries, recipe.every_budget, objectives)
        found = figures(generation, fronts, recipe.every_budget, names)
        found[tracking.SCORED] = sum(entry["images"] > 0 for entry in entries)
        for name, budget in recipe.every_budget.items():
            if number == 1:
                volumes[name] = Hypervolume(objectives, recipe.space, budget, run.num_classes, generation)
            found[tracking.HYPERVOLUME + (name and f"_{name}")] = volumes[name].of(fronts[name])
        now = time.perf_counter()
        if candidates.fresh:  # scores that were known take no time
            found[tracking.CANDIDATES_PER_HOUR] = 3600 * len(candidates.fresh) / (now - began)
        candidates.fresh.clear()
        began = now
        bar.update(max(0, len(entries) - bar.n))
        best = " ".join(f"{front[0][quality]:.{2 if quality == 'top1' else 4}f}" for front in fronts.values() if front)
        bar.set_postfix(generation=f"{number}/{settings.generations}", best=best, refresh=False)
        if run.tracker.log(settings.stage, number, **found):
            chosen = {name: Distribution(values) for name, values in choices(generation).items()}
            run.tracker.show(settings.stage, number, **chosen)
        if main:
            with journal.open("a") as lines:
                lines.writelines(json.dumps({"generation": number} | entry) + "\n" for entry in generation)
            write_atomically(folder / "front.json", json.dumps(outcome.in_one(fronts), indent=1))
    bar.close()
    return candidates, entries


def _leave_if_stopped(run: Run) -> None:
    if run.stop:
        run.stop.leave()  # every score so far is in the store


def _decided(
    run: Run, supernet: TrainedSupernet, images: Cached, candidates: Candidates, entries: list[Entry], fronts: Fronts
) -> Fronts:
    """The fronts, each led by the winner of a tournament of finalists."""
    recipe, settings = run.recipe, run.recipe.evolve
    choose = partial(
        evolution.finalists, objectives=evolution.objectives(settings), space=recipe.space, count=settings.finalists
    )
    chosen = outcome.confirmed(candidates, entries, recipe.every_budget, choose)
    standings = tournament(
        run,
        f"{settings.name}/finalists",
        {name: [Architecture.model_validate(entry["architecture"]) for entry in each] for name, each in chosen.items()},
        split=supernet.trained_on,
        images=candidates.scorer.images,
        digest=images.digest,
        workers=candidates.workers,
        source=supernet,
    )
    led: Fronts = {}
    for name, each in standings.items():
        (winner,) = [entry for entry in chosen[name] if entry["key"] == each[0]["key"]]
        led[name] = [winner, *(entry for entry in fronts[name] if entry["key"] != winner["key"])]
        run.say(standings_table(each, f"finalists{f' of budget {name}' if name else ''}"))
    if run.accelerator.is_main_process:
        write_atomically(run.folder / settings.name / FINALISTS, json.dumps(standings, indent=1))
    return led


def _next(recipe: Recipe, folder: Path) -> str:
    """Where the outcome lies, and the command that goes on with it."""
    lines = [f"{folder}: {', '.join(best_file(name) for name in recipe.every_budget)}, front.json, candidates.jsonl"]
    if "retrain" not in recipe.stages:
        words = ["stages=[retrain,evaluate]"]
        if recipe.budgets:
            words.append("retrain.architecture=[" + ",".join(f"best:{name}" for name in recipe.budgets) + "]")
        elif is_of_another("best", recipe, recipe.folder / "retrain"):  # which stays as it is
            words += [f"name={recipe.name}-{recipe.evolve.name}", f"retrain.search={folder}"]
            words += [f"supernet.from={recipe.supernet_folder}"] * (recipe.retrain.init == "supernet")
        lines.append(f"next: accelerate launch -m vitas {recipe.folder / 'recipe.yaml'} {' '.join(words)}")
    return "\n".join(lines)
