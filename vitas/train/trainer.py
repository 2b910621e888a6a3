"""The one training loop, for the supernet and for a single architecture, on any backend of Accelerate."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from timm.data import Mixup
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitas.config import RankError, UserError
from vitas.data.batches import Batch
from vitas.data.plan import Plan, make_plan
from vitas.data.splits import Unreadable
from vitas.models.saved import save_weights
from vitas.recipe import Training
from vitas.report import tracking
from vitas.report.terminal import progress, say
from vitas.report.tracking import Tracker
from vitas.train import checkpoint, state
from vitas.train.memory import explained
from vitas.train.stop import EXIT_STOPPED, StopRequest

LOG_EVERY = 10

MOST_SKIPPED = 10
"""Steps left out in a row, after which the weights themselves are taken for spoiled."""

DEEPSPEED = DistributedType.DEEPSPEED


class Trainer:
    """Trains `model` from step 0, or from its last checkpoint, and leaves `model.safetensors` in `folder`.

    Args:
        accelerator: The one Accelerator of the run.
        model: What is trained; called as `model(images, *inputs(step))`.
        settings: Hyperparameters.
        stage: Name in the progress bar and in the metrics.
        folder: Where checkpoints and the final weights go.
        images: Number of training images.
        batches: Makes the loader of this rank's micro-batches for a plan.
        unreadable: The account of images that could not be read.
        inputs: Further inputs of the model at a step, the same on every rank.
        num_classes: Outputs of the classifier, for Mixup.
        seed: Seed of drop path and Mixup.
        tracker: Where metrics go.
        stop: Whether to stop early.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        model: nn.Module,
        settings: Training,
        stage: str,
        folder: Path,
        images: int,
        batches: Callable[[Plan], DataLoader[Batch]],
        unreadable: Unreadable,
        inputs: Callable[[int], tuple[Any, ...]],
        num_classes: int,
        seed: int,
        tracker: Tracker,
        stop: StopRequest,
    ) -> None:
        self.accelerator, self.settings, self.stage, self.folder = accelerator, settings, stage, folder
        self.batches, self.unreadable, self.inputs = batches, unreadable, inputs
        self.seed, self.tracker, self.stop = seed, tracker, stop
        plan, self.steps_per_epoch = make_plan(settings, images, stage, accelerator.num_processes)
        self.plan = replace(plan, rank=accelerator.process_index)
        augment = settings.augment
        self.mixup = (
            Mixup(augment.mixup, augment.cutmix, label_smoothing=settings.label_smoothing, num_classes=num_classes)
            if augment.mixup or augment.cutmix
            else None
        )
        self._prepare(model, compiled=getattr(settings, "compile", False), ema=getattr(settings, "ema", 0.0))

    def _prepare(self, model: nn.Module, *, compiled: bool, ema: float) -> None:
        """Wraps model and optimizer for the backend, and restores the last checkpoint."""
        accelerator, settings = self.accelerator, self.settings
        # The main process finds it for all, who must not differ in what they take for whole.
        found: list[Path | None] = [checkpoint.latest(self.folder) if accelerator.is_main_process else None]
        last = broadcast_object_list(found)[0]
        layout = checkpoint.layout(accelerator)
        facts = checkpoint.manifest(last) if last else {"step": 0, "layout": layout}
        self.start, fits = facts["step"], facts["layout"] == layout
        self.skipped, self.skipped_in_a_row = facts.get("skipped", 0), 0
        if settings.grad_checkpointing:
            model.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
        if compiled:
            model.compile()
        self.ema = ModelEmaV3(model, decay=ema, device=accelerator.device) if ema else None
        if last and self.ema:
            self.ema.module.load_state_dict(checkpoint.weights(last, average=True))
        # DeepSpeed's engine casts or parts the weights; the average is one of whole float32 weights.
        self.whole = deepcopy(self.ema.module) if self.ema and accelerator.distributed_type == DEEPSPEED else None
        groups = param_groups_weight_decay(model, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
        other = (checkpoint.weights(last), checkpoint.moments(last, model, optimizer)) if last and not fits else None
        if other:
            model.load_state_dict(other[0])  # before DeepSpeed's engine copies them
        accelerator.gradient_accumulation_steps = self.plan.accumulation
        if accelerator.distributed_type == DEEPSPEED:
            self._configure_deepspeed(sum(parameter.numel() for parameter in model.parameters()))
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=self.plan.stop,
            warmup_t=round(settings.warmup_epochs * self.steps_per_epoch),
            warmup_lr_init=1e-6,
            t_in_epochs=False,
        )
        if last and fits:
            accelerator.load_state(str(last))
            accelerator.step = 0  # its count of micro-batches: there may be more of them to a step now
        elif other:
            state.restore(accelerator, self.model, self.optimizer, *other)
        if last and accelerator.is_main_process:
            kept = "" if fits else f", saved by {facts['layout']}: with its weights and its optimizer's state"
            kept += "; the loss scale starts anew" if kept and accelerator.mixed_precision == "fp16" else ""
            say(f"{self.stage}: goes on from step {self.start} of {self.plan.stop}{kept}")

    def _configure_deepspeed(self, parameters: int) -> None:
        """DeepSpeed takes from its config what other backends are told in the loop."""
        stage, settings, plan = self.stage, self.settings, self.plan
        if settings.on_nonfinite == "skip" and plan.accumulation > 1:
            raise UserError(
                f"{stage}.on_nonfinite: skip: DeepSpeed keeps the gradients of earlier micro-batches; "
                f"raise {stage}.micro_batch_size to {plan.micro_batch * plan.accumulation}, or use stop"
            )
        plugin: Any = self.accelerator.state.deepspeed_plugin
        # One bucket that holds all gradients: DeepSpeed's own default takes 1 to 2 GB, however small the model.
        plugin.deepspeed_config["zero_optimization"].setdefault("reduce_bucket_size", parameters)
        plugin.deepspeed_config |= {
            "train_batch_size": plan.batch_size,
            "train_micro_batch_size_per_gpu": plan.micro_batch,
            "gradient_accumulation_steps": plan.accumulation,
            "gradient_clipping": settings.clip_grad,
        }

    def run(self) -> Path:
        """Trains to the end, from the last checkpoint if there is one; returns the file of the final weights."""
        weights = self.folder / "model.safetensors"
        self.tracker.rewind(self.stage, self.start)
        with self.stop:
            self._loop(self.start)
        final = self.ema.module.state_dict() if self.ema else state.weights(self.accelerator, self.model)
        if self.accelerator.is_main_process:
            save_weights(weights, final)
            for old in self.folder.glob("step_*"):
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self.model, self.optimizer = self.accelerator.free_memory(self.model, self.optimizer)
        return weights

    def _loop(self, start: int) -> None:
        settings, plan, main = self.settings, self.plan, self.accelerator.is_main_process
        batches = iter(self.batches(replace(plan, start=start)))
        bar = progress(self.stage, plan.stop, "step", show=main, initial=start)
        losses: list[float] = []
        logged, began = start, time.perf_counter()
        self.model.train()
        for step in range(start, plan.stop):
            self.schedule.step_update(step)
            with explained(partial(self._out_of_memory, step)):
                loss, stop = self._step(step, batches)
            losses += [loss] if math.isfinite(loss) else []
            done, bar_values = step + 1, {"loss": f"{loss:.3f}", "lr": f"{self._lr:.1e}"}
            if done % LOG_EVERY == 0 or done == plan.stop:
                speed = (done - logged) * plan.batch_size / (time.perf_counter() - began)
                values = {tracking.LOSS: sum(losses) / len(losses)} if losses else {}
                values |= {tracking.LR: self._lr, tracking.EPOCH: done / self.steps_per_epoch}
                values |= {tracking.IMAGES_PER_SECOND: speed} | (
                    {tracking.SKIPPED: self.skipped} if self.skipped else {}
                )
                self.tracker.log(self.stage, done, **values)
                bar.set_postfix(bar_values | {"images/s": f"{speed:.0f}"}, refresh=False)
                losses, logged, began = [], done, time.perf_counter()
            bar.update()
            if done == min(self.steps_per_epoch, plan.stop):
                self._tell_unreadable()
            due = done % settings.checkpoint_every == 0 and math.isfinite(loss)  # else the weights may be spoiled
            if stop or due:
                checkpoint.save(
                    self.accelerator,
                    self.model,
                    self.folder,
                    done,
                    keep=settings.keep_checkpoints,
                    skipped=self.skipped,
                    average=self.ema.module if self.ema else None,
                )
            if stop:
                bar.close()
                if main:
                    say(f"{self.stage}: stopped and saved after step {done}; the same command goes on")
                sys.exit(EXIT_STOPPED)
        bar.close()

    def _step(self, step: int, batches: Any) -> tuple[float, bool]:
        """One optimizer step; returns the loss over all ranks, and whether any rank was asked to stop."""
        inputs, total = self.inputs(step), torch.zeros(2, device=self.accelerator.device)
        mean = stop = 0.0
        for turn in range(self.plan.accumulation):
            images, labels = self._next(step, batches)
            # Drop path: every rank and micro-batch its own, and the same again after a resume.
            torch.manual_seed(_draw(self.seed, step, turn, self.accelerator.process_index))
            with self.accelerator.accumulate(self.model):
                logits = self.model(images, *inputs)
                smoothing = 0.0 if self.mixup else self.settings.label_smoothing
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
                total[0] += loss.detach() / self.plan.accumulation
                if turn == self.plan.accumulation - 1:
                    # Before the update, so that a loss that is not finite on any rank spoils no weights.
                    total[1] = float(bool(self.stop))
                    reduced: Any = self.accelerator.reduce(total, "mean")
                    mean, stop = reduced.tolist()
                    if not math.isfinite(mean):
                        self._not_finite(step)
                        return mean, stop > 0
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.settings.clip_grad:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.skipped_in_a_row = 0
        if self.ema:
            trained: Any = self.accelerator.unwrap_model(self.model)
            if self.whole is not None:
                self.whole.load_state_dict(state.weights(self.accelerator, self.model))
                trained = self.whole
            self.ema.update(trained, step)
        return mean, stop > 0

    def _next(self, step: int, batches: Any) -> tuple[Tensor, Tensor]:
        try:
            batch: Batch = next(batches)
        except UserError as error:  # of this rank's images; a worker's has a traceback before it
            raise RankError(str(error).strip().rpartition("UserError: ")[2]) from None
        self.unreadable.reasons.update(batch.unreadable)
        device = self.accelerator.device
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.labels))
        if self.mixup:
            np.random.seed(_draw(self.seed, step))  # timm's Mixup draws from numpy: the same on every rank
            images, labels = self.mixup(images, labels)
        if self.accelerator.distributed_type == DEEPSPEED:
            images = images.to(next(self.model.parameters()).dtype)  # its engine casts weights, not inputs
        return images, labels

    @property
    def _lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _tell_unreadable(self) -> None:
        everyone: list[dict[str, str]] = gather_object([self.unreadable.reasons])
        for reasons in everyone:
            self.unreadable.reasons.update(reasons)
        if self.accelerator.is_main_process:
            self.unreadable.tell(say)

    def _not_finite(self, step: int) -> None:
        """Stops, the same on all ranks, or leaves the step out and counts it."""
        stage, what = self.stage, self._what(step)
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.settings.on_nonfinite == "stop" or self.skipped_in_a_row == MOST_SKIPPED:
            times = f", the {MOST_SKIPPED}th in a row" if self.settings.on_nonfinite == "skip" else ""
            advice = f"lower {stage}.lr" + ("" if times else f", or leave such steps out: {stage}.on_nonfinite=skip")
            raise UserError(
                f"{stage}: the loss is not finite at step {step}{times}{what}; "
                f"last good checkpoint: {checkpoint.latest(self.folder) or 'none'}; {advice}"
            )
        self.optimizer.zero_grad()
        if self.accelerator.is_main_process:
            say(f"{stage}: step {step} is left out, its loss is not finite{what}; {self.skipped} so far")

    def _what(self, step: int) -> str:
        inputs = self.inputs(step)
        return f", architecture {inputs[0].model_dump_json()}" if inputs else ""

    def _out_of_memory(self, step: int) -> str:
        stage, plan = self.stage, self.plan
        ways = f"lower {stage}.micro_batch_size from {plan.micro_batch} (the batch stays {plan.batch_size})"
        ways += "" if self.settings.grad_checkpointing else f", or set {stage}.grad_checkpointing=true"
        return f"{stage}: out of memory at step {step}{self._what(step)}; {ways}"


def _draw(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
