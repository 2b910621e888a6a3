"""What people see in the terminal while a run goes on."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """Prints a line above the progress bars."""
    tqdm.write(text)


def note(text: str) -> None:
    """Prints a line beside the output proper, which another program may read."""
    tqdm.write(text, file=sys.stderr)


def progress(stage: str, total: int, unit: str, *, show: bool, initial: int = 0, leave: bool = True) -> Any:
    """A progress bar with the time left; in a log file a line now and then. Without `leave` it vanishes at the end."""
    seconds = 0.2 if sys.stderr.isatty() else 15
    how: dict[str, Any] = {"mininterval": seconds, "miniters": 0, "delay": 0 if leave else seconds}
    return tqdm(desc=stage, total=total, initial=initial, unit=unit, disable=not show, leave=leave, **how)
