"""What an architecture costs, without a model; the budget; measured throughput.

N architectures, D blocks; one token a patch, and one class token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, Field, PositiveInt
from torch import nn

from vitas.config import Section, UserError
from vitas.space import Architecture, Block, Population, SearchSpace

COUNTED = ("flops", "macs", "params")
"""The costs that are counted from an architecture alone; throughput is measured."""


def counts(population: Population, num_classes: int) -> dict[str, np.ndarray]:
    """Costs (N,) of each architecture for one RGB image, as integers.

    `flops` is the count of the paper's tables: multiply-adds on patch tokens only, the class token left out,
    the classifier counted once a patch. `macs` is exact: what `torch.utils.flop_counter` counts, halved.
    `params` is what the extracted model holds.
    """
    embed, patch_pixels = population.embed_dim, 3 * population.patch_size**2
    patches = (population.image_size // population.patch_size) ** 2
    head = embed * num_classes

    def body(tokens: np.ndarray) -> np.ndarray:
        tokens, width = tokens[:, None], embed[:, None]
        inner = population.qkv_dim // 3
        linear = width * (population.qkv_dim + inner + 2 * population.mlp_dim)
        return (tokens * linear + 2 * tokens**2 * inner).sum(axis=1)

    stem = patches * patch_pixels * embed
    kept = (population.heads > 0).sum(axis=1)
    weights = embed[:, None] * (population.qkv_dim * 4 // 3 + 2 * population.mlp_dim)
    biases = population.qkv_dim + population.mlp_dim
    block_params = (weights + biases).sum(axis=1) + kept * 6 * embed  # two norms, two output biases
    tokens_params = (patches + 2) * embed  # positions of patches and class token; the class token
    return {
        "flops": stem + body(patches) + patches * head,
        "macs": stem + body(patches + 1) + head,
        "params": (patch_pixels + 1) * embed + tokens_params + block_params + 2 * embed + head + num_classes,
    }


def count(architecture: Architecture, num_classes: int) -> dict[str, int]:
    """`counts` of a single architecture, as plain integers."""
    return {name: int(values[0]) for name, values in counts(Population.of([architecture]), num_classes).items()}


def _window(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"expected [lowest, highest], got [{values[0]:g}, {values[1]:g}]")
    return values


Window = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]], AfterValidator(_window)]


class Budget(Section):
    """Windows `[lowest, highest]` that every returned architecture lies in; all that are given hold at once."""

    flops: Window | None = None
    """FLOPs for one image as the paper counts them (multiply-adds on patch tokens)."""
    macs: Window | None = None
    """Exact multiply-adds for one image."""
    params: Window | None = None
    """Parameters of the extracted model."""
    throughput: Window | None = None
    """Images a second, measured on the device of the search."""
    throughput_batch: PositiveInt = 256
    """Batch size at which the throughput is measured."""

    def windows(self, names: Sequence[str] = COUNTED) -> dict[str, tuple[float, float]]:
        """The windows that are set, of the costs in `names`."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def violations(self, costs: dict[str, np.ndarray]) -> np.ndarray:
        """(N, windows) How far each cost lies outside its window, relative to the upper end; <= 0 is inside."""
        size = len(next(iter(costs.values())))
        windows = {name: window for name, window in self.windows((*COUNTED, "throughput")).items() if name in costs}
        columns = [np.maximum(low - costs[name], costs[name] - high) / high for name, (low, high) in windows.items()]
        return np.column_stack(columns) if columns else np.full((size, 1), -1.0)

    def allows(self, costs: dict[str, np.ndarray]) -> np.ndarray:
        """(N,) Whether all the given costs lie in their windows."""
        return np.all(self.violations(costs) <= 0, axis=1)


def reachable(space: SearchSpace, num_classes: int) -> dict[str, tuple[int, int]]:
    """The smallest and largest counted costs of the whole space: `{"macs": (low, high), ...}`.

    Costs rise with every width and fall with every skipped block; only the patch size is not monotone.
    """
    corners = [space.corner(end, patch) for patch in space.patch_size for end in (0, -1)]
    costs = counts(Population.of(corners), num_classes)
    return {name: (int(values.min()), int(values.max())) for name, values in costs.items()}


def calibrate_skip(space: SearchSpace, budget: Budget, num_classes: int, *, samples: int = 4000) -> float:
    """The skip probability at which sampled subnets have, on average, a cost inside the budget's window.

    Found by bisection on one fixed set of draws, on which the mean falls as the probability rises
    (ViTAS, section 3.3, moves it by 0.01 until it fits, which can oscillate). 0 without skipping or counted budget.

    Raises:
        UserError: No probability reaches the window; names the reachable range.
    """
    windows = budget.windows()
    if space.identity == "none" or not windows:
        return 0.0
    name, (low, high) = next(iter(windows.items()))

    def mean_cost(skip: float) -> float:
        genomes = space.sample_genomes(np.random.default_rng(0), samples, skip=skip)
        return float(counts(space.widths(genomes), num_classes)[name].mean())

    most, least = mean_cost(0.0), mean_cost(1.0)
    if most < low or least > high:
        raise UserError(
            f"budget.{name}: no skip probability brings the mean {name} of sampled subnets into "
            f"[{low:.4g}, {high:.4g}]; it reaches {least:.4g} to {most:.4g} (supernet.skip=0 trains for the upper end)"
        )
    if low <= most <= high:
        return 0.0
    target, fewer, more = (max(low, least) + min(high, most)) / 2, 0.0, 1.0
    for _ in range(30):
        middle = (fewer + more) / 2
        fewer, more = (middle, more) if mean_cost(middle) > target else (fewer, middle)
    return (fewer + more) / 2


def uniform_vit(like: Architecture, num_classes: int, *, head_dim: int = 64) -> Architecture:
    """The smallest plain ViT (DeiT's proportions) that costs no fewer exact MACs than `like`.

    Same image, patch and number of blocks; every block has qkv 3 x and MLP 4 x the embedding, and heads of
    `head_dim` channels, or one head below that width.
    """
    target = count(like, num_classes)["macs"]
    heads = width = 0
    while True:
        width += 1
        heads = max(1, width // head_dim)
        if width % heads:
            continue
        block = Block(heads=heads, qkv_dim=3 * width, mlp_dim=4 * width)
        vit = Architecture(
            image_size=like.image_size,
            patch_size=like.patch_size,
            embed_dim=width,
            blocks=(block,) * len(like.kept),
        )
        if count(vit, num_classes)["macs"] >= target:
            return vit


@torch.inference_mode()
def measure_throughput(
    model: nn.Module,
    image_size: int,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.5,
) -> float:
    """Images a second of `model` in inference on `device`: the median of synchronised, warmed-up passes.

    Passes go on for at least `seconds`, and for at least nine times.
    """
    model = model.to(device=device, dtype=dtype).eval()
    images = torch.randn(batch_size, 3, image_size, image_size, device=device, dtype=dtype)

    def one_pass() -> float:
        start = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start

    for _ in range(2):  # warm up: allocator, choice of kernels
        one_pass()
    times: list[float] = []
    while len(times) < 9 or sum(times) < seconds:
        times.append(one_pass())
    return batch_size / statistics.median(times)
