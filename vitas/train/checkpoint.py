"""Checkpoints that a kill cannot spoil: written beside, synced, renamed; checked before use; the last few kept."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitas.config import RankError, one_line
from vitas.files import sync, write_atomically
from vitas.models.saved import save_weights
from vitas.report.terminal import say
from vitas.train import state

MANIFEST, WEIGHTS, AVERAGE = "manifest.json", "weights.safetensors", "average.safetensors"
MOMENTS = "moments.safetensors"


def save(
    accelerator: Accelerator,
    model: nn.Module,
    folder: Path,
    step: int,
    *,
    keep: int,
    skipped: int = 0,
    average: nn.Module | None = None,
) -> None:
    """Writes everything that training needs to go on after `step` steps, `skipped` of them left out. All ranks call it.

    `average` is the moving average of the model, if there is one. The newest checkpoint is never deleted before the
    next one is whole.

    Raises:
        RankError: The disk is full, or refuses; the checkpoint before is untouched.
    """
    part, main = folder / "part", accelerator.is_main_process
    if main:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _writing(folder, step, main):
        accelerator.save_state(str(part))
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # For a resume on another backend: its own files fit no other.
        weights, moments = state.weights(accelerator, model), state.gather_moments(model)
        if main:
            with _writing(folder, step, main):
                save_weights(part / WEIGHTS, weights)
                save_weights(part / MOMENTS, moments)
    accelerator.wait_for_everyone()
    if main:
        with _writing(folder, step, main):
            if average is not None:
                save_weights(part / AVERAGE, average.state_dict())
            sums = {str(file.relative_to(part)): _checksum(file, sync=True) for file in _files(part)}
            manifest = {"step": step, "skipped": skipped, "layout": layout(accelerator), "files": sums}
            write_atomically(part / MANIFEST, json.dumps(manifest))
            whole = folder / f"step_{step:08d}"
            shutil.rmtree(whole, ignore_errors=True)  # a damaged one from before
            part.rename(whole)
            sync(folder)
        for other in _checkpoints(folder):
            if other > whole:  # damaged, or training would have gone on from it
                shutil.rmtree(other)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


@contextmanager
def _writing(folder: Path, step: int, main: bool) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        full = shutil.disk_usage(folder).free < 1 << 20  # torch speaks of unexpected positions then
        if main:
            shutil.rmtree(folder / "part", ignore_errors=True)
        before = _checkpoints(folder)
        raise RankError(
            f"{folder}: the checkpoint of step {step} could not be written: "
            f"{'the disk is full' if full else one_line(error)}; "
            f"the same command goes on from {before[-1].name if before else 'the start'}"
        ) from error


def layout(accelerator: Accelerator) -> str:
    """Which backends can read what Accelerate saved: all but ZeRO, or a ZeRO stage on a number of ranks."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return "one process or DDP" + (" in fp16" if accelerator.mixed_precision == "fp16" else "")  # with a loss scale
    plugin: Any = accelerator.state.deepspeed_plugin
    offloaded = ", offloaded" if plugin.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get(
        "device", "none") != "none" else ""  # fmt: skip
    return f"ZeRO-{plugin.zero_stage}, {accelerator.num_processes} ranks, {accelerator.mixed_precision}{offloaded}"


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
    for checkpoint in reversed(_checkpoints(folder)):
        if _is_whole(checkpoint):
            return checkpoint
        say(f"warning: {checkpoint} is damaged, and passed over")
    return None


def manifest(checkpoint: Path) -> dict[str, Any]:
    """What a whole checkpoint says of itself: `step` and `layout`."""
    return json.loads((checkpoint / MANIFEST).read_text())


def weights(checkpoint: Path, *, average: bool = False) -> dict[str, Tensor]:
    """The model's weights in a checkpoint of any backend, or their moving average."""
    if average:
        return load_file(checkpoint / AVERAGE)
    file = checkpoint / WEIGHTS
    return load_file(file if file.is_file() else checkpoint / "model.safetensors")


def moments(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments in a checkpoint of any backend, see `vitas.train.state`; both are still unprepared."""
    file = checkpoint / MOMENTS
    if file.is_file():
        return load_file(file)
    saved = torch.load(checkpoint / "optimizer.bin", map_location="cpu", weights_only=True)
    return state.moments_of(saved, model, optimizer)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        return all(_checksum(checkpoint / name) == total for name, total in manifest(checkpoint)["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _checksum(file: Path, *, sync: bool = False) -> int:
    total = 0
    with file.open("rb") as data:
        if sync:
            os.fsync(data.fileno())
        while chunk := data.read(1 << 22):
            total = zlib.crc32(chunk, total)
    return total
