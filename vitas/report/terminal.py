"""What people see in the terminal while a run goes on."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

VERBOSE = "VITAS_VERBOSE"


def verbose() -> bool:
    """Whether libraries may say what they like: option `-v`, which all processes of a run inherit."""
    return bool(os.environ.get(VERBOSE))


def say(text: str) -> None:
    """Prints a line above the progress bars."""
    tqdm.write(text)


def progress(stage: str, total: int, unit: str, *, show: bool, initial: int = 0, leave: bool = True) -> Any:
    """A progress bar with the time left; in a log file a line now and then. Without `leave` it vanishes at the end."""
    seconds = 0.2 if sys.stderr.isatty() else 15
    how: dict[str, Any] = {"mininterval": seconds, "miniters": 0, "delay": 0 if leave else seconds}
    return tqdm(desc=stage, total=total, initial=initial, unit=unit, disable=not show, leave=leave, **how)
