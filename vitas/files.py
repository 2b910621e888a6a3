"""Files that a kill, a crash or a full disk cannot spoil."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitas.config import UserError


def expanded(path: str | Path) -> Path:
    """The path with `~` and `$VARIABLES` filled in."""
    return Path(os.path.expandvars(os.path.expanduser(path)))


def make_folder(folder: Path, *, keep: bool = True) -> None:
    """Makes a folder that can be written in; without `keep` it only finds out whether that is possible.

    Raises:
        UserError: It is not; says why.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise UserError(f"{folder}: cannot be made or written in: {error.strerror}") from None
    for path in missing if not keep else ():
        path.rmdir()


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


def replace(file: Path, content: str) -> None:
    """Replaces a file by a whole one, as `write_atomically` does, but what a crash leaves of it does not matter."""
    part = file.with_name(file.name + ".part")
    part.write_text(content)
    part.replace(file)


def sync(folder: Path) -> None:
    """Makes the renames in a folder outlast a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_lines(
    file: Path,
    sound: Callable[[dict[str, Any]], bool] = lambda line: True,
    *,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; a last line that a kill cut short is left out, as is a missing file.

    Other lines that are no objects, or not `sound`, are left out too, and `tell` is told of them.
    """
    lines = []
    *whole, _ = file.read_bytes().split(b"\n") if file.is_file() else [b""]
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not sound(line):
                raise ValueError
        except (ValueError, RecursionError):
            tell(f"warning: {file}: line {number} is damaged, and passed over")
        else:
            lines.append(line)
    return lines
