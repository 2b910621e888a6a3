"""What goes wrong in the middle of a training: killed ranks, full disks, losses not finite, too little memory."""

import contextlib
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch
from conftest import QUICKSTART, launch
from ranks import Ranks, config, recipe, train, wait_for
from safetensors.torch import load_file
from toy import ARCHITECTURE, toy_training

from vitas.files import read_lines

pytestmark = pytest.mark.launch
DDP, ZERO2, ZERO3 = config("ddp"), config("zero2"), config("zero3")
BACKENDS = {"one": [], "ddp": DDP, "zero2": ZERO2, "zero3": ZERO3}
SUPERNET = [
    "stages=[supernet]", "supernet.epochs=9", "supernet.warmup_epochs=1", "supernet.checkpoint_every=3",
    "data.workers=0",
]  # fmt: skip
"""171 steps on two ranks, that write a checkpoint most of the time."""

FEW = [*SUPERNET, "supernet.epochs=1.05", "supernet.warmup_epochs=0.5", "supernet.checkpoint_every=15"]


def test_a_rank_killed_at_any_moment_leaves_a_run_that_goes_on_to_the_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train(QUICKSTART, *SUPERNET, options=DDP, cwd=whole)
    supernet = killed / "runs" / "quickstart" / "supernet"
    moments, kills, while_writing, resumed = random.Random(0), 0, 0, 0
    while kills < 20:
        ranks = Ranks(recipe, str(QUICKSTART), *SUPERNET, options=DDP, cwd=killed)
        before = newest(supernet)
        wait_for(lambda: newest(supernet) > before or not ranks.running())  # noqa: B023
        if kills % 2:  # as soon as a checkpoint is begun
            wait_for(lambda: (supernet / "part").exists() or not ranks.running())  # noqa: B023
        time.sleep(moments.uniform(0, 0.01 if kills % 2 else 0.2))
        if not all(process.is_alive() for process in ranks.processes):
            break
        while_writing += (supernet / "part").exists()
        moments.choice(ranks.processes).kill()
        kills += 1
        codes = ranks.wait(60)
        assert -signal.SIGKILL in codes
        assert sum(code == -signal.SIGKILL for code in codes) == 1, "the other rank hung"
        resumed += "goes on from step" in ranks.text()
        assert "damaged" not in ranks.text()
    print(f"{while_writing} of {kills} kills while a checkpoint was written")
    assert (kills, resumed) == (20, 19)
    assert while_writing >= 3
    train(QUICKSTART, *SUPERNET, options=DDP, cwd=killed)
    assert (supernet / "model.safetensors").read_bytes() == (
        whole / "runs" / "quickstart" / "supernet" / "model.safetensors"
    ).read_bytes()
    assert not list(supernet.glob("step_*"))


def newest(supernet: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in supernet.glob("step_*")), default=0)


def test_too_many_unreadable_images_over_all_ranks_end_the_run_at_that_step(tmp_path):
    """Two ranks find one each at three steps, and there may be four."""
    work = partial(toy_training, str(tmp_path), {}, [], 0)
    ranks = Ranks(work, (1, 4, 7), options=DDP, cwd=tmp_path)
    assert ranks.wait() == [2, 2]
    told = [line for line in ranks.text().splitlines() if "could not be read" in line]
    file = tmp_path / "unreadable.json"
    assert told == [
        f"toy: 2 image(s) could not be read and were left out; image 1 of rank 0: damaged (all in {file})",
        f"vitas: toy: 6 image(s) could not be read, more than data.max_unreadable allows, all named in {file}; "
        "image 1 of rank 0: damaged",
    ]
    assert sorted(json.loads(file.read_text())["content"]) == [
        f"image {step} of rank {rank}" for step in (1, 4, 7) for rank in (0, 1)
    ]


@pytest.mark.slow
def test_a_dead_rank_ends_the_launched_job_within_a_minute(tmp_path):
    short = [*SUPERNET, "supernet.epochs=3"]
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *ZERO2, str(QUICKSTART), *short]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    supernet = tmp_path / "runs" / "quickstart" / "supernet"
    wait_for(lambda: newest(supernet) > 0 or job.poll() is not None, 120)
    ranks = [process for process in psutil.Process(job.pid).children(recursive=True)
             if process.environ().get("RANK") == "1"]  # fmt: skip
    ranks[0].kill()
    assert job.wait(60) != 0
    assert not any(process.is_running() for process in ranks)
    done = launch(QUICKSTART, *short, options=tuple(ZERO2), cwd=tmp_path)
    assert "supernet: goes on from step" in done.stdout


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "vitas", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; a limit on the size of files is tested in its place")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def limited(size: int, *arguments: str) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return recipe(*arguments)


@pytest.mark.parametrize("backend", ["one", "zero2"])
def test_a_checkpoint_that_finds_the_disk_full_costs_nothing_but_room(small_disk, backend):
    def filled() -> None:
        with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(1 << 12)):
                pass
        with (small_disk / "filler").open("ab") as filler:
            filler.truncate(filler.tell() - (1 << 18))  # metrics and a part of a checkpoint fit

    goes_on_after_a_failed_checkpoint(small_disk, BACKENDS[backend], recipe, filled, "the disk is full")


