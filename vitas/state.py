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
    """Adam's moments of a DeepSpeed engine, from all ranks, as `MOMENT/PARAMETER`. All ranks call it."""
    from deepspeed.utils import safe_get_full_optimizer_state as full

    _link(engine.optimizer)
    state = {
        f"{moment}/{name}": _present(full(parameter, moment)).cpu()
        for name, parameter in engine.module.named_parameters()
        for moment in MOMENTS
    }
    one: dict[str, Any] = next(iter(engine.optimizer.optimizer.state.values()))
    return state | {UPDATES: torch.tensor(float(one["step"]))}


def _link(zero: Any) -> None:
    """Ties each parameter to its moments; ZeRO-1 and 2 do it too early for all parameter groups but the first."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed answers None for a parameter that it does not optimise"
    return tensor


def moments_of(state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The same, from the state dict that a torch AdamW of the same parameters saved."""
    found = {
        f"{moment}/{name}": state["state"][index][moment]
        for index, name in enumerate(_names(model, optimizer))
        for moment in MOMENTS
    }
    return found | {UPDATES: state["state"][0]["step"]}


def set_moments(accelerator: Accelerator, model: Any, optimizer: Any, moments: Mapping[str, Tensor]) -> None:
    """Gives a prepared optimizer of any backend the moments of another. All ranks call it."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _set_zero_moments(optimizer.optimizer, accelerator.unwrap_model(model), moments)
        return
    names = _names(accelerator.unwrap_model(model), optimizer)
    state = {
        index: {"step": moments[UPDATES].clone()} | {moment: moments[f"{moment}/{name}"] for moment in MOMENTS}
        for index, name in enumerate(names)
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _set_zero_moments(zero: Any, module: Any, moments: Mapping[str, Tensor]) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    # DeepSpeed makes the moments, flat ones of this rank's part, at the first update; here they are needed before.
    partitioned = hasattr(zero, "fp32_partitioned_groups_flat")  # ZeRO-3
    flats = zero.fp32_partitioned_groups_flat if partitioned else zero.single_partition_of_fp32_groups
    for flat in flats:
        updates = moments[UPDATES].clone() if isinstance(zero.optimizer, torch.optim.AdamW) else int(moments[UPDATES])
        zero.optimizer.state[flat] = {"step": updates} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
    _link(zero)
    for name, parameter in module.named_parameters():
        for moment in MOMENTS:
            value = moments[f"{moment}/{name}"].to(flats[0].device)
            if partitioned:
                ranks, rank, part = (
                    torch.distributed.get_world_size(),
                    torch.distributed.get_rank(),
                    parameter.ds_tensor,
                )
                padded = F.pad(value.flatten(), (0, part.numel() * ranks - value.numel()))
                safe_set_local_optimizer_state(parameter, padded.chunk(ranks)[rank], moment)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)


def _names(model: Any, optimizer: Any) -> list[str]:
    """Parameter names in the order in which an optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
