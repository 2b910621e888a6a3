"""One rank of several that trains by itself: what the loop asks of an Accelerator, without the other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from accelerate.utils.memory import release_memory
from torch import Tensor, nn

from vitas.train.memory import PRECISIONS


def alone(accelerator: Accelerator) -> Accelerator:
    """What stands in for the Accelerator of a run in a training that is this rank's alone, on its device.

    Accelerate knows one state for a whole process: a second Accelerator would be one of all ranks as well. This one
    does what an Accelerator of a single process does, to the last bit, and nothing of it reaches the other ranks.
    """
    return cast(Accelerator, _Alone(accelerator.device, accelerator.mixed_precision))


def gather(accelerator: Accelerator, objects: list[Any]) -> list[Any]:
    """The objects of all ranks of an accelerator; those of a single one are there."""
    return objects if accelerator.num_processes == 1 else gather_object(objects)


def broadcast(accelerator: Accelerator, objects: list[Any]) -> list[Any]:
    """The objects of the main rank, on all ranks of an accelerator."""
    return objects if accelerator.num_processes == 1 else broadcast_object_list(objects)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU all is computed by one thread: several give other last bits, another on each number of ranks."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Alone:
    """An Accelerator's names, as far as the loop and its parts use them."""

    num_processes, process_index, is_main_process = 1, 0, True
    distributed_type = DistributedType.NO

    def __init__(self, device: torch.device, mixed_precision: str) -> None:
        self.device, self.mixed_precision = device, mixed_precision
        self.gradient_accumulation_steps = 1
        self.sync_gradients = True
        self.scaler = torch.amp.GradScaler(device.type) if mixed_precision == "fp16" else None
        self._turn = 0

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The model on the device, its forward in mixed precision; the optimizer, with the loss scale of fp16."""
        model.to(self.device)
        if dtype := PRECISIONS[self.mixed_precision]:
            model.forward = torch.autocast(self.device.type, dtype)(model.forward)
        self._optimizer = optimizer
        return model, _Scaled(optimizer, self.scaler) if self.scaler else optimizer

    @contextmanager
    def accumulate(self, _: nn.Module) -> Iterator[None]:
        """One of `gradient_accumulation_steps` micro-batches; at the last one `sync_gradients` is true."""
        self._turn += 1
        self.sync_gradients = self._turn % self.gradient_accumulation_steps == 0
        yield

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the micro-batch."""
        loss = loss / self.gradient_accumulation_steps
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def clip_grad_norm_(self, parameters: Any, most: float) -> Tensor:
        """Clips the gradients."""
        if self.scaler:
            self.scaler.unscale_(self._optimizer)
        return nn.utils.clip_grad_norm_(parameters, most)

    def reduce(self, tensor: Tensor, _: str = "sum") -> Tensor:
        """The tensor: there is no other one."""
        return tensor

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        """The model: it is not wrapped."""
        return model

    def wait_for_everyone(self) -> None:
        """Does not wait."""

    def free_memory(self, *objects: Any) -> list[Any]:
        """Lets go of the objects."""
        return release_memory(*objects)


class _Scaled:
    """An optimizer of gradients of a scaled loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self._optimizer, self._scaler = optimizer, scaler

    def step(self) -> None:
        """An update, or, if a gradient overflowed, none; and the next scale."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)
