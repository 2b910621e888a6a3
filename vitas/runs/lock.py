"""One process a run folder: the second one is told who is at work there."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from vitas.config import UserError
from vitas.files import make_folder
from vitas.report.terminal import say

NOT_THERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems answer that have no locks."""
PATIENCE = 60.0
"""Seconds after which a file server has noticed, at the latest, that the holder's machine is gone."""


def hold(folder: Path, accelerator: Accelerator) -> TextIO | None:
    """Locks a run folder, on the main process alone. All ranks call it, and are told if it fails: see `lock`."""
    held, problem = None, None
    if accelerator.is_main_process:
        try:
            held = lock(folder)
        except UserError as error:
            problem = str(error)
    problem = broadcast_object_list([problem])[0]
    if problem:
        raise UserError(problem)
    return held


def lock(folder: Path) -> TextIO:
    """Locks a run folder for this process, as long as the returned file is open.

    The system frees the lock when the holder dies, however it dies; the host and process that `lock` names are for
    people. It is of the kind that network file systems know and that children do not inherit (POSIX record locks).

    Raises:
        UserError: Another process is at work in the folder; or it cannot be written.
    """
    make_folder(folder)
    file = (folder / "lock").open("a+")
    end = time.monotonic() + PATIENCE
    told = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in NOT_THERE:
                say(f"warning: {folder}: this file system has no locks: do not start the same run twice")
                break
            file.seek(0)
            host, _, process = file.read().strip().partition(" ")
        # A lock of another machine may be that of a job that queues again: its file server frees it in a while.
        if host in ("", socket.gethostname()) or time.monotonic() > end:
            raise UserError(
                f"{folder}: process {process or '?'} on {host or 'this machine'} is at work in this run; "
                "wait for it, or give this one another name"
            )
        if not told:
            say(f"{folder}: waits up to a minute for process {process} on {host} to let go")
            told = True
        time.sleep(1)
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}\n")
    file.flush()
    return file
