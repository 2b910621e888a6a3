"""Checkpoints that a kill cannot spoil: written beside, synced, renamed; checked before use; the last few kept."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitas.config import UserError, one_line
from vitas.tracking import say, write_atomically
from vitas.vit import save_weights

MANIFEST, WEIGHTS, AVERAGE = "manifest.json", "weights.safetensors", "average.safetensors"


def save(
    accelerator: Accelerator, model: nn.Module, folder: Path, step: int, *, keep: int, average: nn.Module | None = None
) -> None:
    """Writes everything that training needs to go on after `step` steps. All ranks call it.

    `average` is the moving average of the model, if there is one. The newest checkpoint is never deleted before the
    next one is whole.

    Raises:
        UserError: The disk is full, or refuses; the checkpoint before is untouched.
    """
    part = folder / "part"
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(part))
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            state: Any = accelerator.get_state_dict(model)  # for a resume on another backend
            if accelerator.is_main_process:
                save_weights(part / WEIGHTS, state)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if average is not None:
                save_weights(part / AVERAGE, average.state_dict())
            sums = {str(file.relative_to(part)): _checksum(file, sync=True) for file in _files(part)}
            manifest = {"step": step, "layout": layout(accelerator), "files": sums}
            write_atomically(part / MANIFEST, json.dumps(manifest))
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{folder}: the checkpoint of step {step} could not be written: {one_line(error)}; make room, and the same "
            f"command goes on from {_checkpoints(folder)[-1] if _checkpoints(folder) else 'the start'}"
        ) from error
    if accelerator.is_main_process:
        whole = folder / f"step_{step:08d}"
        shutil.rmtree(whole, ignore_errors=True)  # a damaged one from before
        part.rename(whole)
        _sync(folder)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def layout(accelerator: Accelerator) -> str:
    """How the optimizer's state lies in a checkpoint: whole, or in one part for each rank of a ZeRO stage."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return "whole"
    plugin: Any = accelerator.state.deepspeed_plugin
    return f"ZeRO-{plugin.zero_stage}, {accelerator.num_processes} ranks, {accelerator.mixed_precision}"


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
    for checkpoint in reversed(_checkpoints(folder)):
        if _is_whole(checkpoint):
            return checkpoint
        say(f"warning: {checkpoint} is damaged; using the one before it")
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


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
