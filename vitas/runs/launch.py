"""What `accelerate launch` leaves to us: the ranks of `--cpu --num_processes N`, and a quiet end after Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from threading import Thread

import psutil


def missing_cpu_ranks(program: list[str]) -> list[str] | None:
    """The command that runs `program` on the CPU ranks that Accelerate was asked for and did not start, if any."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_ADDR" in os.environ
    if not asked or "WORLD_SIZE" in os.environ:
        return None
    # How many were asked for stands nowhere but on the launcher's command line and in its config file.
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    line = _launch_words(os.getppid())
    if line is None:
        return None
    options = launch_command_parser().parse_args(line)
    config = load_config_from_file(options.config_file) if options.config_file else None

    def option(name: str, default: int) -> int:
        return getattr(options, name) or getattr(config, name, None) or default

    machines = option("num_machines", 1)
    where = ["--standalone"]
    if machines > 1:
        where = ["--nnodes", str(machines), "--node_rank", str(option("machine_rank", 0))]
        where += ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ["MASTER_PORT"]]
    ranks = option("num_processes", 1) // machines
    return [sys.executable, "-m", "vitas.runs.launch", *where, "--nproc_per_node", str(ranks), *program]


def end_launcher_quietly() -> None:
    """Has Ctrl-C end the `accelerate launch` that started this process before it prints a traceback.

    It waits a quarter of a second for us and then prints one, over what we say. A launcher of one process has nothing
    to save; one of several ranks is in `end_launcher_of_ranks`.
    """
    launcher = os.getppid()
    if "LOCAL_RANK" in os.environ or _launch_words(launcher) is None:
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)  # at once, whatever the main thread is computing

    def watch() -> None:
        while signal.SIGINT not in os.read(heard, 1):
            pass
        if os.getppid() == launcher:
            os.kill(launcher, signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def end_launcher_of_ranks() -> None:
    """Ends the launcher of this machine's ranks, which after Ctrl-C has nothing left to do but to print a traceback."""
    if os.environ.get("LOCAL_RANK") == "0" and _launch_words(os.getppid()) is not None:
        os.kill(os.getppid(), signal.SIGKILL)


def _launch_words(process: int) -> list[str] | None:
    """The words after `accelerate launch`, if that is what the process runs."""
    try:
        line = psutil.Process(process).cmdline()
    except psutil.Error:
        return None
    for at, word in enumerate(line):
        if os.path.basename(word) == "accelerate-launch":
            return line[at + 1 :]
        if os.path.basename(word) in ("accelerate", "accelerate_cli.py") and line[at + 1 : at + 2] == ["launch"]:
            return line[at + 2 :]
    return None


def main() -> None:
    """torchrun, but an end of its ranks is not told by a traceback: they have said what there is to say."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    end_launcher_quietly()
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        sys.exit(first.exitcode if first.exitcode > 0 else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
