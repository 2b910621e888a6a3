"""The table of truth: architectures of one budget, each trained alone with several seeds.

    python benchmarks/quality/truth.py [--architectures 64] [--seeds 6] [--summarise]

Space, budget and schedule (section `retrain`) are those of `space.yaml`; `glyphs.py` makes the images the first time.
Trained are random architectures of the budget, drawn as the search draws its first generation, and uniform ViTs of
DeiT's proportions: all of them with seed 0, the best of them with every seed. Each training adds a line to
`truth.jsonl`, the first seed of all, then the second of all, and so on; the same command goes on after any
interruption. What is there at the end, or so far with `--summarise`, goes to `truth.json`.

The loop is that of vitas' Trainer, less what costs time here: images stay in memory as tensors and are not augmented.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from glyphs import CLASSES, FOLDER, write
from scipy.stats import kendalltau
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from vitas import recipe
from vitas.data.images import decode
from vitas.data.sources import open_splits
from vitas.data.splits import Split
from vitas.evolve.evolution import first_generation
from vitas.evolve.ranking import attainable, ceiling
from vitas.models.vit import VisionTransformer
from vitas.recipe import Recipe
from vitas.sections import Training
from vitas.spaces.architecture import Architecture, Block
from vitas.spaces.cost import count

HERE = Path(__file__).parent
LINES, TABLE = HERE / "truth.jsonl", HERE / "truth.json"
ARCHITECTURES = 64
UNIFORM_DEPTHS, UNIFORM_FINALISTS = (2, 3, 4, 6), 4
RESAMPLES = 1000
SCHEDULE = {
    "epochs", "batch_size", "lr", "weight_decay", "warmup_epochs", "label_smoothing", "clip_grad", "augment", "ema",
    "init", "drop_path",
}  # fmt: skip
"""What decides a training of the table: settings that came later are none of its loop's."""


class Images(NamedTuple):
    """Labelled images in memory."""

    images: Tensor
    """(N, 3, H, W) float, normalised."""
    labels: Tensor
    """(N,)"""


class Net(NamedTuple):
    """One row of the table."""

    kind: str
    """`random` or `uniform`."""
    architecture: Architecture


def settings() -> Recipe:
    """The recipe; its images are made if they are not there."""
    if not (FOLDER / "test.parquet").is_file():
        write(FOLDER)
    data = [f"data.{part}={FOLDER / part}.parquet" for part in ("train", "test")]
    return recipe.load(HERE / "space.yaml", data)


