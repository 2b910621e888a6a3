"""How far a run is, and how much time it will still take: for its bars, and in `progress.json` for who watches it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from vitas.files import replace
from vitas.report.terminal import Bar

FILE = "progress.json"


class Work(NamedTuple):
    """What a stage has to do."""

    macs: float
    """Multiply-adds, about."""
    kind: Literal["train", "score"]
    """Both have a speed of their own."""


class Outlook:
    """The work of the stages of a run, in their order, and the speeds seen so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.works: Mapping[str, Work] = {}
        self.pace: dict[str, float] = {}
        """Seconds a multiply-add, by kind of work."""

    def follow(self, bar: Bar, stage: str) -> Bar:
        """Has a bar show how much time is left of the run, and notes how far it is."""
        bar.left = lambda bar: self.left(bar, stage)
        bar.note = lambda bar: self.note(bar, stage)
        return bar

    def left(self, bar: Bar, stage: str) -> float | None:
        """Seconds left of the run, about; None before anything is known, and in its last stage."""
        here, work = bar.seconds_left, self.works.get(stage)
        stages = list(self.works)
        if work is None or here is None or stage == stages[-1]:
            return None
        done = work.macs * (bar.n - bar.initial) / bar.total
        self.pace[work.kind] = (time.time() - bar.start_t) / max(done, 1.0)
        later = [self.works[name] for name in stages[stages.index(stage) + 1 :]]
        return here + sum(one.macs * self.pace.get(one.kind, self.pace[work.kind]) for one in later)

    def note(self, bar: Bar, stage: str) -> None:
        """Writes how far a stage is."""
        seconds = {"left": bar.seconds_left, "run_left": self.left(bar, stage)}
        self._write({"stage": stage, "done": bar.n, "total": bar.total, "unit": bar.unit} | seconds)

    def end(self) -> None:
        """Writes that the run is done."""
        self._write({"stage": None})

    def _write(self, facts: Mapping[str, object]) -> None:
        where = {"time": time.time(), "host": socket.gethostname(), "process": os.getpid()}
        replace(self.folder / FILE, json.dumps({**facts, **where}))
