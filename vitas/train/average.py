"""A moving average of the weights, in float32 on every backend."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.utils import ModelEmaV3
from torch import nn

from vitas.train import state


class Average:
    """The moving average of a model that is not prepared yet; `module` holds it.

    Args:
        accelerator: The one Accelerator of the run.
        model: The model.
        decay: What stays of the average at each update.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, decay: float) -> None:
        self.accelerator = accelerator
        self.ema = ModelEmaV3(model, decay=decay, device=accelerator.device)
        self.module: nn.Module = self.ema.module
        # DeepSpeed's engine casts or parts the weights; the average is one of whole float32 weights.
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.whole = deepcopy(self.module) if deepspeed else None

    def update(self, model: Any, step: int) -> None:
        """Takes in the weights of the prepared model after a step. All ranks call it."""
        trained: Any = self.accelerator.unwrap_model(model)
        if self.whole is not None:
            self.whole.load_state_dict(state.weights(self.accelerator, model))
            trained = self.whole
        self.ema.update(trained, step)
