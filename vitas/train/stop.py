"""Requests to stop: Ctrl-C, SIGTERM, SIGUSR1, or a file that appears."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from vitas.config import EXIT_STOPPED
from vitas.files import expanded

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
STOP_FILE = "VITAS_STOP_FILE"
"""Environment variable that names a file whose appearance asks for a stop (see launch/slurm)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ONE_PRESS = 2.0
"""Seconds in which several SIGINT are one press of Ctrl-C: the terminal sends one, the launcher another."""


class StopRequest:
    """Whether somebody asked this process to stop: by Ctrl-C, SIGTERM, SIGUSR1, or the file of `VITAS_STOP_FILE`.

    Inside `with stop:` it is only noted, for work that must save first; else it ends the process, and `words` says
    what becomes of the work. A second Ctrl-C ends the process at once, in any case.

    Args:
        on_interrupt: What else is done when the process ends after Ctrl-C.
    """

    def __init__(self, on_interrupt: Callable[[], None] = lambda: None) -> None:
        self.on_interrupt = on_interrupt
        self.asked = False
        self.noted = False
        self.interrupted: float | None = None
        self.words = "stopped; the same command goes on"
        named = os.environ.get(STOP_FILE)
        self.file = expanded(named) if named else None
        if threading.current_thread() is threading.main_thread():  # no other one may
            for number in SIGNALS:
                signal.signal(number, self._ask)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that was asked to stop, and has."""
        return EXIT_STOPPED if self.interrupted is None else EXIT_INTERRUPTED

    def ask_for_another_start(self) -> None:
        """Leaves the file that stops a run, as whoever started it then starts it again (see launch/slurm)."""
        if self.file:
            self.file.touch()

    def leave(self) -> None:
        """Ends the process, and says on the main rank what becomes of the work."""
        _say(self.words)
        if self.interrupted is not None:
            self.on_interrupt()
        sys.exit(self.exit_code)

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted is None:
                self.interrupted = now
            elif now - self.interrupted > ONE_PRESS:
                os._exit(EXIT_INTERRUPTED)
            else:
                return
        self.asked = True
        if not self.noted:
            self.leave()
        if number == signal.SIGINT:
            _say("stops after this step, to save; Ctrl-C once more ends at once")

    def __enter__(self) -> None:
        self.noted = True

    def __exit__(self, *_: object) -> None:
        self.noted = False

    def __bool__(self) -> bool:
        return self.asked or bool(self.file and os.path.exists(self.file))


def _say(words: str) -> None:
    """A line in one write: a signal may come in the middle of another print, whose locks must not be waited for."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"\nvitas: {words}\n".encode())
