"""Run folders made by hand, as a run leaves them: for what reads them."""

import json
from pathlib import Path

import numpy as np
import yaml

from vitas import recipe
from vitas.evolve.evolution import each_patch_size, random_genomes
from vitas.spaces import cost


def write_lines(file: Path, lines) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def training(stage: str, epochs: float, steps_an_epoch: int, every: int = 10, validated=(), top1: float = 70.0):
    """The metrics of a training."""
    rng = np.random.default_rng(0)
    for step in range(every, round(epochs * steps_an_epoch) + 1, every):
        epoch = step / steps_an_epoch
        loss = 6.9 * np.exp(-3 * epoch / epochs) + 1.5 + 0.1 * rng.standard_normal()
        lr = 5e-4 * (1 + np.cos(np.pi * epoch / epochs))
        yield {"stage": stage, "step": step, "loss": loss, "images_per_second": 2600 + 40 * rng.standard_normal(),
               "lr": lr, "epoch": epoch}  # fmt: skip
        if validated and step % (10 * every) == 0:
            for number, name in enumerate(validated):
                value = top1 * (1 - np.exp(-3 * epoch / epochs)) - 3 * number
                yield {"stage": stage, "step": step, "epoch": epoch, "model": name, "holdout_top1": value,
                       "holdout_top5": min(100.0, value + 20), "holdout_loss": loss + 0.2}  # fmt: skip


def large(folder: Path, *, count: int = 2000, until: str = "evaluate", seed: int = 0, **settings) -> Path:
    """A run of `search_1G`, with 16 blocks, until a stage is done: supernet, evolve, retrain, evaluate."""
    changes = [f"output={json.dumps(str(folder.parent))}", f"name={folder.name}", f"seed={seed}"]
    changes += ["stages=[supernet,evolve,retrain,baseline,evaluate]"]
    made = recipe.load("search_1G", changes + [f"{name}={value}" for name, value in settings.items()])
    stages = ["supernet", "evolve", "retrain", "evaluate"]
    upto = stages.index(until)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.dump(made))
    metrics = [*training("supernet", made.supernet.epochs, 1000, 1000, ["largest", "smallest", "random 1"])]
    classes = {str(number): f"class {number}" for number in range(1000)}
    for stage in ("supernet", "retrain", "baseline"):
        (folder / stage).mkdir()
        (folder / stage / "settings.yaml").write_text(yaml.safe_dump({"classes": classes, "skip": 0.3}))
    if upto:
        (folder / "supernet" / "model.safetensors").touch()
        rng = np.random.default_rng(seed)
        genomes = random_genomes(made.space, made.budget, 1000, seed=seed, skip=0.3)
        shapes = [made.space.decode(genome) for genome in each_patch_size(genomes, count)]
        lines = []
        for number, shape in enumerate(shapes):
            wide = sum(block.mlp_dim for block in shape.kept) / 1e4
            heads = np.mean([block.heads for block in shape.kept])
            top1 = 52 + 12 * wide + 0.3 * heads - 0.15 * (shape.patch_size - 14) + number / count + rng.normal(0, 1.2)
            top1 = float(np.round(top1, 3))
            lines.append({"generation": 1 + 40 * number // count, "key": shape.key,
                          "architecture": shape.model_dump(mode="json"), **cost.count(shape, 1000),
                          "fidelity": 1.0, "images": 50000, "top1": top1, "loss": 5 - top1 / 20})  # fmt: skip
        best = sorted(lines, key=lambda line: -line["top1"])
        search = folder / made.evolve.name
        write_lines(search / "candidates.jsonl", lines)
        (search / "front.json").write_text(json.dumps(best[:1]))
        found = next(shape for shape in shapes if shape.key == best[0]["key"])
        (search / "best.yaml").write_text(found.to_yaml())
        (search / "summary.json").write_text(json.dumps({"generations": 40, "finalists": 0}))
        metrics += [{"stage": "evolve", "step": 40, "best_top1": best[0]["top1"], "top1": 60.0, "scored": count}]
        both = {"retrain": found, "baseline": cost.uniform_vit(found, 1000, min_heads=3)}
    if upto > 1:
        for stage, shape in both.items():
            (folder / stage / "architecture.yaml").write_text(shape.to_yaml())
            (folder / stage / "model.safetensors").touch()
            metrics += training(stage, made.retrain.epochs, 1000, 1000, ["model", "average"], 75)
    if upto > 2:
        rows = {}
        for name, top1, shape in (
            ("found", 75.31 + seed / 10, both["retrain"]),
            ("uniform ViT", 72.8, both["baseline"]),
        ):
            rows[name] = {"top1": top1, "top5": 91.0, "throughput": 3000.0, "images": 50000}
            rows[name] |= cost.count(shape, 1000) | {"shape": shape.in_words}
        (folder / "evaluation.json").write_text(json.dumps(rows))
        (folder / "rank").mkdir()
        (folder / "rank" / "ranking.json").write_text(json.dumps({"tables": [_table(lines[:20])]}))
    write_lines(folder / "metrics.jsonl", metrics)
    times = [("supernet", 2e5), ("evolve", 3e4), ("retrain", 8e4), ("evaluate", 120.0)][: upto + 1]
    machine = {"devices": 8, "device": "NVIDIA H200", "backend": "MULTI_GPU", "precision": "bf16", "vitas": "0.1"}
    (folder / "times.json").write_text(json.dumps([{"stage": stage, "seconds": s} | machine for stage, s in times]))
    return folder


def _table(lines: list[dict]) -> dict:
    """A table of stage `rank` of these candidates."""
    row = {"tau": 0.62, "tau_interval": [0.3, 0.8], "rho": 0.7, "rho_interval": [0.4, 0.9], "regret": 0.2}
    rows = [
        {"key": line["key"], "supernet_top1": line["top1"], "macs": line["macs"]}
        | {"top1": [line["top1"] + 9, line["top1"] + 10]}
        for line in lines
    ]
    rankings = dict.fromkeys(("supernet", "supernet_loss", "macs", "params", "dss"), row)
    return {"budget": None, "rankings": rankings, "verdict": "the supernet ranks better", "architectures": rows}
