"""The state of a training, whole and of no backend: float32 weights and Adam's moments, by parameter name.

It is taken from, and given to, a model and an optimizer under any backend and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"
"""How many updates the moments have seen: Adam corrects its bias by it."""


class Best(NamedTuple):
    """The weights that did best in a validation."""

    facts: dict[str, Any]
    """When that was, and its figures, under the names of metrics."""
    weights: Mapping[str, Tensor]
    """By parameter name, in float32, in the host's memory."""


@dataclass(frozen=True)
class TrainingState:
    """All that a training needs to go on, in the host's memory."""

    weights: Mapping[str, Tensor]
    """By parameter name, in float32."""
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    """Adam's, as `MOMENT/PARAMETER`, and `UPDATES`; empty before the first update."""
    average: Mapping[str, Tensor] | None = None
    """The moving average of the weights, if there is one."""
    loss_scale: tuple[float, int] | None = None
    """Of fp16: the scale, and the updates since it last changed."""
    best: Best | None = None
    """What did best so far, if validations look for it."""


def capture(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    average: nn.Module | None = None,
    best: Best | None = None,
) -> TrainingState | None:
    """A copy of the state of a prepared model and optimizer, on the main process. All ranks call it.

    What goes on training afterwards does not touch the copy.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        whole, moments = weights(accelerator, model), _gather_moments(model)  # from all ranks
    elif accelerator.is_main_process:
        whole, moments = weights(accelerator, model), _moments(accelerator.unwrap_model(model), optimizer)
    else:
        return None
    if not accelerator.is_main_process:
        return None
    return TrainingState(
        on_host(whole),
        on_host(moments),
        on_host(average.state_dict()) if average is not None else None,
        _loss_scale(accelerator, optimizer),
        best,
    )


def weights(accelerator: Accelerator, model: Any) -> dict[str, Tensor]:
    """The whole float32 weights of a prepared model, ZeRO's masters of half-precision ones too. All ranks call it."""
    module: Any = accelerator.unwrap_model(model)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return module.state_dict()
    from deepspeed.utils import safe_get_full_fp32_param as full

    found = {name: _present(full(parameter)) for name, parameter in module.named_parameters()}
    return found | dict(module.named_buffers())


def restore(accelerator: Accelerator, model: Any, optimizer: Any, state: TrainingState) -> None:
    """Gives a prepared model and optimizer of any backend the state of another. All ranks call it.

    The model was made with its weights; what is left is the optimizer's state and, under DeepSpeed, its own weights.
    """
    module: Any = accelerator.unwrap_model(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _restore_zero(optimizer.optimizer, module, state.weights, state.moments)
    elif state.moments:
        names = _names(module, optimizer)
        moments = {
            index: {moment: state.moments[f"{moment}/{name}"] for moment in MOMENTS}
            | {"step": state.moments[UPDATES].clone()}  # one for each: a shared one is counted up by each
            for index, name in enumerate(names)
        }
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if state.loss_scale:
        _restore_loss_scale(accelerator, optimizer, *state.loss_scale)


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, in float32."""
    return {name: value.detach().to("cpu", torch.float32, copy=True).contiguous() for name, value in tensors.items()}


def _moments(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """Adam's moments of a torch AdamW, as `MOMENT/PARAMETER`."""
    if not optimizer.state:
        return {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    named = dict(zip(_names(model, optimizer), parameters, strict=True))
    found = {f"{moment}/{name}": optimizer.state[named[name]][moment] for name in named for moment in MOMENTS}
    return found | {UPDATES: torch.as_tensor(optimizer.state[parameters[0]]["step"])}


def _gather_moments(engine: Any) -> dict[str, Tensor]:
    """The same of a DeepSpeed engine, from all ranks. All ranks call it."""
    from deepspeed.utils import safe_get_full_optimizer_state as full

    if not engine.optimizer.optimizer.state:
        return {}
    _link(engine.optimizer)
    found = {
        f"{moment}/{name}": _present(full(parameter, moment)).cpu()
        for name, parameter in engine.module.named_parameters()
        for moment in MOMENTS
    }
    one: dict[str, Any] = next(iter(engine.optimizer.optimizer.state.values()))
    return found | {UPDATES: torch.tensor(float(one["step"]))}


def _loss_scale(accelerator: Accelerator, optimizer: Any) -> tuple[float, int] | None:
    if accelerator.mixed_precision != "fp16":
        return None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        scaler = optimizer.optimizer.loss_scaler
        return float(scaler.cur_scale), scaler.cur_iter - scaler.last_overflow_iter - 1
    scaler: Any = accelerator.scaler
    return scaler.get_scale(), scaler.state_dict()["_growth_tracker"]


def _restore_loss_scale(accelerator: Accelerator, optimizer: Any, scale: float, steady: int) -> None:
    if accelerator.mixed_precision != "fp16":
        return
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        scaler = optimizer.optimizer.loss_scaler
        scaler.cur_scale = scale
        scaler.cur_iter = scaler.last_overflow_iter + 1 + steady
        return
    scaler: Any = accelerator.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": steady})


def _restore_zero(zero: Any, module: Any, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
    flats = zero.fp32_partitioned_groups_flat if _is_stage_3(zero) else zero.single_partition_of_fp32_groups
    # DeepSpeed makes the moments, flat ones of this rank's part, at the first update; here they are needed before.
    for flat in flats if moments else ():
        updates: Any = int(moments[UPDATES])  # of DeepSpeed's own AdamW, on the CPU
        if isinstance(zero.optimizer, torch.optim.AdamW):
            updates = moments[UPDATES].to(flat.device, copy=True)
        zero.optimizer.state[flat] = {"step": updates} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
    if moments:
        _link(zero)
    put = _put_part if _is_stage_3(zero) else _put
    for name, parameter in module.named_parameters():
        # The float32 weights too: the engine made its own from weights that it had cast to half precision.
        put(parameter, weights[name].to(flats[0].device))
        for moment in MOMENTS if moments else ():
            put(parameter, moments[f"{moment}/{name}"].to(flats[0].device), moment)


def _put(parameter: Any, value: Tensor, moment: str | None = None) -> None:
    from deepspeed import utils

    if moment:
        utils.safe_set_full_optimizer_state(parameter, value, moment)
    else:
        utils.safe_set_full_fp32_param(parameter, value)


def _put_part(parameter: Any, value: Tensor, moment: str | None = None) -> None:
    """The same for ZeRO-3, whose own function for whole values forgets the padding of the last rank's part."""
    from deepspeed import utils

    ranks, size = torch.distributed.get_world_size(), parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, size * ranks - value.numel()))
    part = padded.chunk(ranks)[torch.distributed.get_rank()]
    if moment:
        utils.safe_set_local_optimizer_state(parameter, part, moment)
    else:
        utils.safe_set_local_fp32_param(parameter, part)


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _link(zero: Any) -> None:
    """Ties each parameter to its moments; ZeRO-1 and 2 do it too early for all parameter groups but the first."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if not _is_stage_3(zero):
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed answers None for a parameter that it does not optimise"
    return tensor


def _names(model: Any, optimizer: Any) -> list[str]:
    """Parameter names in the order in which an optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
