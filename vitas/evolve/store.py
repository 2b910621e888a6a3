"""What is measured once and used by many searches: JSON lines, on disk before they are used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitas.files import read_lines
from vitas.report.terminal import say

Line = dict[str, Any]


class Store:
    """The lines that were made from `made_from`, in a folder of that name inside `folder`.

    Each process appends to a file of its own: appends of several machines to one file can mix on a shared disk.

    Args:
        folder: Where stores are.
        made_from: All that decides what a line says, besides what the line names: another one is another store.
        writer: A name of this process that no other one has which is at work at the same time.
    """

    def __init__(self, folder: Path, made_from: dict[str, Any], writer: str) -> None:
        text = json.dumps(made_from, indent=1, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.file = self.folder / f"{writer}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (about := self.folder / "made_from.json").is_file():
            about.write_text(text)
        written = self.file.read_bytes() if self.file.is_file() else b""
        if not written.endswith(b"\n"):  # a kill cut the last line short: do not write on it
            self.file.write_bytes(written[: written.rfind(b"\n") + 1])

    def read(self, is_sound: Callable[[Line], bool]) -> list[Line]:
        """The lines of all processes; damaged ones are told and passed over."""
        return [line for file in sorted(self.folder.glob("*.jsonl")) for line in read_lines(file, is_sound, tell=say)]

    def append(self, line: Line) -> None:
        """Adds a line, and waits until it is on disk."""
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
