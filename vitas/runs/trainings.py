"""Trainings of single architectures, each on one rank alone, taken from one queue; what is done is never done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from vitas.config import RankError, UserError
from vitas.data.device import DeviceImages
from vitas.data.splits import Split
from vitas.evolve.scoring import tally
from vitas.evolve.store import Line, Store
from vitas.evolve.workers import Workers
from vitas.models import saved
from vitas.report.terminal import say
from vitas.runs import claims
from vitas.runs.run import Run
from vitas.runs.trained import TrainedSupernet
from vitas.runs.training import train_alone
from vitas.sections import Retraining
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.train.alone import one_thread
from vitas.train.memory import explained


class Job(NamedTuple):
    """A training of an architecture."""

    architecture: Architecture
    number: int = 0
    """How many seeds of it come before."""

    @property
    def name(self) -> tuple[str, int]:
        """Key and number."""
        return self.architecture.key, self.number


def _nothing(_: Architecture) -> Line:
    return {}


class Trainings:
    """Trainings of one schedule, and how well each does on the same images.

    Args:
        run: The run.
        stage: Their folder in the run. What is in it of another schedule is removed, but not its results.
        schedule: Of each of them.
        split: What they train on.
        images: What they are tested on.
        digest: A name of these images.
        workers: The ranks.
        source: The supernet whose weights they start from; left out, they start from new ones.
        about: More for the line of the first seed of an architecture.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        *,
        schedule: Retraining,
        split: Split,
        images: DeviceImages,
        digest: str,
        workers: Workers,
        source: TrainedSupernet | None = None,
        about: Callable[[Architecture], Line] = _nothing,
    ) -> None:
        self.run, self.stage, self.schedule, self.split = run, stage, schedule, split
        self.images, self.workers, self.source, self.about = images, workers, source, about
        self.known: dict[tuple[str, int], Line] = {}
        made_from = replace(run, recipe=run.recipe.model_copy(update={"retrain": schedule})).settings("retrain")
        made_from |= {
            "train": claims.images(split),
            "test": digest,
            "precision": run.accelerator.mixed_precision,
            "device": run.accelerator.device.type,
        }
        if source:
            made_from["supernet"] = source.checksum
        self.folder = run.folder / stage
        if run.accelerator.is_main_process:
            if claims.made_with(self.folder) != claims.plain(made_from):
                self._remove()  # begun with other settings
            claims.sign(self.folder, made_from)
        self.store = Store(self.folder / "trainings", made_from, run.writer)
        if run.accelerator.is_main_process:
            for line in self.store.read(_is_sound):
                self.known.setdefault((line["key"], line["number"]), line)

    @property
    def trained(self) -> Set[str]:
        """Keys of the architectures that were trained before, on the main rank."""
        return {key for key, _ in self.known}

    def do(self, wanted: Sequence[Job]) -> dict[tuple[str, int], Line]:
        """The lines of all trainings, on the main rank. All ranks call it; the main one's jobs count."""
        run, main = self.run, self.run.accelerator.is_main_process
        # The costliest first, so that the last ones are short and all ranks end together.
        wanted = sorted(wanted, key=lambda job: (-cost.count(job.architecture, run.num_classes)["macs"], job.name))
        queue = [job for job in wanted if job.name not in self.known]
        how = {"show": main, "initial": len(wanted) - len(queue)}
        bar = run.tracker.progress(self.stage, len(wanted), "training", **how)

        def show(done: int, of: int) -> None:
            if run.stop:
                run.stop.leave()
            bar.update(max(0, len(wanted) - of + done - bar.n) if main else 0)

        def at(step: int, of: int) -> None:
            bar.set_postfix(step=f"{step}/{of}", refresh=False)
            bar.update(0)

        for line in self.workers.do(queue, lambda job: self._train(job, at), show):
            self.known[line["key"], line["number"]] = line
        bar.close()
        everyone: list[dict[str, str]] = gather_object([self.split.unreadable.reasons])
        for reasons in everyone:
            self.split.unreadable.add(reasons)
        if main:
            self.split.unreadable.tell(say)
            self._remove()  # what nobody asks for any more
        return self.known

    def _train(self, job: Job, at: Callable[[int, int], None]) -> Line:
        """Trains, tests, and notes it, on this rank alone."""
        run, began = self.run, time.perf_counter()
        architecture, number = job
        stage, seed = f"{self.stage}/{architecture.key}-{number}", run.recipe.seed + number
        how: dict[str, Any] = {"seed": seed, "split": self.split, "on_step": at, "source": self.source}
        try:
            folder = train_alone(run, architecture, self.schedule, stage, **how)
        except UserError as error:  # the other ranks do not know
            raise error if isinstance(error, RankError) else RankError(str(error)) from None
        model = saved.load_model(folder).to(run.accelerator.device)
        size = run.recipe.evaluate.batch_size
        with (
            one_thread(run.accelerator.device),
            explained(lambda: f"{self.stage}: out of memory in a test; lower evaluate.batch_size from {size}"),
        ):
            right = tally(model, self.images, 0, len(self.images), batch_size=size)
            # The same for all seeds of an architecture: the first of them works it out.
            line = {} if number else self.about(architecture)
        line |= {"key": architecture.key, "number": number}
        line |= {"top1": 100 * right.top1 / right.images, "loss": right.loss / right.images}
        line |= {"seconds": time.perf_counter() - began, "rank": run.accelerator.process_index}
        self.store.append(line)
        shutil.rmtree(folder)
        return line

    def _remove(self) -> None:
        for folder in self.folder.glob("a*-*/"):
            shutil.rmtree(folder)


def _is_sound(line: Line) -> bool:
    figures = [line.get(name) for name in ("number", "top1", "loss")]
    return isinstance(line.get("key"), str) and all(isinstance(figure, (int, float)) for figure in figures)
