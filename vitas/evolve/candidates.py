"""What is known of candidates, and how the ranks find out what is not: costs that are measured, and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from accelerate.utils import broadcast_object_list

from vitas.evolve.evolution import Entry
from vitas.evolve.scores import Scores
from vitas.evolve.scoring import Scorer
from vitas.evolve.store import Line, Store
from vitas.evolve.workers import Job, Workers, jobs
from vitas.report.terminal import say
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture


class Candidates:
    """The candidates of a search. All ranks call its methods together; what the main rank knows counts.

    Args:
        workers: The ranks.
        num_classes: Outputs of the classifier.
        measure: Measures costs of an architecture on this rank's device, by name.
        measured: Names of the measured costs that the search needs.
        costs: Where measured costs are kept.
        scorer: Scores architectures on this rank's device.
        store: Where scores are kept.
        on_progress: Told between two jobs how many of how many are done, by all ranks.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        num_classes: int,
        measure: Callable[[Architecture], dict[str, float]],
        measured: Sequence[str],
        costs: Store,
        scorer: Scorer,
        store: Store,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.workers, self.num_classes, self.on_progress = workers, num_classes, on_progress
        self.measure, self.measured, self.cost_store = measure, measured, costs
        self.scorer, self.score_store = scorer, store
        self.is_main = workers.accelerator.is_main_process
        self.fresh: set[str] = set()
        """Keys that were scored since somebody emptied it, on the main rank."""
        self.known_costs: dict[str, Line] = {}
        if self.is_main:
            for line in costs.read(self._is_sound):
                self.known_costs.setdefault(line["key"], {}).update(line)
            self.scores = Scores(store, scorer.slices, scorer.net.sides)

    def costs(self, candidates: list[Architecture], *, measured: bool = True) -> list[Entry]:
        """Entries with the counted costs, and, unless only these are wanted, with those that are measured."""
        others = self._measured(candidates, "") if self.measured and measured else [{} for _ in candidates]
        return [
            {"key": candidate.key, "architecture": candidate.model_dump(mode="json")}
            | cost.count(candidate, self.num_classes)
            | costs
            for candidate, costs in zip(candidates, others, strict=True)
        ]

    def costs_again(self, candidate: Architecture) -> dict[str, float]:
        """The measured costs of a second measurement, made by the main rank while the others wait."""
        return self._measured([candidate], "again", alone=True)[0]

    def score(self, candidates: list[Architecture], part: float) -> list[Entry]:
        """`Scores.entry` of each, on a part of the images."""
        count = math.ceil(part * len(self.scorer.slices) - 1e-9)
        queue: list[tuple[Architecture, Job]] = []
        if self.is_main:
            by_key = {candidate.key: candidate for candidate in candidates}
            # The costliest first, so that the last jobs are small and all ranks end together.
            keys = sorted(by_key, key=lambda key: cost.count(by_key[key], self.num_classes)["macs"], reverse=True)
            missing = [(key, numbers) for key in keys if (numbers := self.scores.missing(key, count))]
            queue = [(by_key[job.key], job) for job in jobs(missing, self.workers.count)]
            self.fresh |= {key for key, _ in missing}
        if self.scorer.batch_size is None:
            self.scorer.batch_size = broadcast_object_list([self._batch_size(queue)])[0]
        for line in self.workers.do(queue, self._score, self.on_progress):
            if self.is_main:
                self.scores.add(line)
        entries = [self.scores.entry(candidate.key, count) for candidate in candidates] if self.is_main else []
        return broadcast_object_list([entries])[0]

    def _batch_size(self, queue: list[tuple[Architecture, Job]]) -> int | None:
        """That of the scores so far, so that all are made alike; else the fastest, if there is anything to score."""
        if not queue:
            return None
        size = self.scores.batch_size or self.scorer.fastest_batch(queue[len(queue) // 2][0])
        say(f"candidates are scored on {self.scorer.images.in_words}; {size} in a forward")
        return size

    def _score(self, job: tuple[Architecture, Job]) -> Line:
        candidate, (_, first, length) = job
        line = self.scorer.score(candidate, first, length) | {"rank": self.workers.accelerator.process_index}
        self.score_store.append(line)
        return line

    def _measured(self, candidates: list[Architecture], suffix: str, *, alone: bool = False) -> list[dict[str, float]]:
        def measure(candidate: Architecture) -> Line:
            found = {name + suffix: value for name, value in self.measure(candidate).items()}
            line = {"key": candidate.key} | found | {"rank": self.workers.accelerator.process_index}
            self.cost_store.append(line)
            return line

        names = [name + suffix for name in self.measured]
        queue = [c for c in candidates if not {*names} <= self.known_costs.get(c.key, {}).keys()]
        if alone:
            lines = [measure(candidate) for candidate in queue] if self.is_main else []
        else:
            lines = self.workers.do(queue, measure, self.on_progress)
        for line in lines:
            self.known_costs.setdefault(line["key"], {}).update(line)
        known = self.known_costs
        found = []
        if self.is_main:
            found = [{name: known[c.key][name + suffix] for name in self.measured} for c in candidates]
        return broadcast_object_list([found])[0]

    def _is_sound(self, line: Line) -> bool:
        numbers = [value for name, value in line.items() if name != "key"]
        return isinstance(line.get("key"), str) and all(
            isinstance(number, (int, float)) and math.isfinite(number) for number in numbers
        )
