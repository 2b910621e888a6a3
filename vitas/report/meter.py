"""The figures of a training, step by step."""

from __future__ import annotations

import math
import time

import torch

from vitas.report import tracking

PEAKS = {
    "B200": (2250, 1125),
    "H200": (989, 495),
    "GH200": (989, 495),
    "H100 PCIe": (756, 378),
    "H100": (989, 495),
    "A100": (312, 156),
    "L40S": (362, 183),
    "L4": (121, 60),
    "A10G": (70, 35),
    "A10": (125, 62),
    "RTX 4090": (165, 83),
    "RTX 3090": (71, 36),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
}
"""Dense teraFLOPS a second of a device in 16 bits and in float32 (TF32 where there is), by its makers' data sheets."""


def peak(device: torch.device, precision: str) -> float | None:
    """FLOPS a second that a device can reach at most in Accelerate's `precision`, if it is a known one."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    known = next((peaks for name, peaks in PEAKS.items() if set(name.split()) <= set(words)), None)
    return known and 1e12 * known[0 if precision in ("bf16", "fp16") else 1]


class Meter:
    """Mean loss and images a second since it was last read, and what part that is of the devices' peak.

    Args:
        step: Where it begins.
        batch_size: Images of a step.
        peak: FLOPS a second of all devices together, if known.
    """

    def __init__(self, step: int, batch_size: int, peak: float | None = None) -> None:
        self.step = step
        self.batch_size = batch_size
        self.peak = peak
        self.losses: list[float] = []
        self.macs = 0
        self.began = time.perf_counter()

    def add(self, loss: float, macs: int = 0) -> None:
        """Takes the loss of one step, and an image's multiply-adds; a loss that is not finite does not count."""
        self.macs += macs
        if math.isfinite(loss):
            self.losses.append(loss)

    def leave_out(self, seconds: float) -> None:
        """Takes time that was not spent on training out of the account."""
        self.began += seconds

    def read(self, step: int) -> dict[str, float]:
        """The figures up to `step`; begins anew."""
        now = time.perf_counter()
        seconds = now - self.began
        found = {tracking.LOSS: sum(self.losses) / len(self.losses)} if self.losses else {}
        found[tracking.IMAGES_PER_SECOND] = (step - self.step) * self.batch_size / seconds
        if self.peak:  # a multiply-add is two, and the backward pass twice the forward pass
            found[tracking.MFU] = 100 * 6 * self.macs * self.batch_size / seconds / self.peak
        self.step, self.began, self.losses, self.macs = step, now, [], 0
        return found
