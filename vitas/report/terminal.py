"""What people see in the terminal while a run goes on."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from tqdm import tqdm

VERBOSE = "VITAS_VERBOSE"

NEWS = 5.0
"""Seconds between two notes of how far a bar is."""


def verbose() -> bool:
    """Whether libraries may say what they like: option `-v`, which all processes of a run inherit."""
    return bool(os.environ.get(VERBOSE))


def quiet() -> None:
    """Keeps what libraries warn of, and log below errors, from the terminal; in processes started later too."""
    if verbose() or sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    logging.disable(logging.WARNING)


@contextmanager
def without_banners() -> Iterator[None]:
    """Keeps what libraries print when they start from the terminal."""
    with nullcontext() if verbose() else redirect_stdout(io.StringIO()):
        yield


def say(text: str) -> None:
    """Prints a line above the progress bars."""
    tqdm.write(text)


def note(text: str) -> None:
    """Prints a line beside the output proper, which another program may read."""
    tqdm.write(text, file=sys.stderr)


class Bar(tqdm):
    """A progress bar that fits into 80 columns: time left first, then figures, of which the last ones may be cut off.

    `left` tells how many seconds are left of the whole run; `note` is told of the bar every few seconds.
    """

    left: Callable[[Bar], float | None] | None = None
    note: Callable[[Bar], None] | None = None
    noted = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left of this bar, by the mean speed since it began."""
        done = self.n - self.initial
        if self.disable or not done or not self.total:
            return None
        return (self.total - self.n) * (time.time() - self.start_t) / done

    @property
    def format_dict(self) -> dict[str, Any]:
        """What may stand in the format of the bar."""
        facts = dict(super().format_dict)
        times = [(" left", self.seconds_left), (" of the run", self.left and self.left(self))]
        shown = [tqdm.format_interval(seconds) + what for what, seconds in times if seconds]
        return facts | {"times": ", ".join(shown) or tqdm.format_interval(facts["elapsed"])}

    def update(self, n: float | None = 1) -> bool | None:
        """Counts, and draws if it is time to."""
        drawn = super().update(n)
        if self.note and not self.disable and time.monotonic() - self.noted >= NEWS:
            self.noted = time.monotonic()
            self.note(self)
        return drawn


def progress(stage: str, total: int, unit: str, *, show: bool, initial: int = 0, leave: bool = True) -> Bar:
    """A progress bar with the time left; in a log file a line now and then. Without `leave` it vanishes at the end."""
    seconds = 0.2 if sys.stderr.isatty() else 15
    how: dict[str, Any] = {"mininterval": seconds, "miniters": 0, "delay": 0 if leave else seconds}
    how["bar_format"] = "{desc} {percentage:3.0f}%|{bar:6}| {n_fmt}/{total_fmt} {times}{postfix}"
    return Bar(desc=stage, total=total, initial=initial, unit=unit, disable=not show, leave=leave, **how)


def fill(bar: Bar, done: int, of: int) -> None:
    """Moves a bar to the part `done` of `of`; where there is nothing to do, to its end."""
    bar.update((bar.total * done // of if of else bar.total) - bar.n)
