"""The figures of a run, from its folder alone: what the page, the plots and `vitas report --json` show. Plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitas.report.numbers import amount, duration, is_number
from vitas.report.page import choices, curves, searched
from vitas.report.page.folder import Folder
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.spaces.published import PUBLISHED
from vitas.version import __version__

STAGES = ("supernet", "evolve", "rank", "retrain", "baseline", "evaluate")


def figures(path: Path) -> dict[str, Any]:
    """All that is known of the run in a folder, at any stage; what cannot be read is told under `told`.

    Raises:
        UserError: There is no such folder.
    """
    folder = Folder(path)
    found: dict[str, Any] = {"name": folder.name, "folder": str(path), "version": __version__}

    def add(name: str, otherwise: Any, work: Any) -> None:
        made = folder.attempt(name, work)
        found[name] = otherwise if made is None else made

    add("trainings", [], lambda: curves.trainings(folder.metrics))
    add("searches", [], lambda: list(filter(None, (searched.search(folder, name) for name in folder.searches))))
    add("progress", [], lambda: _progress(folder, found))
    add("asked", [], lambda: _asked(folder))
    add("final", [], lambda: _final(folder))
    add("architectures", [], lambda: _architectures(folder, found))
    add("effects", [], lambda: choices.effects(found["searches"][0]["inside"]) if found["searches"] else [])
    add("trained", None, lambda: _trained(folder, found))
    add("rankings", [], folder.rankings)
    add("time", [], lambda: _time(folder, found))
    add("sentences", [], lambda: _sentences(folder, found))
    add("next", [], lambda: _next(folder, found))
    for search in found["searches"]:
        search["inside"] = len(search["inside"])
    return found | {"told": folder.told}


def _asked(folder: Folder) -> list[list[str]]:
    """What was asked for, in words."""
    data, evolve = folder.section("data"), folder.section("evolve")
    rows = [["stages", ", ".join(folder.stages)]]
    classes = f", {folder.classes:,} classes" if folder.classes else ""
    if data:
        test = f", tested on {data['test']}" if data.get("test") else ""
        rows.append(["data", f"{data.get('train')}{test}{classes}"])
    if folder.space:
        of = folder.space
        size = amount(of.size)
        rows.append(["space", f"{size} architectures of {of.image_size} x {of.image_size} pixels: patch "
                     f"{_among(of.patch_size)}, width {_among(of.embed_dim.choices)}, {of.depth} blocks"
                     f"{', which may be skipped' if of.identity != 'none' else ''}, heads {_among(of.heads)}, "
                     f"q/k/v {_among(of.qkv_dim.choices)}, MLP {_among(of.mlp_dim.choices)}"])  # fmt: skip
    for name, windows in folder.windows.items():
        limits = ", ".join(f"{amount(low)} to {amount(high)} {searched.LABELS[cost][0]}"
                           for cost, (low, high) in windows.items() if cost in searched.LABELS)  # fmt: skip
        if limits:
            rows.append([f"budget {name}".strip(), limits])
    for stage in ("supernet", "retrain"):
        training = folder.section(stage)
        if stage in folder.stages and training:
            rows.append([stage, f"{training.get('epochs', 0):g} epochs, batches of {training.get('batch_size')}, "
                         f"lr {training.get('lr')}"])  # fmt: skip
    if "evolve" in folder.stages and evolve:
        many = f"{evolve.get('generations')} generations of {evolve.get('population')}"
        rows.append(["search", f"{evolve.get('algorithm')}, {many}, for {_words(evolve.get('objectives'))}"])
    rows.append(["seed", str(folder.values.get("seed", "?"))])
    if folder.times:
        last = folder.times[-1]
        software = [f"{name} {last[name]}" for name in ("vitas", "torch") if last.get(name)]
        rows.append(["machine", ", ".join([f"{last.get('devices', '?')} x {last.get('device', '?')}",
                     str(last.get("backend", "")), f"precision {last.get('precision', '?')}", *software])])  # fmt: skip
    return rows if folder.values else []


def _words(names: Any) -> str:
    return " and ".join(map(str, names)) if isinstance(names, list) else str(names)


def _among(values: Sequence[int]) -> str:
    """A few numbers as they are, many as a span."""
    return "/".join(map(str, values)) if len(values) < 5 else f"{min(values)} to {max(values)}"


def _progress(folder: Folder, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each stage that was asked for, the share that is done."""
    trained = folder.trained
    epochs = {one["stage"]: one["epoch"] for one in found["trainings"]}

    def training(stage: str) -> float:
        of = folder.section("retrain" if stage != "supernet" else "supernet").get("epochs")
        parts = [1.0 if done else epochs.get(name, 0) / of for name, done in trained.items() if name.startswith(stage)]
        if stage == "supernet":
            done = (folder.path / "supernet" / "model.safetensors").is_file()
            elsewhere = folder.section("supernet").get("from") is not None
            parts = [1.0 if done or elsewhere else epochs.get("supernet", 0) / of]
        return min(statistics.fmean(parts), 1.0) if parts else 0.0

    def searching() -> float:
        evolve = folder.section("evolve")
        name, asked = str(evolve.get("name", "evolution")), evolve.get("generations") or 1
        if (folder.path / name / "summary.json").is_file():
            return 1.0
        done = [search["generations"]["count"] for search in found["searches"] if search["name"] == name]
        return min(0.99, done[0] / asked) if done else 0.0

    def share(stage: str) -> float:
        if stage == "evolve":
            return searching()
        if stage in ("rank", "evaluate"):
            file = {"rank": "rank/ranking.json", "evaluate": "evaluation.json"}[stage]
            return float((folder.path / file).is_file())
        return training(stage)

    shares = {
        stage: folder.attempt(f"progress of {stage}", lambda stage=stage: share(stage)) for stage in folder.stages
    }
    return [{"stage": stage, "share": share or 0.0} for stage, share in shares.items()]


