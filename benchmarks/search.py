"""Seconds of scoring one candidate of a search: a plain loop, as the original release's, against ours.

    taskset -c 0 python benchmarks/search.py [--images 400] [--candidates 4] [--batch 16] [--json FILE]

Timed on one core in turn, candidate by candidate, with the random supernet of a recipe and JPEGs of ImageNet's size:

    plain   each side of the supernet decodes the images again (PIL: 256 pixels, centre 224, normalised), slices the
            whole supernet in every layer, float32, 256 images at once, attention written out as in the release
    fused   the same, but torch's own attention: what the loop would be with today's torch
    ours    images decoded once for all candidates, each side extracted, `--batch` images at once

Seconds are the process's own (`time.process_time`): what others do on the machine does not count. The core's matrix
rate is that of `torch.mm` on the shapes of all linear layers of a candidate, at the best of several batch sizes. "done"
counts the multiply-adds that ours does; "asked" those of all tokens in all blocks, of which ours leaves out the last's.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitas import recipe
from vitas.data.decoded import Cached
from vitas.data.device import DeviceImages
from vitas.evolve.evolution import first_generation
from vitas.evolve.scoring import Scorer
from vitas.models import supernet, vit
from vitas.models.supernet import Supernet
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture

CLASSES, PLAIN_BATCH = 1000, 256
NOISE = 20
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def score(net: Supernet, architecture: Architecture, images: Cached, batch: int) -> list[int]:
    """Right answers of each side: ours."""
    on_cpu = DeviceImages(images, torch.device("cpu"), mean=MEAN, std=STD)
    scorer = Scorer(net, on_cpu, batch_size=batch, precision="no")
    line = scorer.score(architecture, 0, len(scorer.slices))
    return [sum(line["hits"][side]) for side in net.sides]


def plain_score(
    net: Supernet, architecture: Architecture, files: list[bytes], labels: Tensor, clock: dict[str, float], name: str
) -> list[float]:
    """Right answers of each side: the plain loop."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    right = [0.0] * len(net.sides)
    for number, side in enumerate(net.sides):
        for start in range(0, len(files), PLAIN_BATCH):
            part = slice(start, start + PLAIN_BATCH)
            with timed(clock, f"decoding, {name}"):
                pixels = np.stack([decode(file) for file in files[part]])
                batch = (torch.from_numpy(pixels).float() / 255 - mean) / std
            with timed(clock, name), torch.no_grad():
                logits = net._forward_side(batch, architecture, side)
                right[number] += (logits.argmax(1) == labels[part]).sum().item()
    return right


