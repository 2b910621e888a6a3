"""Checkpoints that a kill cannot spoil: written beside, synced, renamed; checked before use; the last few kept."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vitas.config import RankError, one_line
from vitas.files import sync, write_atomically
from vitas.report.terminal import say
from vitas.train.state import Best, TrainingState

FORMAT = 2
MANIFEST, WEIGHTS, MOMENTS, AVERAGE, BEST = (
    "manifest.json",
    "model.safetensors",
    "moments.safetensors",
    "average.safetensors",
    "best.safetensors",
)


class Writer:
    """Writes the checkpoints of one training, one at a time, in a thread of its own: training goes on meanwhile.

    The newest checkpoint is never deleted before the next one is whole. A thread that is at work when the program
    ends is waited for.

    Args:
        folder: Where the checkpoints go, a folder `step_N` each.
        keep: How many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.thread: Thread | None = None
        self.failure: RankError | None = None

    def save(self, state: TrainingState, step: int, facts: dict[str, Any]) -> None:
        """Begins to write what training needs to go on after `step` steps; waits for the checkpoint before.

        Args:
            state: The state; it must not change any more.
            step: Steps done.
            facts: What else the manifest shall say.

        Raises:
            RankError: The one before could not be written.
        """
        self.wait()
        self.thread = Thread(target=self._write, args=(state, step, facts))
        self.thread.start()

    def check(self) -> None:
        """Raises a RankError if a checkpoint could not be written: the disk is full, or refuses."""
        if self.failure:
            raise self.failure

    def wait(self) -> None:
        """Waits until what was begun is on disk. Raises what `check` raises."""
        if self.thread:
            self.thread.join()
        self.check()

    def _write(self, state: TrainingState, step: int, facts: dict[str, Any]) -> None:
        try:
            whole = self._write_whole(state, step, facts)
            self._prune(whole)
        except (OSError, SafetensorError) as error:
            full = shutil.disk_usage(self.folder).free < 1 << 20
            shutil.rmtree(self.folder / "part", ignore_errors=True)
            before = _checkpoints(self.folder)
            self.failure = RankError(
                f"{self.folder}: the checkpoint of step {step} could not be written: "
                f"{'the disk is full' if full else one_line(error)}; "
                f"the same command goes on from {before[-1].name if before else 'the start'}"
            )

    def _write_whole(self, state: TrainingState, step: int, facts: dict[str, Any]) -> Path:
        part = self.folder / "part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        best = state.best or Best({}, {})
        parts = {WEIGHTS: state.weights, MOMENTS: state.moments, AVERAGE: state.average, BEST: best.weights or None}
        for name, tensors in parts.items():
            if tensors is not None:
                save_file(dict(tensors), part / name)
        sums = {file.name: _checksum(file, sync=True) for file in sorted(part.iterdir())}
        manifest = {"format": FORMAT, "step": step, **facts, "loss_scale": state.loss_scale, "files": sums}
        manifest["best"] = best.facts
        write_atomically(part / MANIFEST, json.dumps(manifest, indent=1))
        whole = self.folder / f"step_{step:08d}"
        shutil.rmtree(whole, ignore_errors=True)  # a damaged one from before
        part.rename(whole)
        sync(self.folder)
        return whole

    def _prune(self, newest: Path) -> None:
        for other in _checkpoints(self.folder):
            if other > newest:  # damaged, or training would have gone on from it
                shutil.rmtree(other)
        for old in _checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning."""
    for checkpoint in reversed(_checkpoints(folder)):
        if _is_whole(checkpoint):
            return checkpoint
        say(f"warning: {checkpoint} is damaged, or of another version, and passed over")
    return None


def manifest(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `step`, and the facts that it was given."""
    return json.loads((checkpoint / MANIFEST).read_text())


def load(checkpoint: Path) -> TrainingState:
    """The state in a whole checkpoint."""
    average, best = checkpoint / AVERAGE, checkpoint / BEST
    said = manifest(checkpoint)
    loss_scale = said["loss_scale"]
    return TrainingState(
        load_file(checkpoint / WEIGHTS),
        load_file(checkpoint / MOMENTS),
        load_file(average) if average.is_file() else None,
        (loss_scale[0], loss_scale[1]) if loss_scale else None,
        Best(said["best"], load_file(best)) if best.is_file() else None,
    )


def remove_all(folder: Path) -> None:
    """Deletes all checkpoints of a training that is done."""
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def _is_whole(checkpoint: Path) -> bool:
    try:
        found = manifest(checkpoint)
        whole = all(_checksum(checkpoint / name) == total for name, total in found["files"].items())
        return whole and found["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _checksum(file: Path, *, sync: bool = False) -> int:
    total = 0
    with file.open("rb") as data:
        if sync:
            os.fsync(data.fileno())
        while chunk := data.read(1 << 22):
            total = zlib.crc32(chunk, total)
    return total
