"""Ranks forked from a process that has imported everything: they start in a second in place of fifteen.

They run the command line in the environment that `accelerate launch` with the same options gives to its ranks.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

from accelerate.commands import launch
from conftest import ROOT

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["vitas.runs.stages", "vitas.cli", "deepspeed", "torch._dynamo"])


class Ranks:
    """Started processes of one job; `log` is what they print."""

    def __init__(self, work: Callable, *arguments, options: list[str], cwd: Path) -> None:
        self.log = cwd / f"log_{time.time_ns()}"
        common, count = _environment(options)
        local = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)] or [{}]
        self.processes = [
            _server.Process(target=_run, args=(work, arguments, common | own, cwd, self.log)) for own in local
        ]
        for process in self.processes:
            process.start()

    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit codes of all ranks; those that take longer are killed, and -9 is theirs."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        return self.codes

    @property
    def codes(self) -> list[int]:
        return [process.exitcode for process in self.processes]

    def text(self) -> str:
        return self.log.read_text()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Returns when `condition` holds. It may look at files that other processes remove under it."""
    end = time.monotonic() + seconds
    while True:
        with suppress(FileNotFoundError):
            if condition():
                return
        assert time.monotonic() < end
        time.sleep(0.002)


def config(name: str, count: int = 2) -> list[str]:
    """The launcher's options for one of the shipped backends."""
    return ["--config_file", str(ROOT / "launch" / "accelerate" / f"{name}.yaml"), "--num_processes", str(count)]


def train(*arguments: str, options: list[str] = (), cwd: Path, check: bool = True) -> Ranks:
    """`accelerate launch OPTIONS RECIPE ...`, run to its end."""
    ranks = Ranks(recipe, *map(str, arguments), options=list(options), cwd=cwd)
    codes = ranks.wait(300)
    assert not check or not any(codes), f"{codes}\n{ranks.text()[-6000:]}"
    return ranks


def recipe(*arguments: str) -> int:
    from vitas import cli

    return cli.main(["run", *arguments])


def _environment(options: list[str]) -> tuple[dict[str, str], int]:
    """What Accelerate's launcher tells all ranks, and how many it starts by torchrun; 0 is one process without it."""
    told: dict[str, str] = {}
    arguments = launch.launch_command_parser().parse_args([*options, "--main_process_port", "0", "nothing.py"])
    count = 0

    def torchrun(_):
        nonlocal count
        told.update(os.environ)
        count = int(arguments.num_processes)

    def popen(_, env):
        told.update(env)
        return mock.Mock(returncode=0)

    started = mock.Mock(Popen=popen)
    with mock.patch("torch.distributed.run.run", torchrun), mock.patch.object(launch, "subprocess", started):
        launch.launch_command(arguments)
    if count:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        told |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return told | {"OMP_NUM_THREADS": "1"}, count


def _run(work: Callable, arguments: tuple, environment: dict[str, str], cwd: Path, log: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    try:
        code = work(*arguments)
    except SystemExit as told:
        code = told.code  # and its frames go, with the loaders in them, as they do at the end of a program
    sys.exit(code)
