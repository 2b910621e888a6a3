"""What a run tells of itself in its folder while it goes on: `report.html`, and `times.json` with what stages take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from vitas.config import one_line
from vitas.files import write_atomically
from vitas.report.page.folder import TIMES, Folder
from vitas.report.terminal import say

REPORT = "report.html"

EVERY, SOON = 60.0, 10.0
"""Seconds between two reports, and at least between one and that of a stage's end."""


class Reporting:
    """Keeps the report of a run fresh, on the main process. Inside `with reporting:` it is at most a minute old.

    Meanwhile another process writes it, of the lowest priority, so that a report can neither hold up a run nor end it;
    at the end it is written here. A run goes on whatever becomes of its report.

    Args:
        folder: That of the run.
        machine: What it runs on; noted with each time.
    """

    def __init__(self, folder: Path, machine: dict[str, Any]) -> None:
        self.folder, self.machine = folder, machine
        self.times: list[dict[str, Any]] = []
        self.began = 0.0
        self.last = time.monotonic()
        self.writer: subprocess.Popen[bytes] | None = None
        self.end, self.writing = Event(), Lock()
        self.thread = Thread(target=self._watch, daemon=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Notes what a stage takes. One that was done already, and so takes no time, is not noted again."""
        known = any(one["stage"] == name for one in self.times)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.began = time.monotonic()
        self.times.append({"stage": name, "began": now, "seconds": 0.0} | self.machine)
        self._note()
        try:
            yield
        finally:
            self._note()
            if known and self.times[-1]["seconds"] < 1:
                self.times.pop()
            if time.monotonic() - self.last > SOON:
                self._refresh()

    def __enter__(self) -> Reporting:
        self.times = Folder(self.folder).times
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from vitas.report.page import page  # in a run that ends at once, it is not needed before

        self.end.set()
        self.thread.join()  # it may be about to start a writer
        if self.writer:
            self.writer.kill()
            self.writer.wait()
        try:
            self._save()
            page.write(self.folder, self.folder / REPORT)
        except Exception as error:
            if kind is None:  # else there is something else to say
                say(f"warning: {self.folder / REPORT} could not be written: {one_line(error) or type(error).__name__}")

    def _watch(self) -> None:
        while not self.end.wait(EVERY):
            self._note()
            self._refresh()

    def _note(self) -> None:
        """Notes how long the stage at work has taken, for those who look, and for when the run is killed."""
        if self.times:
            self.times[-1]["seconds"] = round(time.monotonic() - self.began, 1)
            with suppress(OSError):  # a full disk, which the stages themselves tell of
                self._save()

    def _save(self) -> None:
        with self.writing:
            write_atomically(self.folder / TIMES, json.dumps(self.times, indent=1))

    def _refresh(self) -> None:
        command = [sys.executable, "-m", "vitas", "report", str(self.folder)]
        quiet = subprocess.DEVNULL
        with self.writing:  # a minute and a stage may be over at once
            if self.writer and self.writer.poll() is None:
                return
            self.last = time.monotonic()
            try:
                # Out of the run's session: Ctrl-C is not meant for it. It sees no device, and holds none.
                self.writer = subprocess.Popen(
                    ["nice", "-n", "19", *command],
                    stdin=quiet,
                    stdout=quiet,
                    stderr=quiet,
                    start_new_session=True,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                )
            except OSError:
                self.writer = None
