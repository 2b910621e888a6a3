"""A step of a supernet's training: ours, and the ways that it is measured against, in turn in one run.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--recipe search_1G] [--batch 16] [--precision no] [--steps 9]
                                                [--before CHECKOUT] [--device cuda] [--json FILE]

Each way is a process of its own and does the same steps: the architecture of (seed, step), random images. With one
thread of a CPU its own processor time counts, else the clock. Ratios are taken within a step, and are medians.

    plain       a step as the original release's is described: both sides one after the other, attention written out,
                float32, unfused AdamW, DDP that looks for unused parameters (of one rank)
    autocast    the same in the precision asked for
    autoformer  AutoFormer's slicing: q, k and v of one matrix cut in three; fused attention and AdamW
    before      ours of another checkout
    vitas       ours, by the trainer itself, with all that a step of it does

"of mm" is the share of the rate of `torch.mm` on the products of such steps; "roofline" the share of the time that the
products need at that rate, and all other operations at the bandwidth of a copy.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from paired import Line, Worker, bandwidth, in_turn, matrix_rate, median, options_of, ratios, serve, shown
from plain import PlainSupernet
from torch.nn.parallel import DistributedDataParallel

from vitas import recipe
from vitas.data.batches import Batch
from vitas.data.splits import Unreadable
from vitas.models.supernet import Supernet
from vitas.report.tracking import Untracked
from vitas.sections import Augment
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.train.memory import PRECISIONS
from vitas.train.stop import StopRequest
from vitas.train.trainer import Trainer

MOST_STEPS = 10_000
Step = Callable[[int], float]


def by_hand(options: argparse.Namespace, settings: recipe.Recipe, way: str) -> tuple[Step, Line]:
    """A step of a plain loop."""
    device, space = torch.device(options.device), settings.space
    torch.manual_seed(0)
    net = PlainSupernet(space, options.classes, joint=way == "autoformer")
    if way != "autoformer":
        torch.manual_seed(0)  # the weights of ours
        net.load_state_dict(Supernet(space, options.classes).state_dict(), assign=True)
    net.to(device)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = DistributedDataParallel(net, find_unused_parameters=True, gradient_as_bucket_view=True)
    fused = way == "autoformer"
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.05, foreach=False, fused=fused)
    half = None if way == "plain" else PRECISIONS[options.precision]
    images, labels = batch(options)
    images = (images.float() - 127) / 64
    skip = settings.skip_probabilities(options.classes)[""]

    def step(number: int) -> float:
        chosen = space.sample(settings.seed, number, skip=skip)
        with torch.autocast(device.type, half) if half else nullcontext():
            logits = model(images, chosen)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, {"parameters": sum(parameter.numel() for parameter in net.parameters())}


def by_trainer(options: argparse.Namespace, settings: recipe.Recipe, _: str) -> tuple[Step, Line]:
    """A step of our trainer, on images that are there."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")  # as a run does (vitas.runs.accelerator)
    torch.manual_seed(0)
    net = Supernet(settings.space, options.classes)
    images, labels = batch(options)
    skip = settings.skip_probabilities(options.classes)[""]

    def batches(_: Any) -> Iterator[Batch]:
        while True:
            yield Batch(images, labels, {})

    training = settings.supernet.model_copy(
        update={"batch_size": options.batch, "micro_batch_size": options.batch, "lr": 1e-4, "warmup_epochs": 0.0,
                "augment": Augment(), "epochs": float(MOST_STEPS)}
    )  # fmt: skip
    trainer = Trainer(
        accelerator=Accelerator(cpu=options.device == "cpu", mixed_precision=options.precision),
        model=net,
        settings=training,
        folder=Path("no such folder"),
        stage="supernet",
        data=SimpleNamespace(
            size=options.batch, batches=batches, unreadable=Unreadable("none"), num_classes=options.classes, seed=0,
            mean=(127 / 255,) * 3, std=(64 / 255,) * 3,
        ),  # pyright: ignore[reportArgumentType]
        inputs=lambda number: (settings.space.sample(settings.seed, number, skip=skip),),
        tracker=Untracked(),
        stop=StopRequest(),
    )  # fmt: skip
    trainer.model.train()
    trainer.saved_at = 0.0
    feed = batches(None)
    return lambda number: trainer._step(number, feed).loss, {
        "parameters": sum(parameter.numel() for parameter in net.parameters())
    }