def load(settings: Recipe) -> tuple[Images, Images]:
    """The training and the test images, as vitas reads them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.data.mean, settings.data.std))

    def tensors(split: Split) -> Images:
        rows = [split.example(row) for row in range(len(split.indices))]
        pixels = torch.from_numpy(np.stack([np.asarray(decode(undecoded)) for _, undecoded, _ in rows]))
        images = pixels.permute(0, 3, 1, 2).contiguous().float()
        return Images((images / 255 - mean) / std, torch.tensor([label for _, _, label in rows]))

    train, test = open_splits(settings.data)
    return tensors(train), tensors(test)


def train(architecture: Architecture, schedule: Training, data: Images, seed: int) -> VisionTransformer:
    """The architecture trained alone; (seed, architecture) decide everything."""
    torch.manual_seed(seed)
    model = VisionTransformer(architecture, CLASSES)
    average = ModelEmaV3(model, decay=schedule.ema) if schedule.ema else None
    groups = param_groups_weight_decay(model, schedule.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr, fused=True)
    batch = schedule.batch_size
    each = len(data.labels) // batch
    steps = round(schedule.epochs * each)
    warm = round(schedule.warmup_epochs * each)
    rates = CosineLRScheduler(optimizer, steps, warmup_t=warm, warmup_lr_init=1e-6, t_in_epochs=False)
    order = torch.empty(0)
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(
                len(data.labels), generator=torch.Generator().manual_seed(1000 * seed + step // each)
            )
        rows = order[step % each * batch :][:batch]
        rates.step_update(step)
        logits = model(data.images[rows])
        F.cross_entropy(logits, data.labels[rows], label_smoothing=schedule.label_smoothing).backward()
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update(model, step)
    return average.module if average else model


@torch.inference_mode()
def test(model: VisionTransformer, data: Images) -> dict[str, float]:
    """Top-1 in percent, and the mean loss."""
    model.eval()
    parts = zip(data.images.split(500), data.labels.split(500), strict=True)
    hits = loss = 0.0
    for images, labels in parts:
        logits = model(images)
        hits += (logits.argmax(1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return {"top1": 100 * hits / len(data.labels), "loss": loss / len(data.labels)}


def random_nets(settings: Recipe, size: int = ARCHITECTURES) -> list[Net]:
    skip = settings.skip_probabilities(CLASSES)[""]
    genomes = first_generation(settings.space, settings.budget, CLASSES, size, seed=settings.seed, skip=skip)
    return [Net("random", settings.space.decode(genome)) for genome in genomes]


def uniform_nets(settings: Recipe) -> list[Net]:
    """Plain ViTs, each the widest that the budget allows for its patch size, depth and heads."""
    space, (low, high) = settings.space, settings.budget.macs
    nets = []
    for patch in space.patch_size:
        for depth in UNIFORM_DEPTHS:
            for heads in (2, 4):

                def vit(width: int, patch=patch, depth=depth, heads=heads) -> Architecture:
                    block = Block(heads=heads, qkv_dim=3 * width, mlp_dim=4 * width)
                    blocks = (block,) * depth
                    return Architecture(image_size=space.image_size, patch_size=patch, embed_dim=width, blocks=blocks)

                width = heads
                while count(vit(width + heads), CLASSES)["macs"] <= high:
                    width += heads
                if count(vit(width), CLASSES)["macs"] >= low:
                    nets.append(Net("uniform", vit(width)))
    return nets


def table_key(settings: Recipe, data: Iterable[Images]) -> str:
    """What decides a line besides architecture and seed: images, space, budget, schedule."""
    digest = hashlib.sha256()
    for images, labels in data:
        digest.update((images * 1000).round().to(torch.int16).numpy().tobytes() + labels.numpy().tobytes())
    digest.update(settings.retrain.model_dump_json(include=SCHEDULE).encode())
    digest.update((settings.space.model_dump_json() + settings.budget.model_dump_json()).encode())
    return digest.hexdigest()[:12]


def read(key: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The lines so far, by architecture and seed. One that a kill cut off is left out."""
    lines = {}
    for text in LINES.read_text().splitlines() if LINES.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["table"] == key:
            lines[line["architecture"], line["seed"]] = line
    return lines


def run(settings: Recipe, data: tuple[Images, Images], key: str, nets: list[Net], seeds: int) -> None:
    done = read(key)
    with LINES.open("a") as file:
        if file.tell() and not LINES.read_text().endswith("\n"):
            file.write("\n")
        for seed in range(seeds):
            chosen = nets if seed == 0 else finalists(nets, done)
            for number, net in enumerate(chosen, start=1):
                name = net.architecture.key
                if (name, seed) in done:
                    continue
                began = time.process_time()
                figures = test(train(net.architecture, settings.retrain, data[0], seed), data[1])
                line = {"table": key, "architecture": name, "seed": seed} | figures
                done[name, seed] = line | {"seconds": round(time.process_time() - began, 1)}
                file.write(json.dumps(done[name, seed]) + "\n")
                file.flush()
                told = f"{net.kind} {net.architecture.in_words}: {figures['top1']:.2f}"
                print(f"seed {seed}, {number} of {len(chosen)}: {told}", flush=True)


def finalists(nets: list[Net], done: dict[tuple[str, int], dict[str, Any]]) -> list[Net]:
    """All random architectures, and the uniform ViTs that were best with seed 0."""
    uniform = [net for net in nets if net.kind == "uniform" and (net.architecture.key, 0) in done]
    uniform.sort(key=lambda net: -done[net.architecture.key, 0]["top1"])
    return [net for net in nets if net.kind == "random"] + uniform[:UNIFORM_FINALISTS]


