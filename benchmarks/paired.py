"""Ways to do one thing, timed in turn, each a process of its own; what the machine can; what is asked of it."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
Line = dict[str, Any]


def shown(text: str | None) -> argparse.ArgumentParser:
    """The options that the benchmarks of steps share."""
    arguments = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--precision", choices=["no", "bf16"], default="no")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--threads", type=int, default=1, help="of a CPU")
    arguments.add_argument("--steps", type=int, default=9)
    arguments.add_argument("--warm", type=int, default=2, help="steps before those that count")
    arguments.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to measure, too")
    arguments.add_argument("--json", type=Path, help="write the figures here, too")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    return arguments


def options_of(options: argparse.Namespace) -> list[str]:
    """What a worker is told of them."""
    names = ("batch", "precision", "device", "threads")
    return [word for name in names for word in (f"--{name}", str(getattr(options, name)))]


class Worker:
    """A process that does steps of one way when it is asked to; `checkout` has the `vitas` it imports."""

    def __init__(self, script: str, way: str, options: list[str], checkout: Path = ROOT) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout.absolute())}
        command = [sys.executable, script, "--worker", way, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._line()
        self.first: float | None = None
        """The figure of the first step."""

    def ask(self, number: int) -> Line:
        """What the step of that number took; of `~number` what it asks of the machine, counted and not timed."""
        assert self.process.stdin
        print(json.dumps(number), file=self.process.stdin, flush=True)
        line = self._line()
        if self.first is None:
            self.first = line["value"]
        return line

    def close(self) -> Line:
        """Ends the process; the memory that it took."""
        assert self.process.stdin
        self.process.stdin.close()
        last = self._line()
        self.process.wait()
        return last

    def _line(self) -> Line:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a way ended with code {self.process.wait()}; its message is above")
        return json.loads(line)


def serve(make: Callable[[], tuple[Callable[[int], float], Line]], device: torch.device) -> None:
    """A worker's side: `make` gives what does the step of a number and returns a figure, and facts of the way."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is none of the figures
    before = _memory()
    step, facts = make()
    print(json.dumps(facts), file=out, flush=True)
    for line in sys.stdin:
        if (number := json.loads(line)) < 0:
            with Operations() as operations:
                step(~number)
            print(json.dumps({"operations": operations.count, "bytes": operations.bytes}), file=out, flush=True)
            continue
        with Clock(device) as clock:
            value = step(number)
        print(json.dumps({"seconds": clock.seconds, "value": value}), file=out, flush=True)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _memory() - before
    print(json.dumps({"memory": peak}), file=out, flush=True)


def _memory() -> int:
    """Bytes that this process held at its peak."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Clock:
    """Seconds: on a CPU with one thread those of the process alone, that others' work does not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def __enter__(self) -> "Clock":
        self._wait()
        self.began = self.now()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds = self.now() - self.began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def in_turn(workers: dict[str, Worker], steps: Iterable[int], warm: int) -> dict[str, list[Line]]:
    """Each way's lines; the ways take turns within a step, another first each time. The first `warm` steps go."""
    order, found = list(workers), {name: [] for name in workers}
    for count, step in enumerate(steps):
        for turn in range(len(order)):
            name = order[(count + turn) % len(order)]
            line = workers[name].ask(step)
            if count >= warm:
                found[name].append(line)
        if sys.stderr.isatty():
            print(f"\rstep {count + 1}", end="", file=sys.stderr, flush=True)
    return found


def ratios(base: list[Line], other: list[Line]) -> tuple[float, float, float]:
    """How many times the time of `other` is `base`'s, step by step: median, 10 and 90 %."""
    values = sorted(a["seconds"] / b["seconds"] for a, b in zip(base, other, strict=True))
    tenth = len(values) // 10
    return statistics.median(values), values[tenth], values[-1 - tenth]


def median(lines: list[Line]) -> float:
    """Seconds."""
    return statistics.median(line["seconds"] for line in lines)


class Operations(TorchDispatchMode):
    """Counts the operations that are no views, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if not (returns and all(one.alias_info and not one.alias_info.is_write for one in returns)):
            self.count += 1
            self.bytes += sum(_sizes([*args, *(kwargs or {}).values(), result]))
        return result


def _sizes(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.numel() * value.element_size()
        elif isinstance(value, list | tuple):
            yield from _sizes(value)


@torch.inference_mode()
def matrix_rate(shapes: list[tuple[int, int, int]], device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of `torch.mm` on products of (rows, inputs, outputs), each the median of five."""
    operations = seconds = 0.0
    for rows, inputs, outputs in shapes:
        x, weight = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((rows, inputs), (outputs, inputs)))
        out = torch.empty(rows, outputs, device=device, dtype=dtype)
        times = []
        for _ in range(6):
            with Clock(device) as clock:
                torch.mm(x, weight.t(), out=out)
            times.append(clock.seconds)
        operations += 2 * rows * inputs * outputs
        seconds += statistics.median(times[1:])
    return operations / seconds


@torch.inference_mode()
def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying 256 MB."""
    source = torch.ones(1 << 26, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(8):
        with Clock(device) as clock:
            target.copy_(source)
        times.append(clock.seconds)
    return 2 * source.nbytes / statistics.median(times[2:])
