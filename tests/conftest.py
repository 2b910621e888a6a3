import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
# DeepSpeed compiles a kernel for CPU ranks: one cache for each environment, for others would compile it anew.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

if multiprocessing.parent_process() is None:
    # Before torch counts them: a worker, and all that it starts, have a share of the cores to themselves. Threads that
    # wait for a core of others make a run seven times slower, and a forward of a small network hundreds of times.
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, cores[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))] or cores)

from vitas import recipe
from vitas.spaces.space import SearchSpace, Widths

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
SHORT = [
    "supernet.epochs=2", "supernet.warmup_epochs=1", "supernet.checkpoint_every=8",
    "retrain.epochs=1", "retrain.warmup_epochs=0.5", "retrain.checkpoint_every=8",
    "evolve.population=4", "evolve.generations=2", "evolve.batch_size=16",
    "evolve.finalists=0", "evolve.smooth=0", "evolve.objectives=[top1]", "space.identity=free",
]  # fmt: skip
"""Overrides that make the quickstart a matter of seconds."""


def first_of(cases: Iterable, count: int) -> list:
    """The cases of a test, of which the first `count` are run by default and the others are slow."""
    return [case if at < count else pytest.param(case, marks=pytest.mark.slow) for at, case in enumerate(cases)]


def pytest_configure(config):
    if config.option.markexpr != "gpu":  # all other tests are of CPUs, whatever the machine has
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def launch(*arguments: str, ranks: int = 1, options: tuple[str, ...] = (), cwd: Path, check: bool = True):
    """Types `accelerate launch RECIPE ...` as a user does; returns the finished process with its output."""
    many = ["--cpu", "--num_processes", str(ranks)] if ranks > 1 else []
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *many, *options, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500)
    if check and done.returncode:
        pytest.fail(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}",
            pytrace=False,
        )
    return done


def small_space(**changes) -> SearchSpace:
    """A space in which every kind of choice occurs."""
    values = {
        "image_size": 16,
        "patch_size": [4, 8],
        "embed_dim": Widths(max=40, ratios=[0.3, 0.5, 1.0]),
        "depth": 4,
        "heads": [1, 2, 4],
        "qkv_dim": Widths(max=120, ratios=[0.1, 0.5, 0.7]),
        "mlp_dim": Widths(max=70),
        "identity": "free",
    }
    return SearchSpace(**values | changes)


@pytest.fixture(scope="session")
def quickstart() -> recipe.Recipe:
    return recipe.load(QUICKSTART)
