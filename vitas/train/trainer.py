"""The one training loop, for the supernet and for a single architecture, on any backend of Accelerate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from vitas.config import SourceLost, UserError
from vitas.data.batches import Batch, TrainingData
from vitas.data.plan import make_plan
from vitas.models.saved import save_weights
from vitas.report import tracking
from vitas.report.meter import Meter, peak
from vitas.report.tables import training_table
from vitas.report.terminal import say
from vitas.report.tracking import Tracker, Untracked
from vitas.sections import Training
from vitas.train import backend, checkpoint, failures, state
from vitas.train.alone import gather
from vitas.train.average import Average
from vitas.train.feed import Feed, draw
from vitas.train.memory import explained, slow_half
from vitas.train.objectives import Objective, cross_entropy
from vitas.train.resume import find_last
from vitas.train.stop import StopRequest
from vitas.train.validation import AVERAGE, MODEL, Validation, leave_best

LOG_EVERY = 10
MOST_LEFT_OUT = 10
"""Steps left out in a row, after which the weights themselves are taken for spoiled."""


class Outcome(NamedTuple):
    """What all ranks know after a step."""

    loss: float
    """The mean over all ranks."""
    stop: bool
    """Whether any rank was asked to stop."""
    save: bool
    """Whether a checkpoint is due by the clock."""
    lost: bool
    """Whether any rank has no images."""
    unreadable: bool
    """Whether any rank has found images that cannot be read."""


class Trainer:
    """Trains `model` from step 0, or from its last checkpoint, and leaves `model.safetensors` in `folder`.

    Where validations look for the best weights, these are left beside it, in `best.safetensors`.

    Args:
        accelerator: The one Accelerator of the run, or what stands in for it (`vitas.train.alone`).
        model: What is trained; called as `model(images, *inputs(step))`.
        settings: Hyperparameters.
        folder: Where checkpoints and the final weights go.
        stage: What the training is called in metrics and in all that is told.
        data: The training images.
        inputs: Further inputs of the model at a step, the same on every rank.
        tracker: Where metrics go.
        stop: Whether to stop early.
        on_step: Told after each step how many of how many are done, in place of a progress bar and of lines.
        objective: What is made small.
        validation: What is validated meanwhile, if anything.
        macs: Counts the multiply-adds of a forward of one image with these further inputs, if that is known.
        head_epochs: Epochs at the beginning that train the classifier alone. The rest then has a learning rate of zero
            rather than no gradients: every backend sees the same parameters at all steps.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        model: nn.Module,
        settings: Training,
        folder: Path,
        stage: str,
        data: TrainingData,
        inputs: Callable[[int], tuple[Any, ...]],
        tracker: Tracker | Untracked,
        stop: StopRequest,
        on_step: Callable[[int, int], None] | None = None,
        objective: Objective = cross_entropy,
        validation: Validation | None = None,
        macs: Callable[..., int] | None = None,
        head_epochs: float = 0,
    ) -> None:
        self.accelerator = accelerator
        self.settings = settings
        self.folder = folder
        self.stage = stage
        self.data = data
        self.inputs = inputs
        self.tracker = tracker
        self.stop = stop
        self.on_step = on_step
        self.shows = accelerator.is_main_process and on_step is None
        self.objective = objective
        self.validation = validation
        self.macs, self.peak = macs, peak(accelerator.device, accelerator.mixed_precision)
        self.gradient_norm: float | None = None
        self.drawn: tuple[Any, ...] = ()
        plan, self.steps_per_epoch = make_plan(settings, data.size, settings.section, accelerator.num_processes)
        self.plan = replace(plan, rank=accelerator.process_index)
        self.head_steps = round(head_epochs * self.steps_per_epoch)
        self.feed = Feed(accelerator, data, settings)
        self.writer = checkpoint.Writer(folder, settings.keep_checkpoints)
        self.last = find_last(accelerator, folder, settings)
        if self.last.step > plan.stop:
            raise UserError(
                f"{settings.section}.epochs: {self.last.step} steps are done, and the recipe ends at {plan.stop}"
            )
        self.left_out = self.last.left_out
        self.left_out_in_a_row = 0
        self.validated, self.best = self.last.validated, self.last.state and self.last.state.best
        self.told: dict[str, str] = {}
        if slow := slow_half(accelerator.device.type == "cpu", accelerator.mixed_precision):
            self._say(f"{stage}: {slow}")
        self._prepare(model)

    def _prepare(self, model: nn.Module) -> None:
        """Wraps model and optimizer for the backend, and restores the last checkpoint."""
        accelerator, settings, saved = self.accelerator, self.settings, self.last.state
        if settings.grad_checkpointing:
            model.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
        self.average = Average(accelerator, model, settings.ema) if settings.ema else None
        if saved:
            model.load_state_dict(saved.weights)  # before DeepSpeed's engine copies them
            if self.average and saved.average:
                self.average.module.load_state_dict(saved.average)
        self.model, self.optimizer = backend.prepare(
            accelerator, model, settings, self.plan, head_apart=self.head_steps > 0
        )
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=self.plan.stop,
            warmup_t=round(settings.warmup_epochs * self.steps_per_epoch),
            warmup_lr_init=1e-6,
            t_in_epochs=False,
        )
        if saved:
            state.restore(accelerator, self.model, self.optimizer, saved)
            self._say(f"{self.stage}: goes on from step {self.last.step} of {self.plan.stop}")

    def run(self) -> Path:
        """Trains to the end, from the last checkpoint if there is one; returns the file of the final weights."""
        weights = self.folder / "model.safetensors"
        if self.accelerator.is_main_process:
            (self.folder / checkpoint.BEST).unlink(missing_ok=True)  # of a training before
        self.tracker.rewind(self.stage, self.last.step, self.validated)
        if change := self.last.change:
            self.tracker.log(self.stage, self.last.step + 1, changed=change)
            told = ", ".join(f"{name} {new} in place of {old}" for name, (old, new) in change.items())
            self._say(f"{self.stage}: from step {self.last.step} on with {told}")
        with self.stop, failures.lost_ranks(lambda: f"{self.stage}: in training"):
            self._loop()
        final = self.average.module.state_dict() if self.average else state.weights(self.accelerator, self.model)
        self.writer.wait()
        if lines := self.tracker.lines_of(self.stage):
            self._say(training_table(self.stage, lines))
        if self.accelerator.is_main_process:
            if self.best:
                leave_best(self.folder / checkpoint.BEST, self.best, self.stage)
            save_weights(weights, final)
            checkpoint.remove_all(self.folder)
        self.accelerator.wait_for_everyone()
        self.model, self.optimizer = self.accelerator.free_memory(self.model, self.optimizer)
        return weights

    def _loop(self) -> None:
        plan = self.plan
        batches = iter(self.data.batches(replace(plan, start=self.last.step)))
        meter = Meter(self.last.step, plan.batch_size, self.peak and plan.world * self.peak if self.macs else None)
        self.saved_at = time.monotonic()
        self.model.train()
        if self.validated < self.last.step and self._is_validation_due(self.last.step):
            self._validate(self.last.step, meter)  # it stopped there without
        how = {"show": self.shows, "initial": self.last.step}
        with self.tracker.progress(self.stage, plan.stop, "step", **how) as bar:
            for step in range(self.last.step, plan.stop):
                self.schedule.step_update(step)
                if step < self.head_steps:
                    for group in self.optimizer.param_groups:
                        group["lr"] *= not group[backend.WAITS]
                with explained(partial(self._out_of_memory, step)):
                    outcome = self._step(step, batches)
                if outcome.lost:
                    self._leave_without_images(step)
                if step == self.last.step:  # it may have waited for a first batch, a compiler, a stream's old images
                    failures.wait_short()
                self.writer.check()
                meter.add(outcome.loss, self.macs(*self.drawn) if meter.peak and self.macs else 0)
                done = step + 1
                if outcome.unreadable:
                    self.feed.share_found()
                    if self.shows and not self.data.unreadable.told:
                        self.data.unreadable.tell(say)  # of the first at once, of all after an epoch
                if self._is_validation_due(done) and not outcome.stop:  # which must be quick
                    self._validate(done, meter)
                lr = max(group["lr"] for group in self.optimizer.param_groups)
                if self._is_logged(done):
                    values = meter.read(done) | {tracking.LR: lr, tracking.EPOCH: done / self.steps_per_epoch}
                    if self.gradient_norm is not None:
                        values[tracking.GRAD_NORM] = self.gradient_norm
                    if self.left_out:
                        values[tracking.LEFT_OUT] = self.left_out
                    self.tracker.log(self.stage, done, **values)
                    told = {"loss": f"{outcome.loss:.3f}"} | self.told
                    told |= {"images/s": f"{values[tracking.IMAGES_PER_SECOND]:.0f}", "lr": f"{lr:.1e}"}
                    bar.set_postfix(told, refresh=False)
                bar.update()
                if self.on_step:
                    self.on_step(done, plan.stop)
                if done == min(self.last.step + self.steps_per_epoch, plan.stop) and self.shows:
                    self.data.unreadable.tell(say)
                if outcome.stop or (self._is_due(done, outcome) and math.isfinite(outcome.loss)):
                    self._save(done)
                if outcome.stop:
                    bar.close()
                    self.writer.wait()
                    self.stop.words = f"{self.stage}: stopped and saved after step {done}; the same command goes on"
                    self.stop.leave()

    def _leave_without_images(self, step: int) -> None:
        """Saves what was done before a step whose images cannot be had, and ends. All ranks call it."""
        why = next(filter(None, gather(self.accelerator, [self.feed.lost])))
        if step > self.last.step:
            self._save(step)
        self.writer.wait()
        if self.on_step:  # alone: the other ranks do not know
            raise SourceLost(why)
        self.stop.ask_for_another_start()
        self.stop.words = f"{why}; {self.stage}: saved after step {step}; the same command goes on"
        self.stop.leave()

    def _is_logged(self, done: int) -> bool:
        return done % LOG_EVERY == 0 or done == self.plan.stop

    def _is_validation_due(self, done: int) -> bool:
        return bool(self.validation and self.validation.is_due(done, self.steps_per_epoch, self.plan.stop))

    def _validate(self, done: int, meter: Meter) -> None:
        """Notes the figures of the weights after so many steps, and keeps the best ones. All ranks call it."""
        assert self.validation
        began = time.perf_counter()
        weights = {MODEL: state.weights(self.accelerator, self.model)}
        if self.average:
            weights[AVERAGE] = self.average.module.state_dict()
        facts: dict[str, Any] = {tracking.EPOCH: done / self.steps_per_epoch}
        tops, figures = [], {}
        for name, figures in self.validation.figures(weights, self.stage, show=self.shows):
            self.tracker.log(self.stage, done, **facts, **{tracking.MODEL: name}, **figures)
            tops.append(f"{figures[self.validation.metric(tracking.TOP1)]:.1f}")
        if self.accelerator.is_main_process:
            self.best = self.validation.better(self.best, {tracking.STEP: done} | facts | figures, weights)
        self.validated, self.told = done, {"top-1": "/".join(tops[:2])}
        meter.leave_out(time.perf_counter() - began)

    def _is_due(self, done: int, outcome: Outcome) -> bool:
        every = self.settings.checkpoint_every
        return outcome.save or (every is not None and done % every == 0)

    def _save(self, done: int) -> None:
        """Takes a copy of the state; it is written while training goes on."""
        average = self.average.module if self.average else None
        taken = state.capture(self.accelerator, self.model, self.optimizer, average, self.best)
        if taken:
            self.writer.save(taken, done, self.last.facts | {"left_out": self.left_out, "validated": self.validated})
        self.saved_at = time.monotonic()

    def _step(self, step: int, batches: Iterator[Batch]) -> Outcome:
        """One optimizer step."""
        inputs = self.drawn = self.inputs(step)
        self.gradient_norm = None
        total = torch.zeros(5, device=self.accelerator.device)
        outcome = Outcome(0.0, False, False, False, False)
        for turn in range(self.plan.accumulation):
            images, labels = self.feed.take(batches, step)
            # Drop path: every rank and micro-batch its own, and the same again after a resume.
            self._seed(draw(self.data.seed, step, turn, self.accelerator.process_index))
            with self.accelerator.accumulate(self.model):
                outputs = self.model(images, *inputs)
                loss = self.objective(outputs, labels, 0.0 if self.feed.mixup else self.settings.label_smoothing)
                total[0] += loss.detach() / self.plan.accumulation
                if turn == self.plan.accumulation - 1:
                    # Before the update, so that a loss that is not finite on any rank spoils no weights.
                    outcome = self._agree(total)
                    if outcome.lost:
                        return outcome
                    if not math.isfinite(outcome.loss):
                        self._leave_out(step)
                        return outcome
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    if self._is_logged(step + 1):
                        self.gradient_norm = backend.gradient_norm(self.accelerator, self.model)
                    if self.settings.clip_grad:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        self.left_out_in_a_row = 0
        if self.average:
            self.average.update(self.model, step)
        return outcome

    def _seed(self, seed: int) -> None:
        if self.accelerator.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # its alone: torch.manual_seed costs 1 ms without a GPU
        else:
            torch.manual_seed(seed)

    def _agree(self, total: Tensor) -> Outcome:
        """The outcome on all ranks, from the loss of this one in `total`; the main rank's clock counts."""
        minutes = self.settings.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        total[1] = float(bool(self.stop))
        total[2] = float(late and self.accelerator.is_main_process)
        total[3] = float(bool(self.feed.lost))
        total[4] = float(bool(self.feed.found))
        reduced: Any = self.accelerator.reduce(total, "mean")
        loss, *flags = reduced.tolist()
        return Outcome(loss, *(flag > 0 for flag in flags))

    def _leave_out(self, step: int) -> None:
        """Leaves out a step whose loss is not finite, the same on all ranks, and counts it; or ends the training."""
        self.left_out += 1
        self.left_out_in_a_row += 1
        stops = self.settings.on_nonfinite == "stop"
        if stops or self.left_out_in_a_row == MOST_LEFT_OUT:
            in_a_row = None if stops else MOST_LEFT_OUT
            self.writer.wait()
            raise UserError(
                failures.not_finite(self.stage, step, self._what(step), self.folder, self.settings, in_a_row)
            )
        self.optimizer.zero_grad()
        what = self._what(step)
        self._say(f"{self.stage}: step {step} is left out, its loss is not finite{what}; {self.left_out} so far")

    def _what(self, step: int) -> str:
        shapes = [architecture.model_dump_json() for architecture in self.inputs(step)]
        return f", architecture{'s' * (len(shapes) > 1)} {', '.join(shapes)}" if shapes else ""

    def _out_of_memory(self, step: int) -> str:
        return failures.out_of_memory(self.stage, step, self._what(step), self.plan, self.settings)

    def _say(self, text: str) -> None:
        if self.shows:
            say(text)
