"""The names of metrics, which live here only; `vitas.report.metrics` says what each is."""

from __future__ import annotations

STAGE, STEP, EPOCH = "stage", "step", "epoch"

LOSS, LR, IMAGES_PER_SECOND, LEFT_OUT = "loss", "lr", "images_per_second", "left_out"
GRAD_NORM, MFU, CHANGED = "grad_norm", "mfu", "changed"

TOP1, TOP5, THROUGHPUT = "top1", "top5", "throughput"

BEST, SCORED = {TOP1: "best_top1", LOSS: "best_loss"}, "scored"
MEDIAN = {TOP1: "median_top1", LOSS: "median_loss"}
FEASIBLE, HYPERVOLUME, CANDIDATES_PER_HOUR = "feasible", "hypervolume", "candidates_per_hour"

CHOSEN = ("patch_size", "embed_dim", "depth", "heads", "qkv_dim", "mlp_dim")
"""What architectures have chosen: distributions, of a generation."""

MODEL, INPUTS, SHAPE = "model", "inputs", "shape"

HOLDOUT, TEST, SECONDS, IMAGES = "holdout", "test", "seconds", "images"
"""Images of a validation, whose figures are called `test_top1`, ...; how long it took; a short name of the images."""

TAU, RHO, REGRET, CEILING = "tau", "rho", "regret", "ceiling"

OF_TIME = (IMAGES_PER_SECOND, MFU, SECONDS, CANDIDATES_PER_HOUR)
"""What comes out otherwise when the same is done again."""


def kind(stage: str) -> str:
    """`evolve` of the stage `evolve/front`: what its metrics are called by, whichever search it is."""
    return stage.partition("/")[0]
