"""Requests to stop, from signals or a file."""

from __future__ import annotations

import os
import signal
import sys

from vitas.files import expanded

EXIT_STOPPED = 75
"""Exit code of a run that was told to stop, has saved, and wants to be started again (EX_TEMPFAIL)."""

STOP_FILE = "VITAS_STOP_FILE"
"""Environment variable that names a file whose appearance asks for a stop (see launch/slurm)."""


class StopRequest:
    """Whether somebody asked this process to stop: by SIGTERM, SIGUSR1, or the file that `VITAS_STOP_FILE` names.

    Inside `with stop:` it is only noted, for work that must save first; else a signal ends the process.
    """

    def __init__(self) -> None:
        self.asked = self.noted = False
        named = os.environ.get(STOP_FILE)
        self.file = expanded(named) if named else None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True
        if not self.noted:
            sys.exit(EXIT_STOPPED)

    def __enter__(self) -> None:
        self.noted = True

    def __exit__(self, *_: object) -> None:
        self.noted = False

    def __bool__(self) -> bool:
        return self.asked or bool(self.file and os.path.exists(self.file))