def _final(folder: Folder) -> list[dict[str, Any]]:
    """The rows of the final table."""
    names = ("top1", "top5", *cost.COSTS, "shape", "images")
    return [{"name": name} | {key: row[key] for key in names if key in row} for name, row in folder.evaluation.items()]


def _architectures(folder: Folder, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The found architectures, the uniform ViT of no less cost, and the paper's network of the nearest cost."""
    classes = folder.classes or 1000
    own: dict[str, Architecture] = {}
    for name in folder.trained:
        if name.partition("/")[0] == "retrain":
            below = name.partition("/")[2]
            shape = folder.architecture(folder.path / name / "architecture.yaml")
            own |= {below or "found": shape} if shape else {}
    best = folder.best(folder.searches[0]) if folder.searches else {}
    for name, shape in best.items():
        if shape not in own.values():
            own[f"{name} of the search"] = shape
    if not own and found["searches"]:
        for entry in folder.front(found["searches"][0]["name"])[:1]:
            own["best so far"] = Architecture.model_validate(entry["architecture"])
    if not own:
        return []
    first = next(iter(own.values()))
    trained = [name for name in folder.trained if name.partition("/")[0] == "baseline"]
    uniform = trained and folder.architecture(folder.path / trained[0] / "architecture.yaml")
    least = min(folder.space.heads) if folder.space else 1
    uniform = uniform or cost.uniform_vit(first, classes, min_heads=least)
    macs = cost.count(first, classes)["macs"]

    def distance(name: str) -> float:
        return abs(math.log(cost.count(PUBLISHED[name].architecture, 1000)["macs"] / macs))

    near = min(PUBLISHED, key=distance)
    rows = [(name, shape, classes) for name, shape in own.items()]
    rows += [("uniform ViT", uniform, classes), (near, PUBLISHED[near].architecture, 1000)]
    drawn = [
        {"name": name, "shape": searched.shape_of({"architecture": shape.model_dump()})["shape"],
         "image_size": shape.image_size, "words": shape.in_words, "classes": of} | cost.count(shape, of)
        for name, shape, of in rows
    ]  # fmt: skip
    drawn[-1]["published"] = PUBLISHED[near].top1
    return drawn


def _trained(folder: Folder, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """How often each choice was trained so far, if the supernet is trained in this run and not elsewhere."""
    recipe, classes = folder.recipe, folder.classes
    line = next((one for one in found["trainings"] if one["stage"] == "supernet"), None)
    if recipe is None or classes is None or line is None or not line["epoch"]:
        return None
    skip = folder.made_with("supernet").get("skip")
    skips: dict[str, Any] = skip if isinstance(skip, dict) else {"": skip}
    if skips.keys() != recipe.every_budget.keys() or not all(map(is_number, skips.values())):
        skips = recipe.skip_probabilities(classes)
    steps = round(line["step"] / line["epoch"] * recipe.supernet.epochs)
    return choices.trained(recipe, classes, skips, int(line["step"]), max(steps, int(line["step"])))


def _time(folder: Folder, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds and device-hours of each stage; of a run that noted none, seconds of its trainings by their speed."""
    rows: dict[str, dict[str, Any]] = {}
    for part in folder.times:
        row = rows.setdefault(part["stage"], {"stage": part["stage"], "seconds": 0.0, "device_hours": 0.0, "starts": 0})
        row["seconds"] += part["seconds"]
        row["starts"] += 1
        row["device_hours"] += part["seconds"] * part["devices"] / 3600
        row["devices"], row["device"] = part["devices"], part.get("device")
    if not rows:
        batches = {stage: folder.section(stage).get("batch_size") for stage in ("supernet", "retrain")}
        for training in found["trainings"]:
            batch = batches["supernet" if training["stage"] == "supernet" else "retrain"]
            lines = [line for line in folder.metrics
                     if line["stage"] == training["stage"] and is_number(line.get("images_per_second"))]  # fmt: skip
            before, seconds = 0, 0.0
            for line in lines:
                seconds += (line["step"] - before) * (batch or 0) / max(line["images_per_second"], 1e-9)
                before = line["step"]
            rows[training["stage"]] = {"stage": training["stage"], "seconds": seconds, "estimated": True}
    order = {stage: at for at, stage in enumerate(STAGES)}
    return sorted(rows.values(), key=lambda row: order.get(row["stage"].partition("/")[0], len(order)))


def _sentences(folder: Folder, found: Mapping[str, Any]) -> list[str]:
    """What came out so far, in three sentences."""
    said = []
    if found["searches"]:
        search = found["searches"][0]
        inside = search["inside"]
        of = f" of {amount(folder.space.size)}" if folder.space else ""
        line = (
            f"The search scored {search['scored']:,} architectures{of} in {search['generations']['count']} generations"
        )
        if inside:
            sign = 1 if search["quality"] == "top1" else -1
            best = max(inside, key=lambda entry: sign * entry[search["quality"]])
            chosen = [entry for entry in inside if entry["key"] in search["best"].values()]
            best, what = (chosen[0], "the one it chose") if len(chosen) == 1 else (best, "the best")
            median = statistics.median(entry["top1"] for entry in inside)
            line += (f"; in the supernet {what} has {best['top1']:.2f} % top-1 {search['scored_on']} with "
                     f"{amount(best['macs'])} multiply-adds, half of all less than {median:.2f} %")  # fmt: skip
        said.append(line + ".")
    elif supernet := next((one for one in found["trainings"] if one["stage"] == "supernet"), None):
        epochs = folder.section("supernet").get("epochs")
        loss = supernet["panels"][0]["lines"][0]["points"][-1][1] if supernet["panels"] else math.nan
        of = f" of {epochs:g}" if is_number(epochs) else ""
        said.append(f"The supernet has been trained for {supernet['epoch']:.1f}{of} epochs, to a loss of {loss:.3f}.")
    said += _compared(found["final"], _trained_word(folder, found))
    if seconds := sum(row["seconds"] for row in found["time"]):
        hours = sum(row.get("device_hours", 0) for row in found["time"])
        most = max(found["time"], key=lambda row: row["seconds"])
        share = (
            f", {100 * most['seconds'] / seconds:.0f} % of it for stage {most['stage']}"
            if len(found["time"]) > 1
            else ""
        )
        devices = f" ({hours:.3g} device-hours)" if hours else " of training, by the images/s that were noted"
        said.append(f"It {'took' if _is_done(found) else 'has taken'} {duration(seconds)}{devices}{share}.")
    return said or ["Nothing is trained or scored yet."]


def _is_done(found: Mapping[str, Any]) -> bool:
    return bool(found["progress"]) and all(part["share"] == 1 for part in found["progress"])


def _trained_word(folder: Folder, found: Mapping[str, Any]) -> str:
    """What the sentence about the final figures begins with."""
    if folder.section("evaluate").get("weights"):
        return ""
    return f"Trained alone{', before the last search,' * _is_of_another(found)} "


def _is_of_another(found: Mapping[str, Any]) -> bool:
    """Whether what was trained is not what the search has found by now."""
    return {"found", "best of the search"} <= {one["name"] for one in found["architectures"]}


def _compared(final: Sequence[Mapping[str, Any]], trained: str) -> list[str]:
    """The found architecture against the uniform ViT, with the noise of so many test images."""
    if not final:
        return []
    own = next((row for row in final if not row["name"].startswith("uniform ViT")), final[0])
    other = next((row for row in final if row["name"].startswith("uniform ViT")), None)
    images = own.get("images")
    on = f" on {images:,} test images" if images else " on the test images"
    macs = f" with {amount(own['macs'])} multiply-adds" if "macs" in own else ""
    what = "the found architecture" if own["name"] in ("found", "found before") else own["name"]
    line = f"{trained}{what} reaches {own['top1']:.2f} % top-1{macs}{on}"
    if other and other is not own:
        lead = own["top1"] - other["top1"]
        line += (
            f", {abs(lead):.2f} points {'more' if lead >= 0 else 'less'} than the uniform ViT ({other['top1']:.2f} %"
        )
        line += f", {amount(other['macs'])})" if "macs" in other else ")"
        if images:
            shares = [row["top1"] / 100 for row in (own, other)]
            noise = 196 * math.sqrt(sum(share * (1 - share) for share in shares) / images)
            line += f"; by chance alone so many images leave ±{noise:.2f} points"
    return [line + "."]


def _next(folder: Folder, found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The commands to go on with."""
    if not folder.values:
        return []
    run, recipe = folder.path, folder.path / "recipe.yaml"
    launch = f"accelerate launch -m vitas {recipe}"
    rows = []
    if not _is_done(found):
        rows.append(["go on where it stopped", launch])
    searched_by = [search["name"] for search in found["searches"] if search["front"]]
    if searched_by and "retrain" not in folder.stages:
        own = ""
        if _is_of_another(found):
            own = f" name={folder.name}-{searched_by[0]} retrain.search={run / searched_by[0]}"
        rows.append(["train what was found", f'{launch} "stages=[retrain,baseline,evaluate]"{own}'])
    if searched_by:
        rows.append(["search for longer", f'{launch} "stages=[evolve]" '
                     f"evolve.generations={2 * (folder.section('evolve').get('generations') or 20)}"])  # fmt: skip
        names = searched.best_names(next(one for one in found["searches"] if one["name"] == searched_by[0]))
        best = run / searched_by[0] / f"{names[0].replace(':', '_')}.yaml"
        rows.append(["look at the best", f"vitas describe {best}"])
    if (run / "supernet" / "model.safetensors").is_file() and not found["rankings"]:
        rows.append(["find out whether the supernet can be trusted", f"vitas rank {run}"])
    rows.append(["write this page again", f"vitas report {run}"])
    return [{"text": text, "command": command} for text, command in rows]
