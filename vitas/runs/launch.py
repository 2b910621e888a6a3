"""The ranks of `accelerate launch --cpu --num_processes N`: Accelerate leaves them to mpirun; we start them."""

from __future__ import annotations

import os
import sys

import psutil


def missing_cpu_ranks(program: list[str]) -> list[str] | None:
    """The command that runs `program` on the CPU ranks that Accelerate was asked for and did not start, if any."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_ADDR" in os.environ
    if not asked or "WORLD_SIZE" in os.environ:
        return None
    # How many were asked for stands nowhere but on the launcher's command line and in its config file.
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    line = psutil.Process(os.getppid()).cmdline()
    at = line.index("launch") if "launch" in line else next(
        (i for i, word in enumerate(line) if word.endswith("accelerate-launch")), None
    )  # fmt: skip
    if at is None:
        return None
    options = launch_command_parser().parse_args(line[at + 1 :])
    config = load_config_from_file(options.config_file) if options.config_file else None

    def option(name: str, default: int) -> int:
        return getattr(options, name) or getattr(config, name, None) or default

    machines, rank = option("num_machines", 1), option("machine_rank", 0)
    where = ["--standalone"]
    if machines > 1:
        where = ["--nnodes", str(machines), "--node_rank", str(rank), "--master_addr", os.environ["MASTER_ADDR"],
                 "--master_port", os.environ["MASTER_PORT"]]  # fmt: skip
    ranks = option("num_processes", 1) // machines
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc_per_node", str(ranks), *program]
