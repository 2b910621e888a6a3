"""What people see in the terminal while a run goes on."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """Prints a line above the progress bars."""
    tqdm.write(text)


def progress(stage: str, total: int, unit: str, *, show: bool, initial: int = 0) -> Any:
    """A progress bar with the time left; in a log file a line now and then."""
    seconds = 0.2 if sys.stderr.isatty() else 15
    return tqdm(desc=stage, total=total, initial=initial, unit=unit, disable=not show, mininterval=seconds, miniters=0)
