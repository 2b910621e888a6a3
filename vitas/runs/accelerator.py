"""The one Accelerator of a run."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType

from vitas.config import UserError
from vitas.data.batches import allowed_cores
from vitas.recipe import Recipe
from vitas.report.terminal import without_banners
from vitas.train.failures import LONG_WAIT


def make_accelerator(settings: Recipe) -> Accelerator:
    """The one Accelerator of a run; the backend is the launcher's choice, the same code serves all."""
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by DeepSpeed when it is imported
        # Read by oneDNN at its first product. Each subnet has shapes of its own: of the 1,024 compiled products that it
        # would keep, more than those of a step are seldom used again.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # the launcher's default: one thread, whatever the machine
            cores = allowed_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            torch.set_num_threads(max(1, cores - settings.data.workers))
    if not on_cpu:
        torch.set_float32_matmul_precision("high")  # TF32; on CPUs it would mean bfloat16
    handlers: list[Any] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The backend is named outright: DeepSpeed on CPU ranks finds no process group otherwise. The time is
        # long because one rank may decode or count while the others wait.
        handlers.append(InitProcessGroupKwargs(backend="gloo" if on_cpu else "nccl", timeout=LONG_WAIT))
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true")
    # `cpu` is said outright for ranks that torchrun started: Accelerate would take each for a single process, and
    # synchronise nothing. DeepSpeed on CPU ranks, though, refuses the word.
    with without_banners():
        accelerator = Accelerator(cpu=on_cpu and not deepspeed, kwargs_handlers=handlers)
    if accelerator.mixed_precision == "fp16" and on_cpu and not (deepspeed and _deepspeed_knows_fp16()):
        raise UserError("mixed_precision: fp16: expected a GPU, or DeepSpeed on a CPU that knows it; on CPUs use bf16")
    assert accelerator.num_processes == 1 or accelerator.distributed_type != DistributedType.NO
    return accelerator


def _deepspeed_knows_fp16() -> bool:
    from deepspeed.accelerator import get_accelerator

    device: Any = get_accelerator()
    return device.is_fp16_supported()
