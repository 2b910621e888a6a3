"""Memory: what a training will need on each rank, and what to do when it was not enough."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from vitas.config import RankError, one_line
from vitas.sections import Training

PRECISIONS: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Accelerate's names of mixed precision."""


def slow_half(on_cpu: bool, precision: str) -> str:
    """What is to be said of bfloat16 on a CPU that has no instructions for it; else nothing."""
    knows = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not on_cpu or precision != "bf16" or not x86 or any(ask is None or ask() for ask in knows):
        return ""
    return "this CPU has no instructions for bfloat16: about eight times slower than float32 (--mixed_precision no)"


class Backend(NamedTuple):
    """How the state of a training lies on its ranks."""

    ranks: int = 1
    zero: int = 0
    """The stage of ZeRO; 0 for one process or DDP."""
    offload: bool = False
    """Whether ZeRO keeps the optimizer in the host's memory."""
    precision: str = "no"
    """Accelerate's `mixed_precision`: no, bf16 or fp16."""


def estimate(
    model: Callable[[], nn.Module],
    inputs: tuple[Any, ...],
    image_size: int,
    images: int,
    settings: Training,
    of: Backend,
) -> dict[str, int]:
    """The bytes that one rank needs on its device, by what for.

    Neither the weights nor the images have contents, only a shape: no memory of that size is needed here.

    Args:
        model: Makes the model.
        inputs: What the model takes besides the images: for a supernet architectures as large as a step's may be, the
            largest first.
        image_size: Height and width of the images.
        images: Images of one forward of one rank.
        settings: Hyperparameters.
        of: The backend.
    """
    with torch.device("meta"):
        built = model().train()
    parameters = sum(parameter.numel() for parameter in built.parameters())
    activations = _saved(built, images, image_size, inputs, of)
    if settings.grad_checkpointing:  # those between the blocks, and all of one block while it is computed again
        one, depth = _saved(built, images, image_size, inputs[:1], of), len(built.blocks)  # pyright: ignore
        built.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
        between = [_saved(built, images, image_size, given, of) for given in (inputs, inputs[:1])]
        activations = between[0] + (one - between[1]) // depth
    half, whole = (2 if of.zero and of.precision != "no" else 4) * parameters, 4 * parameters
    part = of.ranks if of.zero else 1
    found = {
        "weights": half // (part if of.zero == 3 else 1),
        "gradients": half // (part if of.zero > 1 else 1) + (half if of.zero or of.ranks > 1 else 0),  # and buckets
        "optimizer": 0 if of.offload else (3 if of.zero else 2) * whole // part,  # ZeRO has float32 weights besides
        "average": (2 if of.zero else 1) * whole if settings.ema else 0,
        "activations": activations,
    }
    return {name: size for name, size in found.items() if size}


def _saved(model: nn.Module, images: int, image_size: int, inputs: tuple[Any, ...], of: Backend) -> int:
    """Bytes that a forward keeps for the backward pass; the weights are not among them."""
    half = PRECISIONS[of.precision]
    cast = half if of.zero and half else torch.float32  # DeepSpeed casts the weights, Accelerate the operations
    mode = FakeTensorMode()
    with mode:
        weights = {
            name: torch.empty(parameter.shape, dtype=cast, requires_grad=True)
            for name, parameter in model.named_parameters()
        }
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    kept: dict[int, torch.UntypedStorage] = {}  # holds them, so that none's address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with (
        mode,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=half, enabled=half is not None and not of.zero),
    ):
        batch = torch.zeros(images, 3, image_size, image_size, dtype=cast)
        logits: Any = functional_call(model, weights, (batch, *inputs))
        logits = logits.flatten(end_dim=-2)  # those of several subnets
        F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long))
        return sum(storage.nbytes() for storage in kept.values())


@contextmanager
def explained(message: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory into one line: `message` says where it was, and what to lower.

    Raises:
        RankError: The device has no more memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise RankError(f"{message()} ({one_line(error)})") from error
