"""How long a recipe will take: its stages run for a few steps, with the same code, and what follows from it."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from vitas.config import parse
from vitas.files import read_lines
from vitas.models.supernet import Supernet
from vitas.recipe import Recipe, merge
from vitas.report import tracking
from vitas.runs import stages
from vitas.spaces.budget import Budget, calibrate_skip
from vitas.spaces.space import SearchSpace

STEPS = 20
"""Of a training; the speed is that of the second half."""
MOST_IMAGES = 40_000
"""Of a training that is rehearsed."""
HOLDOUT = 200
"""Images that candidates are scored on in a rehearsal."""
POPULATION, GENERATIONS = 6, 3


@dataclass(frozen=True)
class Speeds:
    """What was measured."""

    supernet: float
    """Images a second."""
    retrain: float
    """Images a second."""
    score: float
    """Seconds to score a candidate on one image, its share of what a search needs besides included."""
    decode: float
    """Seconds to decode an image for scoring, with its share of the start of a stage."""


def step_speed(space: SearchSpace, budget: Budget, classes: int) -> float:
    """Images a second of the supernet's forward and backward passes on the device, reading none. Takes seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = 128 if device.type == "cuda" else 8
    skip = calibrate_skip(space, budget, classes)
    net = Supernet(space, classes, sharing="bilateral", attention="private_qk").to(device)
    images = torch.randn(batch, 3, space.image_size, space.image_size, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    began = 0.0
    for step in range(6):
        if step == 2:
            began = time.perf_counter()
        loss: Any = nn.functional.cross_entropy(net(images, space.sample(0, step, skip=skip)), labels)
        loss.backward()
        loss.item()  # waits for the device
    return 4 * batch / (time.perf_counter() - began)


def measure(values: dict[str, Any], images: int, held_out: int) -> Speeds:
    """Runs the stages of a recipe for a few steps in a folder that does not stay.

    Args:
        values: Of the recipe.
        images: Of its training, the hold-out included.
        held_out: Images that its candidates are scored on.

    Raises:
        UserError: As the run itself.
    """
    scored = min(held_out, HOLDOUT)

    def short(section: str) -> dict[str, float]:
        batch = values[section]["batch_size"]
        steps = max(2, min(STEPS, MOST_IMAGES // batch))
        # Half a step more: what is held out changes how many steps an epoch has.
        return {"epochs": (steps + 0.5) / max(1, (images - scored) // batch), "warmup_epochs": 0}

    with TemporaryDirectory() as scratch:
        fewer = {"name": "rehearsal", "output": scratch, "data": {"holdout": scored / images}}
        few = {section: short(section) for section in ("supernet", "retrain")}
        shortened = merge(merge(values, fewer), few)

        def run(stage: str, **evolve: int) -> float:
            began = time.perf_counter()
            with redirect_stdout(io.StringIO()):
                stages.run(parse(Recipe, merge(shortened, {"stages": [stage], "evolve": evolve}), source="rehearsal"))
            return time.perf_counter() - began

        run("supernet")
        with_decoding = run("evolve", population=POPULATION, generations=1)
        again = run("evolve", population=POPULATION, generations=GENERATIONS)
        run("retrain")
        lines = read_lines(Path(scratch) / "rehearsal" / "metrics.jsonl")
    speeds = {line[tracking.STAGE]: line[tracking.IMAGES_PER_SECOND] for line in lines
              if tracking.IMAGES_PER_SECOND in line}  # fmt: skip
    candidates = POPULATION * (GENERATIONS - 1)
    return Speeds(speeds["supernet"], speeds["retrain"], again / candidates / scored, with_decoding / scored)
