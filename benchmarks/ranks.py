"""How well ranks share the scoring of candidates: wall time of 2 ranks against 1, and 64 ranks simulated.

    python benchmarks/ranks.py [--candidates 8] [--images 256] [--repeats 3] [--json FILE]

Each rank has one core. The candidates are of `search_1G`, in an untrained supernet: weights do not change the time. The
64 ranks are simulated with the seconds that each candidate took for each slice of the images: 50 candidates, of which
those that were measured are repeated.
"""

import argparse
import heapq
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from accelerate import Accelerator, InitProcessGroupKwargs

from vitas import recipe
from vitas.data.decoded import Cached
from vitas.data.device import DeviceImages
from vitas.evolve.candidates import Candidates
from vitas.evolve.evolution import first_generation
from vitas.evolve.scoring import MOST_SLICES, Scorer
from vitas.evolve.store import Store
from vitas.evolve.workers import Workers, jobs
from vitas.files import read_lines
from vitas.models.supernet import Supernet

CLASSES = 1000


def work(rank: int, ranks: int, folder: Path, candidates: int, images: int, repeats: int) -> None:
    """Scores the candidates as often as asked; the main rank writes the seconds."""
    os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[rank]])
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getppid() % 10_000)}
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if ranks > 1 else [])
    settings = recipe.load("search_1G")
    space = settings.space
    genomes = first_generation(space, settings.budget, CLASSES, candidates, seed=0, skip=0.3)
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, 224, 224), dtype=np.uint8)
    decoded = Cached(pixels, np.arange(images) % CLASSES, "random")
    on_device = DeviceImages(decoded, torch.device("cpu"), mean=settings.data.mean, std=settings.data.std)
    torch.manual_seed(0)
    scorer = Scorer(Supernet(space, CLASSES).eval(), on_device, batch_size=16, precision="no")
    seconds = []
    for repeat in range(repeats):
        store, costs = (Store(folder / name, {"repeat": repeat}, str(rank)) for name in ("scores", "costs"))
        scored = Candidates(
            Workers(accelerator),
            num_classes=CLASSES,
            measure=lambda _: {},
            measured=[],
            costs=costs,
            scorer=scorer,
            store=store,
            on_progress=lambda done, of: None,
        )
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        scored.score([space.decode(genome) for genome in genomes], 1.0)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    if ranks > 1:
        torch.distributed.destroy_process_group()


def busy(seconds: list[float], ranks: int) -> float:
    """The share of their time that simulated ranks are at work, on candidates that take so long for each slice."""
    costly = sorted(seconds, reverse=True)
    free = [0.0] * ranks
    for key, _, length in jobs([(str(number), range(MOST_SLICES)) for number in range(len(costly))], ranks):
        heapq.heapreplace(free, free[0] + costly[int(key)] * length)
    return sum(free) / (ranks * max(free))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--candidates", type=int, default=8)
    arguments.add_argument("--images", type=int, default=256)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    wall: dict[int, float] = {}
    each: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        for ranks in (1, 2, 1, 2):  # in turn, for a machine that is busy now and then
            folder = Path(temporary) / f"{ranks}_{time.time_ns()}"
            folder.mkdir()
            given = (ranks, folder, options.candidates, options.images, options.repeats)
            multiprocessing.spawn(work, given, nprocs=ranks)
            found = json.loads((folder / "seconds.json").read_text())
            wall[ranks] = min(wall.get(ranks, found[0]), statistics.median(found))
            lines = [line for file in folder.glob("scores/*/*.jsonl") for line in read_lines(file)]
            if ranks == 1:
                keys = {line["key"] for line in lines}
                slices = sum(len(line["hits"]["left"]) for line in lines) / len(keys)
                each = [sum(line["seconds"] for line in lines if line["key"] == key) / slices for key in keys]
    simulated = busy([each[number % len(each)] for number in range(50)], 64)
    print(f"{options.candidates} candidates of search_1G on {options.images} images")
    print(f"1 rank   {wall[1]:.2f} s\n2 ranks  {wall[2]:.2f} s: {wall[1] / wall[2]:.2f} times as fast")
    print(f"64 ranks, simulated, 50 candidates: {100 * simulated:.1f} % busy")
    if options.json:
        found = {"seconds": wall, "ratio": wall[1] / wall[2], "simulated_busy": simulated}
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
