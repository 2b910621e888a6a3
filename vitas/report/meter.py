"""The figures of a training, step by step."""

from __future__ import annotations

import math
import time

from vitas.report import tracking


class Meter:
    """Mean loss and images a second since it was last read."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.step = step
        self.batch_size = batch_size
        self.losses: list[float] = []
        self.began = time.perf_counter()

    def add(self, loss: float) -> None:
        """Takes the loss of one step; one that is not finite does not count."""
        if math.isfinite(loss):
            self.losses.append(loss)

    def leave_out(self, seconds: float) -> None:
        """Takes time that was not spent on training out of the account."""
        self.began += seconds

    def read(self, step: int) -> dict[str, float]:
        """The figures up to `step`; begins anew."""
        now = time.perf_counter()
        speed = (step - self.step) * self.batch_size / (now - self.began)
        mean = {tracking.LOSS: sum(self.losses) / len(self.losses)} if self.losses else {}
        self.step, self.began, self.losses = step, now, []
        return mean | {tracking.IMAGES_PER_SECOND: speed}
