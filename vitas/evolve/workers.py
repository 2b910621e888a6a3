"""The ranks as workers: they take jobs from one queue, so that a slow one holds up nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import TCPStore

J = TypeVar("J")
R = TypeVar("R")


class Workers:
    """All ranks, at work on the jobs of the main one.

    Args:
        accelerator: The one Accelerator of the run.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.store = _store(accelerator)
        self.rounds = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    def do(self, jobs: Sequence[J], work: Callable[[J], R], on_done: Callable[[int, int], None]) -> list[R]:
        """What `work` makes of each job, in any order, on every rank. All ranks call it; the main one's jobs count.

        A rank waits for the others only when no job is left. `on_done` is told how many of how many are done.
        """
        self.rounds += 1
        queue: Sequence[J] = broadcast_object_list([jobs])[0]
        on_done(0, len(queue))
        results: list[R] = []
        while (turn := self._add("taken")) <= len(queue):
            results.append(work(queue[turn - 1]))
            on_done(self._add("done"), len(queue))
        return gather_object(results)

    def _add(self, counter: str) -> int:
        return self.store.add(f"{counter}/{self.rounds}", 1)


class Job(NamedTuple):
    """A candidate on neighbouring slices of the images."""

    key: str
    first: int
    length: int


def jobs(missing: Sequence[tuple[str, Sequence[int]]], ranks: int) -> list[Job]:
    """The work of `ranks` ranks on candidates and the slices that each lacks, in their order.

    Large jobs first, and the smaller the fewer are left: ranks then end together, and seldom change the candidate.
    Give the costliest candidates first.
    """
    queue: list[Job] = []
    left = sum(len(numbers) for _, numbers in missing)
    for key, numbers in missing:
        for first, stop in _stretches(numbers):
            while first < stop:
                length = min(stop - first, max(1, left // (2 * ranks)))
                queue.append(Job(key, first, length))
                first, left = first + length, left - length
    return queue


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as stretches without a gap: first, and one past the last."""
    first = 0
    for at, number in enumerate(numbers):
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            yield numbers[first], number + 1
            first = at + 1


class _LocalStore:
    """The counters of a single process."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    def add(self, key: str, amount: int) -> int:
        self.counters[key] = self.counters.get(key, 0) + amount
        return self.counters[key]


def _store(accelerator: Accelerator) -> TCPStore | _LocalStore:
    """Counters that all ranks add to, kept by the main one."""
    if accelerator.num_processes == 1:
        return _LocalStore()
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False) if accelerator.is_main_process else None
    port = broadcast_object_list([store.port if store else 0])[0]
    return store or TCPStore(host, port, is_master=False)
