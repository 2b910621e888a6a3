"""Metrics: one JSON line each, always; to wandb through Accelerate, if asked. Metric names live here only."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from vitas.files import read_lines, write_atomically
from vitas.recipe import Recipe
from vitas.report.terminal import say

STAGE, STEP, EPOCH = "stage", "step", "epoch"

LOSS, LR, IMAGES_PER_SECOND, LEFT_OUT = "loss", "lr", "images_per_second", "left_out"

TOP1, TOP5, THROUGHPUT = "top1", "top5", "throughput"

BEST, SCORED = "best_top1", "scored"


class Tracker:
    """Writes metrics on the main process; on the others it does nothing.

    A run that is resumed forgets the steps it will repeat (`rewind`), so the file tells each step once.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.file = recipe.folder / "metrics.jsonl"
        self.accelerator = accelerator
        self.wandb = wandb_mode(recipe.tracking.wandb) if recipe.tracking.wandb != "never" else None
        if self.wandb:
            os.environ["WANDB_MODE"] = self.wandb
            # One wandb run a segment, grouped by name: offline segments cannot be appended to.
            options = {"name": recipe.name, "group": recipe.name, "dir": str(recipe.folder)}
            accelerator.init_trackers(recipe.tracking.project, recipe.model_dump(mode="json"), {"wandb": options})
            if accelerator.is_main_process:
                say(f"wandb: {self.wandb}" + ("" if self.wandb == "online" else f", in {recipe.folder}/wandb"))
                wandb_run: Any = accelerator.get_tracker("wandb", unwrap=True)
                for stage in recipe.stages:
                    wandb_run.define_metric(f"{stage}/*", step_metric=f"{stage}/{STEP}")

    def log(self, stage: str, step: int, **values: Any) -> None:
        """One line of metrics for one step of one stage."""
        if self.accelerator.is_main_process:
            with self.file.open("a") as lines:
                lines.write(json.dumps({STAGE: stage, STEP: step, **values}) + "\n")
        if self.wandb:
            self.accelerator.log({f"{stage}/{name}": value for name, value in ({STEP: step} | values).items()})

    def rewind(self, stage: str, step: int) -> None:
        """Forgets what this stage logged after `step`, and a line that a kill cut short."""
        if self.accelerator.is_main_process and self.file.is_file():
            kept = [line for line in read_lines(self.file) if line[STAGE] != stage or line[STEP] <= step]
            write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in kept))

    def finish(self) -> None:
        """Closes the trackers."""
        if self.wandb:
            self.accelerator.end_training()


def wandb_mode(asked: str, reachable: Callable[[], bool] | None = None) -> str:
    """`online` or `offline`: chosen before wandb starts, because a failed start cannot be retried offline."""
    if asked in ("online", "offline"):
        return asked
    import wandb

    logged_in = bool(os.environ.get("WANDB_API_KEY") or wandb.setup().settings.api_key)
    return "online" if logged_in and (reachable or _reachable)() else "offline"


def _reachable() -> bool:
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host, _, port = url.split("://")[-1].split("/")[0].partition(":")
    try:
        socket.create_connection((host, int(port or 443)), timeout=3).close()
    except OSError:
        return False
    return True
