"""The journal of scores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vitas.files import read_lines

Entry = dict[str, Any]
"""A line of the journal: the candidate's `key`, its `architecture`, scores and costs."""


class Journal:
    """Every score ever made in a folder, one JSON line each, on disk before it is used.

    Each rank appends to a file of its own (`journal.jsonl` is the main rank's): appends of several machines to one
    file can mix on a shared disk.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, Entry] = {
            entry["key"]: entry for file in sorted(folder.glob("journal*.jsonl")) for entry in read_lines(file)
        }
        self.file = folder / ("journal.jsonl" if rank == 0 else f"journal.{rank}.jsonl")
        text = self.file.read_bytes() if self.file.is_file() else b""
        if text and not text.endswith(b"\n"):  # a kill cut the last line short: do not write on it
            self.file.write_bytes(text[: text.rfind(b"\n") + 1])

    def append(self, entry: Entry) -> None:
        """Adds a line, and waits until it is on disk."""
        with self.file.open("a") as lines:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
