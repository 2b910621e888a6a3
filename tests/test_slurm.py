"""The shipped template on a real two-node Slurm on this machine; as root, with Debian's slurm-wlm and munge."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKSTART, ROOT, SHORT
from test_stream import Server
from test_streamed import SHARDS, STREAM, write_digits

from vitas.cli import main
from vitas.files import read_lines
from vitas.models.saved import load_model
from vitas.spaces.architecture import Architecture

pytestmark = pytest.mark.slurm
CLUSTER = ROOT / "tests" / "slurm_cluster.sh"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "start", folder], check=True, timeout=120)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    subprocess.run([CLUSTER, "stop", folder], check=True, timeout=120)


def submit(slurm, cwd: Path, *changes: str) -> str:
    command = ["sbatch", "--parsable", "-N", "2", ROOT / "launch" / "slurm" / "search.sbatch", QUICKSTART]
    (cwd / "launch").symlink_to(ROOT / "launch")
    done = subprocess.run([*command, *SHORT, *changes], cwd=cwd, env=slurm, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def wait_for(what, seconds: int, log: Path) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, log.read_text()[-3000:] if log.is_file() else "the job has not started"
        time.sleep(0.5)


def test_a_job_on_two_nodes_is_told_to_stop_queues_again_and_finishes(slurm, tmp_path):
    job = submit(slurm, tmp_path, "supernet.epochs=12")
    log, run = tmp_path / f"vitas-{job}.log", tmp_path / "runs" / "quickstart"
    wait_for(lambda: len(read_lines(run / "metrics.jsonl")) >= 2, 240, log)
    subprocess.run(["scancel", "--signal=USR1", "--batch", job], env=slurm, check=True)
    wait_for(lambda: log.is_file() and "top-1 %" in log.read_text(), 420, log)
    text = log.read_text()
    assert "2 x cpu (MULTI_CPU)" in text
    assert "it queues again" in text
    assert "supernet: goes on from step" in text
    scored = [file for file in run.glob("supernet/scores/*/*.jsonl") if read_lines(file)]
    assert len(scored) == 2  # one from each node


def test_a_job_whose_images_do_not_answer_queues_again_and_goes_on(slurm, tmp_path):
    (tmp_path / "shards").mkdir()
    server = Server(write_digits(tmp_path / "shards"))
    source = [*STREAM, f"data.train={server.url}/{{0..{SHARDS - 1}}}.tar", "data.patience=3"]
    job = submit(slurm, tmp_path, "stages=[supernet]", "supernet.epochs=6", *source)
    log, run = tmp_path / f"vitas-{job}.log", tmp_path / "runs" / "quickstart"
    wait_for(lambda: len(read_lines(run / "metrics.jsonl")) >= 2, 420, log)
    server.faults |= {f"{shard}.tar": {"503": 10**6} for shard in range(SHARDS)}
    wait_for(lambda: "it queues again" in log.read_text(), 420, log)
    server.faults.clear()
    wait_for((run / "supernet" / "model.safetensors").is_file, 420, log)
    text = log.read_text()
    assert f"{server.url}/" in text and ": not readable, tried for " in text and "supernet: saved after step" in text
    assert "supernet: goes on from step" in text
    server.shutdown()
    server.server_close()


def test_an_array_retrains_what_a_search_has_found_one_a_job(slurm, tmp_path):
    two = ["budget.macs=null", "budgets.small.macs=[0.3e6,0.6e6]", "budgets.base.macs=[0.8e6,1.2e6]"]
    assert main(["run", str(QUICKSTART), *SHORT, *two, "stages=[supernet,evolve]", f"output={tmp_path}/runs"]) == 0
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    array = ["sbatch", "--parsable", "-N", "1", "--array=1-3", ROOT / "launch" / "slurm" / "array.sbatch"]
    names = ["runs/quickstart/evolution", "best:small", "best:base"]
    done = subprocess.run(
        [*array, *names, "retrain.epochs=2"], cwd=tmp_path, env=slurm, check=True, capture_output=True, text=True
    )
    job = done.stdout.strip()
    for task, name in ((1, "small"), (2, "base")):
        log = tmp_path / f"vitas-{job}_{task}.log"
        wait_for(lambda log=log: log.is_file() and "top-1 %" in log.read_text(), 240, log)
        found = Architecture.from_yaml(tmp_path / "runs" / "quickstart" / "evolution" / f"best_{name}.yaml")
        assert load_model(tmp_path / "runs" / f"quickstart-best-{name}" / "retrain").architecture == found
    third = tmp_path / f"vitas-{job}_3.log"
    wait_for(third.is_file, 120, third)
    wait_for(lambda: "of 2 names there is none for job 3 of the array" in third.read_text(), 60, third)
