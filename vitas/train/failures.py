"""What can end a training early, in words: one line each, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import distributed_c10d

from vitas.config import RankLost, one_line
from vitas.data.plan import Plan
from vitas.sections import Training
from vitas.train import checkpoint

LONG_WAIT = timedelta(hours=6)
"""How long ranks wait for each other outside training: one may decode or count while the others wait."""
SHORT_WAIT = timedelta(minutes=10)
"""How long they wait in training, where all do the same."""


def not_finite(stage: str, step: int, what: str, folder: Path, settings: Training, in_a_row: int | None) -> str:
    """The loss is not finite; `in_a_row` is how many such steps were left out before it, if steps are left out."""
    advice = f"lower {settings.section}.lr"
    times = ""
    if in_a_row is None:
        advice += f", or leave such steps out: {settings.section}.on_nonfinite=skip"
    else:
        times = f", the {in_a_row}th in a row"
    last = checkpoint.latest(folder) or "none"
    return (
        f"{stage}: the loss is not finite at step {step}{times}{what}; last good checkpoint: {last}; "
        f"{advice}; the same command goes on with that"
    )


def out_of_memory(stage: str, step: int, what: str, plan: Plan, settings: Training) -> str:
    """The device has no more memory."""
    ways = f"lower {settings.section}.micro_batch_size from {plan.micro_batch} (the batch stays {plan.batch_size})"
    if not settings.grad_checkpointing:
        ways += f", or set {settings.section}.grad_checkpointing=true"
    return f"{stage}: out of memory at step {step}{what}; {ways}"


@contextmanager
def lost_ranks(message: Callable[[], str]) -> Iterator[None]:
    """Ranks that end, or do not answer in time, end the others with one line: `message` says where.

    The time is `SHORT_WAIT` from `wait_short` on, and `LONG_WAIT` again afterwards.

    Raises:
        RankLost: Another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:  # of gloo it is nothing more special
        if not any(word in str(error).lower() for word in ("timed out", "timeout", "closed by peer", "reset by peer")):
            raise
        minutes = SHORT_WAIT.total_seconds() / 60
        raise RankLost(
            f"{message()}: another rank has ended, or did not answer for {minutes:g} minutes ({one_line(error)}); "
            "the same command goes on from the last checkpoint"
        ) from error
    finally:
        _set_wait(LONG_WAIT)


def wait_short() -> None:
    """From here on all ranks do the same, and need not wait long for each other."""
    _set_wait(SHORT_WAIT)


def _set_wait(wait: timedelta) -> None:
    if dist.is_initialized():
        # torch below 2.14 has it under its private name alone.
        set_timeout = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
        set_timeout(wait)