def written_out(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """Attention as of 2021, of q, k and v side by side."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in torch.cat((q, k, v), dim=-1).chunk(3, dim=-1))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    clock[name] = clock.get(name, 0.0) + time.process_time() - began


def jpegs(count: int) -> list[bytes]:
    """Random smooth images of 500 x 375 pixels with some noise: of 110 kB, as are ImageNet's."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        noisy = smooth + rng.normal(0, NOISE, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    return files


def decode(file: bytes) -> np.ndarray:
    """(3, 224, 224) uint8: the shorter side 256, the centre."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)


def multiply_adds(architecture: Architecture) -> tuple[int, int]:
    """Of one image: those of all tokens in all blocks, and those that `fast` computes."""
    asked, last = cost.count(architecture, CLASSES)["macs"], architecture.kept[-1]
    tokens, inner = (architecture.image_size // architecture.patch_size) ** 2 + 1, last.qkv_dim // 3
    linear = architecture.embed_dim * (4 * inner + 2 * last.mlp_dim)
    whole = tokens * linear + 2 * tokens**2 * inner
    return asked, asked - whole + linear + 2 * tokens * architecture.embed_dim * last.heads


@torch.inference_mode()
def matrix_rate(net: Supernet, architecture: Architecture) -> float:
    """Float32 operations a second of `torch.mm` on the shapes of a candidate's layers, at the best batch size."""
    model = net.extract(architecture)
    tokens = model.patch_embed.num_patches + 1
    best = 0.0
    for batch in (2, 4, 8, 16, 32, 64):
        operations, seconds = 0, 0.0
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                weight = layer.weight.flatten(1)
                rows = batch if layer is model.head else batch * tokens
                x, out = torch.randn(rows, weight.shape[1]), torch.empty(rows, weight.shape[0])
                times = []
                for _ in range(5):
                    began = time.process_time()
                    torch.mm(x, weight.t(), out=out)
                    times.append(time.process_time() - began)
                operations += 2 * rows * weight.numel()
                seconds += statistics.median(times)
        best = max(best, operations / seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=Path(__file__).parent.parent / "recipes" / "search_1G.yaml")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="images of one of our forwards")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = recipe.load(options.recipe)
    space, skip = settings.space, settings.skip_probabilities(CLASSES)[""]
    genomes = first_generation(space, settings.budget, CLASSES, options.candidates, seed=settings.seed, skip=skip)
    torch.manual_seed(0)
    net = Supernet(space, CLASSES).eval()
    files, labels = jpegs(options.images), torch.randint(CLASSES, (options.images,))
    once: dict[str, float] = {}
    with timed(once, "decoding"):
        images = Cached(np.stack([decode(file) for file in files]), labels.numpy(), "random")
    warm = Cached(images.images[:2], images.labels[:2], "first two")
    kilobytes = sum(map(len, files)) / len(files) / 1000
    print(f"{settings.name}: {len(files)} JPEGs of {kilobytes:.0f} kB, two sides; ours has {options.batch} "
          f"images at once, and decodes once for {once['decoding']:.1f} s\n")  # fmt: skip
    print(f"{'':28}        seconds a candidate         plain / ours  fused / ours  GFLOP/s   share of mm's\n"
          f"{'decoding':>36} {'plain':>7} {'fused':>7} {'ours':>7} {'with':>8} {'w/out':>6} {'with':>6} {'w/out':>6}  "
          f"decoding {'mm':>4} {'done':>6} {'asked':>6}")  # fmt: skip
    rows = []
    for genome in genomes:
        architecture = space.decode(genome)
        score(net, architecture, warm, options.batch)
        clock: dict[str, float] = {}
        with timed(clock, "ours"):
            ours = score(net, architecture, images, options.batch)
        for name, attention in (("plain", written_out), ("fused", vit.attend)):
            supernet.attend = attention
            right = plain_score(net, architecture, files, labels, clock, name)
            assert np.allclose(right, ours, atol=2), (right, ours)  # random weights: near ties
        rate = matrix_rate(net, architecture)
        asked, done = (2 * count * len(files) * len(net.sides) / clock["ours"] for count in multiply_adds(architecture))
        for name in ("plain", "fused"):
            clock |= {f"{name} / ours, without decoding": clock[name] / clock["ours"],
                      f"{name} / ours": (clock[name] + clock[f"decoding, {name}"]) / clock["ours"]}  # fmt: skip
        rows.append(clock | {"mm": rate / 1e9, "done": done / rate, "asked": asked / rate})
        show(architecture.in_words.split(", heads")[0], rows[-1])
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    show("median", medians)
    if options.json:
        found = {"images": len(files), "batch": options.batch, "decoding_once": once["decoding"]}
        options.json.write_text(json.dumps(found | {"median": medians, "candidates": rows}, indent=1))


def show(name: str, row: dict[str, float]) -> None:
    seconds = [row[key] for key in ("decoding, plain", "plain", "fused", "ours")]
    ratios = [row[f"{key} / ours{part}"] for key in ("plain", "fused") for part in ("", ", without decoding")]
    print(f"{name:28}", *(f"{value:7.2f}" for value in seconds), " ", *(f"{value:6.2f}" for value in ratios),
          f"  {row['mm']:12.1f} {row['done']:6.0%} {row['asked']:6.0%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
