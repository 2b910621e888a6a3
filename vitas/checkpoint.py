"""Checkpoints that a kill cannot spoil: written beside, synced, renamed; checked before use; the last few kept."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

from accelerate import Accelerator

from vitas.tracking import say

MANIFEST = "manifest.json"


def save(accelerator: Accelerator, folder: Path, step: int, *, keep: int) -> None:
    """Writes everything that training needs to go on after `step` steps. All ranks call it.

    The newest checkpoint is never deleted before the next one is whole.
    """
    part = folder / "part"
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sums = {str(file.relative_to(part)): _checksum(file, sync=True) for file in _files(part)}
        _write(part / MANIFEST, json.dumps({"step": step, "ranks": accelerator.num_processes, "files": sums}))
        whole = folder / f"step_{step:08d}"
        shutil.rmtree(whole, ignore_errors=True)  # a damaged one from before
        part.rename(whole)
        _sync(folder)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
    for checkpoint in reversed(_checkpoints(folder)):
        if _is_whole(checkpoint):
            return checkpoint
        say(f"warning: {checkpoint} is damaged; using the one before it")
    return None


def load(accelerator: Accelerator, checkpoint: Path) -> int:
    """Restores the prepared model and optimizer; returns the number of steps that were done. All ranks call it."""
    accelerator.load_state(str(checkpoint))
    return int(json.loads((checkpoint / MANIFEST).read_text())["step"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text())["files"]
        return all(_checksum(checkpoint / name) == total for name, total in sums.items())
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


def _write(file: Path, text: str) -> None:
    with file.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