def test_a_checkpoint_above_a_limit_on_files_costs_nothing(tmp_path):
    goes_on_after_a_failed_checkpoint(tmp_path, [], partial(limited, 1 << 18), lambda: None, "File too large")


def goes_on_after_a_failed_checkpoint(folder: Path, options: list[str], work, fill, message: str) -> None:
    (folder / "whole").mkdir()
    train(QUICKSTART, *FEW, options=options, cwd=folder / "whole")
    (folder / "runs").mkdir()
    with mock.patch.dict(os.environ, {"VITAS_STOP_FILE": str(folder / "runs")}):  # is there: stops after one step
        assert set(train(QUICKSTART, *FEW, options=options, cwd=folder, check=False).codes) == {75}
    fill()
    ranks = Ranks(work, str(QUICKSTART), *FEW, options=options, cwd=folder)
    assert 2 in ranks.wait(120), ranks.text()
    supernet = folder / "runs" / "quickstart" / "supernet"
    (line,) = re.findall(r"vitas: (.*could not be written.*)$", ranks.text(), re.MULTILINE)
    assert "supernet: the checkpoint of step 15 could not be written" in line
    assert message in line
    assert "the same command goes on from step_00000001" in line
    assert [path.name for path in supernet.glob("step_*")] == ["step_00000001"]
    (folder / "filler").unlink(missing_ok=True)
    assert "goes on from step 1 of 20" in train(QUICKSTART, *FEW, options=options, cwd=folder).text()
    expected = folder / "whole" / "runs" / "quickstart" / "supernet" / "model.safetensors"
    assert (supernet / "model.safetensors").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_that_step(tmp_path, backend):
    ranks = Ranks(toy_training, str(tmp_path), {}, [5], options=BACKENDS[backend], cwd=tmp_path)
    assert set(ranks.wait(60)) == {2}
    assert (
        f"retrain: the loss is not finite at step 5, architecture {ARCHITECTURE.model_dump_json()}; "
        f"last good checkpoint: {tmp_path}/retrain/step_00000004; lower retrain.lr, or leave such steps out: "
        "retrain.on_nonfinite=skip"
    ) in ranks.text()
    assert "Traceback" not in ranks.text()


@pytest.mark.parametrize("backend", BACKENDS)
def test_such_steps_are_left_out_and_counted_the_same_on_all_ranks(tmp_path, backend):
    folders = {name: tmp_path / name for name in ("all", "one")}
    for folder, options in zip(folders.values(), (BACKENDS[backend], []), strict=True):
        ranks = Ranks(toy_training, str(folder), {"on_nonfinite": "skip"}, [5, 8], options=options, cwd=tmp_path)
        assert set(ranks.wait(60)) == {0}, ranks.text()
        assert [line for line in ranks.text().splitlines() if "is left out" in line] == [
            f"retrain: step {step} is left out, its loss is not finite, architecture {ARCHITECTURE.model_dump_json()}; "
            f"{count} so far"
            for step, count in ((5, 1), (8, 2))
        ]
        told = read_lines(folder / "quickstart" / "metrics.jsonl")
        assert [line["left_out"] for line in told] == [2, 2]
        assert all(math.isfinite(line["loss"]) for line in told)
    weights = {name: load_file(folder / "retrain" / "model.safetensors") for name, folder in folders.items()}
    for name, weight in weights["one"].items():
        torch.testing.assert_close(weights["all"][name], weight, rtol=1e-5, atol=1e-7)


def test_a_training_whose_weights_are_spoiled_ends(tmp_path):
    ranks = Ranks(toy_training, str(tmp_path), {"on_nonfinite": "skip"}, list(range(1, 12)), options=[], cwd=tmp_path)
    assert ranks.wait(60) == [2]
    assert "the loss is not finite at step 10, the 10th in a row" in ranks.text()


def test_deepspeed_with_accumulation_says_that_it_cannot_leave_a_step_out(tmp_path):
    changes = {"on_nonfinite": "skip", "micro_batch_size": 1}
    ranks = Ranks(toy_training, str(tmp_path), changes, [], options=ZERO2, cwd=tmp_path)
    assert set(ranks.wait(60)) == {2}
    assert "raise retrain.micro_batch_size to 4, or use stop" in ranks.text()


def test_too_little_memory_ends_with_the_architecture_and_what_to_lower(tmp_path):
    ranks = Ranks(toy_training, str(tmp_path), {}, [], 1 << 50, options=[], cwd=tmp_path)
    assert ranks.wait(60) == [2]
    assert (
        f"vitas: retrain: out of memory at step 2, architecture {ARCHITECTURE.model_dump_json()}; lower "
        "retrain.micro_batch_size from 8 (the batch stays 8), or set retrain.grad_checkpointing=true ("
    ) in ranks.text()
    assert "Traceback" not in ranks.text()
