"""Files that a kill, a crash or a full disk cannot spoil."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def expanded(path: str | Path) -> Path:
    """The path with `~` and `$VARIABLES` filled in."""
    return Path(os.path.expandvars(os.path.expanduser(path)))


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replaces a file by a whole one: a reader or a kill finds the old or the new content, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    with part.open("wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
    sync(file.parent)


def sync(folder: Path) -> None:
    """Makes the renames in a folder outlast a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; a last line that a kill cut short is left out, as is a missing file."""
    lines = []
    for line in file.read_text().split("\n") if file.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
