"""Memory: what a training will need on each rank, and what to do when it was not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from vitas.config import RankError, one_line


@contextmanager
def explained(message: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory into one line: `message` says where it was, and what to lower.

    Raises:
        RankError: The device has no more memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise RankError(f"{message()} ({one_line(error)})") from error
