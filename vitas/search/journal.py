"""The journal of scores."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from vitas.files import read_lines
from vitas.report.terminal import say
from vitas.spaces.architecture import Architecture
from vitas.spaces.cost import COUNTED

Entry = dict[str, Any]
"""A line of the journal: the candidate's `key`, its `architecture`, scores and costs."""


class Journal:
    """Every score ever made in a folder, one JSON line each, on disk before it is used.

    Each rank appends to a file of its own (`journal.jsonl` is the main rank's): appends of several machines to one
    file can mix on a shared disk.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tell = say if rank == 0 else lambda text: None
        self.entries: dict[str, Entry] = {
            entry["key"]: entry
            for file in sorted(folder.glob("journal*.jsonl"))
            for entry in read_lines(file, _is_sound, tell=tell)
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


def _is_sound(entry: Entry) -> bool:
    try:
        numbers = [entry[name] for name in ("top1", *COUNTED)]
        architecture = Architecture.model_validate(entry["architecture"])
        return architecture.key == entry["key"] and all(map(math.isfinite, numbers))
    except (KeyError, TypeError, ValueError):
        return False
