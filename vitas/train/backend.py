"""Model and optimizer under the backend that the launcher chose."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.optim import param_groups_weight_decay
from torch import nn

from vitas.config import UserError
from vitas.data.plan import Plan
from vitas.sections import Training

WAITS = "waits"
"""Of a group of parameters: whether it is not trained at first."""


def prepare(
    accelerator: Accelerator, model: nn.Module, settings: Training, plan: Plan, *, head_apart: bool = False
) -> tuple[Any, Any]:
    """The model and its AdamW, wrapped for the backend; without weight decay on biases and other 1-d weights.

    With `head_apart` the parameters of all but the classifier are in groups of their own, which `WAITS` marks.

    Raises:
        UserError: The backend cannot do what is asked for.
    """
    groups = param_groups_weight_decay(model, settings.weight_decay)
    if head_apart:
        head = {id(parameter) for parameter in model.get_classifier().parameters()}  # pyright: ignore[reportCallIssue]
        parts = [
            group | {WAITS: waits, "params": [one for one in group["params"] if (id(one) not in head) == waits]}
            for group in groups
            for waits in (True, False)
        ]
        groups = [part for part in parts if part["params"]]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    accelerator.gradient_accumulation_steps = plan.accumulation
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, model, settings, plan)
    return accelerator.prepare(model, optimizer)


def gradient_norm(accelerator: Accelerator, model: Any) -> float | None:
    """The norm of a step's gradient, before any clipping; None where the backend does not tell it, or it is infinite.

    Called between the backward pass and the update, which under DeepSpeed is over by then.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        norm = model.get_global_grad_norm()
    else:
        norm = nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
        if accelerator.scaler:
            norm = norm / accelerator.scaler.get_scale()
    return float(norm) if norm is not None and math.isfinite(norm) else None


def _configure_deepspeed(accelerator: Accelerator, model: nn.Module, settings: Training, plan: Plan) -> None:
    """DeepSpeed takes from its config what other backends are told in the loop."""
    if settings.on_nonfinite == "skip" and plan.accumulation > 1:
        raise UserError(
            f"{settings.section}.on_nonfinite: skip: DeepSpeed keeps the gradients of earlier micro-batches; "
            f"raise {settings.section}.micro_batch_size to {plan.micro_batch * plan.accumulation}, or use stop"
        )
    plugin: Any = accelerator.state.deepspeed_plugin
    # One bucket that holds all gradients: DeepSpeed's own default takes 1 to 2 GB, however small the model.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    plugin.deepspeed_config["zero_optimization"].setdefault("reduce_bucket_size", parameters)
    plugin.deepspeed_config |= {
        "train_batch_size": plan.batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": settings.clip_grad,
    }
