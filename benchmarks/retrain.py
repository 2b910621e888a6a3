"""A step of retraining: vitas_b, vitas_c and deit_ti beside timm's own deit_tiny_patch16_224, in turn in one run.

    OMP_NUM_THREADS=1 python benchmarks/retrain.py [--batch 16] [--precision no] [--compile] [--steps 9]
                                                   [--before CHECKOUT] [--device cuda] [--json FILE]

Each is a process of its own: forward, cross-entropy, backward and a fused AdamW on random images of 224 pixels. With
one thread of a CPU its own processor time counts, else the clock. "x timm per MAC" is how many times the multiply-adds
a second are timm's, step by step; "x before" how many times the images a second are those of another checkout.
"""

import argparse
import json
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from paired import Line, Worker, in_turn, median, options_of, ratios, serve, shown

import vitas
from vitas.models import registry
from vitas.spaces import cost
from vitas.train.memory import PRECISIONS

TIMM = "deit_tiny_patch16_224"
NAMES = ("vitas_b", "vitas_c", "deit_ti")
CLASSES, SIZE = 1000, 224


def macs(name: str) -> int:
    """Exact multiply-adds of an image; timm's model is that of `deit_ti`."""
    return cost.count(registry.find("deit_ti" if name == TIMM else name), CLASSES)["macs"]


def training(options: argparse.Namespace, name: str) -> tuple[Any, Line]:
    """A step of a model's training."""
    torch.manual_seed(0)
    device, half = torch.device(options.device), PRECISIONS[options.precision]
    if name == "deit_ti":
        model: Any = vitas.VisionTransformer(registry.find(name), CLASSES)
    else:
        model = timm.create_model(name, num_classes=CLASSES)
    if hasattr(model, "set_class_token_only"):  # not timm's, and not that of every checkout
        model.set_class_token_only()  # as a retraining does
    model.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    run = torch.compile(model) if options.compile else model
    images = torch.randn(options.batch, 3, SIZE, SIZE, device=device)
    labels = torch.randint(CLASSES, (options.batch,), device=device)

    def step(_: int) -> float:
        with torch.autocast(device.type, half, enabled=half is not None):
            logits = run(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a run."""
    rest = [*options_of(options), *(["--compile"] if options.compile else [])]
    workers = {name: Worker(__file__, name, rest) for name in (TIMM, *NAMES)}
    if options.before:
        workers |= {f"{name}, before": Worker(__file__, name, rest, options.before) for name in NAMES}
    lines = in_turn(workers, range(options.warm + options.steps), options.warm)
    # A compiled step would be compiled anew to be counted.
    counts = {} if options.compile else {name: worker.ask(~0)["operations"] for name, worker in workers.items()}
    ends = {name: worker.close() for name, worker in workers.items()}
    ways = {}
    for name, each in lines.items():
        plain = name.removesuffix(", before")
        low, middle, high = (macs(plain) / macs(TIMM) * ratio for ratio in sorted(ratios(lines[TIMM], each)))
        ways[name] = {
            "ms": 1000 * median(each),
            "images/s": options.batch / median(each),
            "GMAC/s": 3 * options.batch * macs(plain) / median(each) / 1e9,
            "x timm per MAC": middle,
            "10 to 90 %": [low, high],
            "operations": counts.get(name),
            "memory": ends[name]["memory"],
        }
        if f"{name}, before" in lines:
            ways[name]["x before"] = ratios(lines[f"{name}, before"], each)[0]
    return {"batch": options.batch, "precision": options.precision, "device": options.device,
            "threads": options.threads, "compile": options.compile, "ways": ways}  # fmt: skip


def show(found: dict[str, Any]) -> None:
    print(f"{found['batch']} images, precision {found['precision']}, {found['device']} ({found['threads']} threads)"
          f"{', compiled' * found['compile']}\n")  # fmt: skip
    print(f"{'':24}{'ms':>9}{'images/s':>10}{'GMAC/s':>9}{'x timm per MAC':>16}{'10 to 90 %':>15}{'x before':>10}"
          f"{'operations':>12}{'MB':>8}")  # fmt: skip
    for name, row in found["ways"].items():
        low, high = row["10 to 90 %"]
        before = f"{row['x before']:.2f}" if "x before" in row else ""
        count = f"{row['operations']:,}" if row["operations"] else ""
        print(f"{name:24}{row['ms']:9.1f}{row['images/s']:10.1f}{row['GMAC/s']:9.1f}{row['x timm per MAC']:16.2f}"
              f"{low:8.2f} to {high:.2f}{before:>10}{count:>12}{row['memory'] / 1e6:8.0f}")  # fmt: skip


def main() -> None:
    arguments = shown(__doc__)
    arguments.add_argument("--compile", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")  # as the trainings do
    if options.worker:
        serve(partial(training, options, options.worker), torch.device(options.device))
        return
    found = measure(options)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
