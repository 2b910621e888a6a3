"""Scores candidates across ranks, each on the next free rank, and journals every score before it is used."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import TCPStore

from vitas.search.journal import Entry, Journal
from vitas.spaces.architecture import Architecture


class Workers:
    """The ranks as workers: they take candidates from one queue, so that a slow one holds up nobody.

    Args:
        accelerator: The one Accelerator of the run.
        score: Scores one architecture on this rank's device; returns what the journal shall say of it.
        journal: Where scores are kept; what it holds already is not scored again.
    """

    def __init__(
        self, accelerator: Accelerator, score: Callable[[Architecture], dict[str, Any]], journal: Journal
    ) -> None:
        self.accelerator = accelerator
        self.score = score
        self.journal = journal
        self.store = _store(accelerator)
        self.rounds = 0

    def score_all(self, candidates: list[Architecture], on_score: Callable[[int], None]) -> list[Entry]:
        """The entries of `candidates`, in their order, on every rank. All ranks call it; the main one's list counts.

        `on_score` is told how many of them are scored so far, by all ranks.
        """
        self.rounds += 1
        candidates = broadcast_object_list([candidates])[0]
        todo = {candidate.key: candidate for candidate in candidates if candidate.key not in self.journal.entries}
        queue = list(todo.items())
        known = len({candidate.key for candidate in candidates}) - len(todo)
        on_score(known)
        scored: list[Entry] = []
        while (turn := self._add("taken")) <= len(queue):
            key, candidate = queue[turn - 1]
            entry = {"key": key, **self.score(candidate), "rank": self.accelerator.process_index}
            entry["architecture"] = candidate.model_dump(mode="json")
            self.journal.append(entry)
            scored.append(entry)
            on_score(known + self._add("done"))
        everyone: list[Entry] = gather_object(scored)
        self.journal.entries.update((entry["key"], entry) for entry in everyone)
        return [self.journal.entries[candidate.key] for candidate in candidates]

    def _add(self, counter: str) -> int:
        return self.store.add(f"{counter}/{self.rounds}", 1)


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
