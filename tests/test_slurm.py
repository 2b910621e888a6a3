"""The shipped template on a real two-node Slurm on this machine; as root, with Debian's slurm-wlm and munge."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKSTART, ROOT, SHORT

from vitas.files import read_lines

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
    journals = list((run / "evolution").glob("journal*.jsonl"))
    assert len(journals) == 2  # one from each node
