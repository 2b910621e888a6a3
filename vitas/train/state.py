"""The state of a training, whole and of no backend: float32 weights and Adam's moments, by parameter name.

What Accelerate saves fits the backend and the number of ranks that wrote it alone; this fits all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"
"""How many updates the moments have seen: Adam corrects its bias by it."""


def weights(accelerator: Accelerator, model: Any) -> dict[str, Tensor]:
    """The whole float32 weights of a prepared model, ZeRO's masters of half-precision ones too. All ranks call it."""
    module: Any = accelerator.unwrap_model(model)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return module.state_dict()
    from deepspeed.utils import safe_get_full_fp32_param as full

    return {name: _present(full(parameter)) for name, parameter in module.named_parameters()} | dict(
        module.named_buffers()
    )


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """Adam's moments of a DeepSpeed engine, from all ranks, as `MOMENT/PARAMETER`. All ranks call it.

    There are none before the first update.
    """
    from deepspeed.utils import safe_get_full_optimizer_state as full

    if not engine.optimizer.optimizer.state:
        return {}
    _link(engine.optimizer)
    state = {
        f"{moment}/{name}": _present(full(parameter, moment)).cpu()
        for name, parameter in engine.module.named_parameters()
        for moment in MOMENTS
    }
    one: dict[str, Any] = next(iter(engine.optimizer.optimizer.state.values()))
    return state | {UPDATES: torch.tensor(float(one["step"]))}


def moments_of(state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The same, from the state dict that a torch AdamW of the same parameters saved."""
    if not state["state"]:
        return {}
    found = {
        f"{moment}/{name}": state["state"][index][moment]
        for index, name in enumerate(_names(model, optimizer))
        for moment in MOMENTS
    }
    return found | {UPDATES: state["state"][0]["step"]}


def restore(
    accelerator: Accelerator, model: Any, optimizer: Any, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    """Gives a prepared model and optimizer of any backend the state of another. All ranks call it.

    The model was made with these weights; what is left is the optimizer's state and, under DeepSpeed, its own weights.
    """
    module: Any = accelerator.unwrap_model(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _restore_zero(optimizer.optimizer, module, weights, moments)
        return
    if moments:
        state = {
            index: {"step": moments[UPDATES].clone()} | {moment: moments[f"{moment}/{name}"] for moment in MOMENTS}
            for index, name in enumerate(_names(module, optimizer))
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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