def summarise(settings: Recipe, key: str, nets: list[Net]) -> dict[str, Any]:
    """The table of what is there, for as many seeds as all random architectures have."""
    done = read(key)
    names = [net.architecture.key for net in nets if net.kind == "random"]
    seeds = 0
    while all((name, seeds) in done for name in names):
        seeds += 1
    if seeds < 2:
        raise SystemExit(f"{seeds} seeds of all {len(names)} random architectures are there, 2 are needed")
    rows = []
    for net in nets:
        top1 = [
            done[net.architecture.key, seed]["top1"] for seed in range(seeds) if (net.architecture.key, seed) in done
        ]
        if top1:
            loss = [done[net.architecture.key, seed]["loss"] for seed in range(len(top1))]
            rows.append(
                {"kind": net.kind, "key": net.architecture.key, "in_words": net.architecture.in_words}
                | {"top1": round(float(np.mean(top1)), 3), "loss": round(float(np.mean(loss)), 4)}
                | {"each": [round(value, 2) for value in top1]}
                | count(net.architecture, CLASSES)
                | {"shape": net.architecture.model_dump(mode="json")}
            )
    random = [row for row in rows if row["kind"] == "random"]
    full = [row for row in rows if row["kind"] == "uniform" and len(row["each"]) > 1]
    top1 = np.array([[done[name, seed]["top1"] for seed in range(seeds)] for name in names])
    means = top1.mean(1)
    noise = float(np.sqrt(top1.var(1, ddof=1).mean()))
    rng = np.random.default_rng(0)

    def interval(figure: Any) -> list[float]:
        draws = [figure(rng.integers(0, len(names), len(names))) for _ in range(RESAMPLES)]
        return [round(float(value), 3) for value in np.quantile(draws, [0.025, 0.975])]

    best = ceiling(top1)
    trivial = {name: np.array([row[name] for row in random]) for name in ("macs", "params")}
    trivial |= {
        "embed_dim": np.array([row["shape"]["embed_dim"] for row in random]),
        "depth": np.array([sum(block is not None for block in row["shape"]["blocks"]) for row in random]),
        "patch_size": np.array([row["shape"]["patch_size"] for row in random]),
    }
    draws = [rng.choice(means, 20, replace=False).max() for _ in range(RESAMPLES)]
    fair = max(full, key=lambda row: float(np.mean(row["each"][1:])), default=None)
    return {
        "command": f"python benchmarks/quality/truth.py --architectures {len(names)} --seeds {seeds}",
        "table": key,
        "architectures": len(names),
        "seeds": seeds,
        "schedule": settings.retrain.model_dump(
            mode="json",
            include={
                "epochs",
                "warmup_epochs",
                "batch_size",
                "lr",
                "weight_decay",
                "label_smoothing",
                "ema",
            },
        ),
        "seconds_a_training": round(float(np.mean([done[name, 0]["seconds"] for name in names])), 1),
        "random": {
            "lowest": round(float(means.min()), 2),
            "median": round(float(np.median(means)), 2),
            "highest": round(float(means.max()), 2),
            "best_of_20_on_average": round(float(np.mean(draws)), 2),
            "sd_between_architectures": round(float(np.sqrt(max(0.0, means.var(ddof=1) - noise**2 / seeds))), 2),
            "sd_between_seeds": round(noise, 2),
        },
        "ceiling": {
            "tau": round(best, 3),
            "interval": interval(lambda rows: ceiling(top1[rows])),
            "tau_of_the_true_ranking": round(attainable(best), 3),
        },
        "fair_uniform": fair
        and {name: fair[name] for name in ("in_words", "key", "top1", "each")}
        | {"top1_after_seed_0": round(float(np.mean(fair["each"][1:])), 3)},
        "trivial": {
            name: {
                "tau": round(float(kendalltau(values, means).statistic), 3),
                "interval": interval(lambda rows, values=values: kendalltau(values[rows], means[rows]).statistic),
            }
            for name, values in trivial.items()
        },
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", type=int, default=ARCHITECTURES)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--summarise", action="store_true", help="train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = settings()
    data = load(chosen)
    key = table_key(chosen, data)
    nets = random_nets(chosen, given.architectures) + uniform_nets(chosen)
    if not given.summarise:
        run(chosen, data, key, nets, given.seeds)
    table = summarise(chosen, key, nets)
    rows = table.pop("rows")
    print(json.dumps(table, indent=2))
    text = json.dumps(table, indent=1)[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]\n}\n"
    TABLE.write_text(text)


if __name__ == "__main__":
    main()