def batch(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels, on the device."""
    size, random = options.image_size, torch.Generator().manual_seed(0)
    images = torch.randint(256, (options.batch, 3, size, size), dtype=torch.uint8, generator=random)
    labels = torch.randint(options.classes, (options.batch,), generator=random)
    return images.to(options.device), labels.to(options.device)


def products(net: Architecture, images: int, classes: int) -> list[tuple[int, int, int]]:
    """The matrix products of a forward: rows, inputs and outputs."""
    tokens = images * ((net.image_size // net.patch_size) ** 2 + 1)
    width = net.embed_dim
    found = [(tokens - images, 3 * net.patch_size**2, width), (images, width, classes)]
    for block in net.kept:
        inner = block.qkv_dim // 3
        found += [(tokens, width, inner)] * 3 + [(tokens, inner, width)]
        found += [(tokens, width, block.mlp_dim), (tokens, block.mlp_dim, width)]
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a run."""
    settings = recipe.load(options.recipe)
    rest = [*options_of(options), "--recipe", options.recipe, "--classes", str(options.classes)]
    names = options.ways.split(",") if options.ways else ["plain", "autocast", "autoformer", "vitas"]
    if options.precision == "no" and "autocast" in names:
        names.remove("autocast")
    workers = {name: Worker(__file__, name, rest) for name in names}
    if options.before:
        workers["before"] = Worker(__file__, "vitas", rest, options.before)
    steps = range(options.first, options.first + options.warm + options.steps)
    lines = in_turn(workers, steps, options.warm)
    counts = {name: worker.ask(~steps[-1]) for name, worker in workers.items()}
    ends = {name: worker.close() for name, worker in workers.items()}
    first = [worker.first or 0.0 for name, worker in workers.items() if name != "autoformer"]
    assert max(first) - min(first) < 0.01 * abs(first[0]), first  # one computation, of the same weights
    skip = settings.skip_probabilities(options.classes)[""]
    nets = [settings.space.sample(settings.seed, number, skip=skip) for number in steps[options.warm :]]
    device, dtype = torch.device(options.device), PRECISIONS[options.precision] or torch.float32
    rates = {"float32": matrix_rate(products(nets[-1], options.batch, options.classes), device, torch.float32)}
    if dtype != torch.float32:
        rates["half"] = matrix_rate(products(nets[-1], options.batch, options.classes), device, dtype)
    copied = bandwidth(device)
    # Forward, and the gradients of both factors, on both sides.
    work = [12 * options.batch * cost.count(net, options.classes)["macs"] for net in nets]
    ways = {}
    for name, each in lines.items():
        rate = rates["half"] if "half" in rates and name not in ("plain",) else rates["float32"]
        seconds = median(each)
        done = statistics.median(flops / line["seconds"] for flops, line in zip(work, each, strict=True))
        least = work[-1] / rate + counts[name]["bytes"] / copied
        ways[name] = {
            "ms": 1000 * seconds,
            "images/s": options.batch / seconds,
            "operations": counts[name]["operations"],
            "memory": ends[name]["memory"],
            "of mm": done / rate,
            "roofline": least / each[-1]["seconds"],
        }
        for base in ("plain", "autocast", "before", "vitas"):
            if base in lines and base != name:
                ways[name][f"x {base}"], low, high = ratios(lines[base], each)
                ways[name][f"x {base}, 10 to 90 %"] = [low, high]
    return {"recipe": options.recipe, "batch": options.batch, "precision": options.precision, "device": options.device,
            "threads": options.threads, "matrix rate": rates, "bandwidth": copied, "ways": ways}  # fmt: skip


def show(found: dict[str, Any]) -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in found["matrix rate"].items())
    print(f"{found['recipe']}, {found['batch']} images, precision {found['precision']}, {found['device']} "
          f"({found['threads']} threads); mm: {rates}; copy: {found['bandwidth'] / 1e9:.1f} GB/s\n")  # fmt: skip
    bases = [base for base in ("plain", "autocast", "before") if base in found["ways"]]
    print(f"{'':12}{'ms':>9}{'images/s':>10}", *(f"{'x ' + base:>10}" for base in bases),
          f"{'10 to 90 %':>15}{'operations':>12}{'MB':>8}{'of mm':>8}{'roofline':>10}", sep="")  # fmt: skip
    for name, row in found["ways"].items():
        times = "".join(f"{row[f'x {base}']:10.2f}" if f"x {base}" in row else f"{'':>10}" for base in bases)
        low, high = row.get(f"x {bases[0]}, 10 to 90 %", (1, 1)) if bases else (1, 1)
        print(f"{name:12}{row['ms']:9.1f}{row['images/s']:10.1f}{times}{low:8.2f} to {high:.2f}{row['operations']:12,}"
              f"{row['memory'] / 1e6:8.0f}{row['of mm']:8.0%}{row['roofline']:10.0%}")  # fmt: skip


def main() -> None:
    arguments = shown(__doc__)
    arguments.add_argument("--recipe", default="search_1G")
    arguments.add_argument("--classes", type=int, default=1000)
    arguments.add_argument("--first", type=int, default=0, help="number of the first step")
    arguments.add_argument("--ways", help="some of them, with commas between; without it the first four")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")  # as the trainings do
    if not options.worker:
        found = measure(options)
        show(found)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
        return
    settings = recipe.load(options.recipe)
    options.image_size = settings.space.image_size
    make = by_hand if options.worker in ("plain", "autocast", "autoformer") else by_trainer
    serve(partial(make, options, settings, options.worker), torch.device(options.device))


if __name__ == "__main__":
    main()
