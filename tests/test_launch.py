"""Real processes, started as a user starts them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICKSTART, SHORT, first_of, launch
from safetensors.torch import load_file
from test_data import folder_of_jpegs

from vitas.cli import main
from vitas.files import read_lines

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of the short quickstart, in one process."""
    cwd = tmp_path_factory.mktemp("whole")
    done = launch(QUICKSTART, *SHORT, cwd=cwd)
    assert "top-1 %" in done.stdout
    return cwd / "runs" / "quickstart"


def outcome(run: Path) -> dict:
    """All that a run decides: weights bit for bit, architectures, scores, accuracies."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    for row in evaluation.values():
        del row["throughput"]
    front = json.loads((run / "evolution" / "front.json").read_text())
    return {
        "weights": {
            stage: (run / stage / "model.safetensors").read_bytes() for stage in ("supernet", "retrain", "baseline")
        },
        "front": front,
        "best": (run / "evolution" / "best.yaml").read_text(),
        "evaluation": evaluation,
    }


def scored(run: Path) -> list[tuple[str, int]]:
    """Which candidate was scored on which slice of the images, as often as it was."""
    lines = [line for file in run.glob("supernet/scores/*/*.jsonl") for line in read_lines(file)]
    return [(line["key"], line["first"] + at) for line in lines for at in range(len(line["hits"]["left"]))]


def test_two_ranks_find_what_one_finds_in_the_same_supernet(whole, tmp_path):
    run = tmp_path / "runs" / "quickstart"
    shutil.copytree(whole / "supernet", run / "supernet", ignore=shutil.ignore_patterns("scores"))
    launch(QUICKSTART, *SHORT, "stages=[evolve]", ranks=2, cwd=tmp_path)
    for name in ("candidates.jsonl", "front.json", "best.yaml"):
        assert (run / "evolution" / name).read_text() == (whole / "evolution" / name).read_text()
    assert sorted(scored(run)) == sorted(set(scored(whole)))  # none twice
    writers = [file.stem.rpartition("-")[2] for file in run.glob("supernet/scores/*/*.jsonl") if read_lines(file)]
    assert sorted(writers) == ["0", "1"]  # both ranks scored


def start(cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(QUICKSTART), *SHORT]
    with open(cwd / "stderr", "w") as error:
        return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=error, start_new_session=True)


def lines_of(run: Path, stage: str) -> int:
    if stage == "evolve":
        return len(scored(run))
    return sum(line["stage"] == stage for line in read_lines(run / "metrics.jsonl"))


@pytest.mark.parametrize("stage", first_of(["supernet", "evolve", "retrain"], 1))
def test_a_killed_run_goes_on_to_the_same_result(whole, tmp_path, stage):
    run = tmp_path / "runs" / "quickstart"
    kills = random.Random(stage)
    for progress in (1, 3):  # lines of metrics, or scores, that the stage has written when it is killed
        process = start(tmp_path)
        while lines_of(run, stage) < progress and process.poll() is None:
            time.sleep(0.02)
        time.sleep(kills.uniform(0, 0.5))
        assert process.poll() is None, (tmp_path / "stderr").read_text()[-2000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    launch(QUICKSTART, *SHORT, cwd=tmp_path)
    assert outcome(run) == outcome(whole)
    assert len(scored(run)) == len(set(scored(run)))
    for name in ("supernet", "retrain"):
        steps = [line["step"] for line in read_lines(run / "metrics.jsonl") if line["stage"] == name]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("everybody", first_of([True, False], 1), ids=["TERM to all", "USR1 to the rank"])
def test_a_run_that_is_told_to_stop_saves_and_goes_on(whole, tmp_path, everybody):
    process = start(tmp_path)
    run = tmp_path / "runs" / "quickstart"
    while lines_of(run, "supernet") < 1 and process.poll() is None:
        time.sleep(0.02)
    if everybody:  # as scancel does: the rank's data workers too
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75, (tmp_path / "stderr").read_text()[-2000:]
    assert list((run / "supernet").glob("step_*"))
    launch(QUICKSTART, *SHORT, cwd=tmp_path)
    assert outcome(run) == outcome(whole)


def test_a_finished_run_does_nothing_more_and_other_settings_are_refused(whole):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("model.safetensors")}
    launch(QUICKSTART, *SHORT, cwd=whole.parent.parent)
    assert before == {file: file.stat().st_mtime_ns for file in whole.rglob("model.safetensors")}
    done = launch(QUICKSTART, *SHORT, "supernet.lr=0.5", cwd=whole.parent.parent, check=False)
    assert "supernet: made with supernet.lr: 0.003, and the recipe now says 0.5; give the run another" in done.stderr


def test_a_folder_of_jpegs_is_trained_on_and_its_damaged_image_told_once(tmp_path):
    root = folder_of_jpegs(tmp_path / "images", count=20)
    done = launch(
        QUICKSTART, *SHORT, f"data.train={root}/train", f"data.test={root}/test", "supernet.batch_size=16",
        "retrain.batch_size=16", cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.count("could not be read") == 1
    assert "data.train: 1 image(s) could not be read and were left out" in done.stdout
    assert "on 60 test images" in done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_a_stream_gives_the_accuracy_of_the_same_images_loaded_whole(whole, tmp_path):
    from vitas.data import sources
    from vitas.sections import Data

    for split, name in zip(sources.open_splits(Data()), ("train", "test"), strict=True):
        (tmp_path / name).mkdir()
        for shard in range(2):
            split.dataset.shard(2, shard).to_parquet(tmp_path / name / f"{shard}.parquet")
    # The same weights, on the same images from parquet files: the very same figures.
    run = tmp_path / "runs" / "quickstart"
    for stage in ("retrain", "baseline"):
        shutil.copytree(whole / stage, run / stage)
    files = [f"data.train={tmp_path}/train", f"data.test={tmp_path}/test", "data.streaming=true"]
    launch(QUICKSTART, *SHORT, *files, "stages=[evaluate]", cwd=tmp_path)
    assert outcome_of_evaluation(run) == outcome_of_evaluation(whole)
    # Trained on the stream: as good as seeds differ by, for the order alone is another.
    long = ["stages=[retrain,evaluate]", "retrain.epochs=15", f"retrain.architecture={whole}/evolution/best.yaml"]
    long += ["data.workers=0", f"output={run.parent}"]
    top1 = np.empty((2, 3))
    for row, source in enumerate(([], files)):
        for seed in range(3):
            name = f"{row}-{seed}"
            assert main(["run", str(QUICKSTART), *long, *source, f"name={name}", f"seed={seed}"]) == 0
            top1[row, seed] = next(iter(outcome_of_evaluation(run.parent / name).values()))["top1"]
    print(top1.round(2))
    assert top1[0].min() > 90
    assert abs(np.subtract(*top1.mean(1))) <= np.ptp(top1, axis=1).max()


@pytest.mark.slow
def test_other_test_images_under_the_same_name_give_their_own_accuracy(whole, tmp_path):
    run = tmp_path / "runs" / "quickstart"
    shutil.copytree(whole, run)
    other = [*SHORT, "stages=[evaluate]", "data.test=digits:train"]
    done = launch(QUICKSTART, *other, ranks=2, cwd=tmp_path)
    assert done.stdout.count("made with another") == 1
    assert "on 1437 test images" in done.stdout
    launch(QUICKSTART, *other, "name=fresh", f"evaluate.weights={run}/retrain", cwd=tmp_path)
    fresh = outcome_of_evaluation(run.parent / "fresh")
    assert list(fresh.values()) == [outcome_of_evaluation(run)["found"]]


def outcome_of_evaluation(run: Path) -> dict:
    rows = json.loads((run / "evaluation.json").read_text())
    return {name: {key: row[key] for key in ("top1", "top5", "macs", "params")} for name, row in rows.items()}


def test_the_supernet_weights_are_finite_and_of_one_type(whole):
    assert all(weight.isfinite().all() and weight.dtype == torch.float32
               for weight in load_file(whole / "supernet" / "model.safetensors").values())  # fmt: skip
