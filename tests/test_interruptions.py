"""What people and schedulers do to a run: start it twice, press Ctrl-C, change its settings, suspend a rank."""

import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import QUICKSTART, SHORT
from ranks import Ranks, config, recipe, train, wait_for
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler
from toy import Toy, toy_images, toy_training

from vitas.files import read_lines
from vitas.train import checkpoint, failures

pytestmark = pytest.mark.launch
SUPERNET = ["stages=[supernet]", "supernet.epochs=9", "supernet.warmup_epochs=1", "supernet.checkpoint_every=3"]


def lines(folder: Path, stage: str) -> list[dict]:
    found = read_lines(folder / "runs" / "quickstart" / "metrics.jsonl")
    return [line for line in found if line["stage"] == stage]


def test_a_second_process_on_a_run_is_told_who_is_at_work_and_a_dead_one_holds_nothing(tmp_path):
    first = Ranks(recipe, str(QUICKSTART), *SUPERNET, "supernet.epochs=100", options=[], cwd=tmp_path)
    wait_for(lambda: lines(tmp_path, "supernet"), 90)
    second = train(QUICKSTART, *SUPERNET, options=config("ddp"), cwd=tmp_path, check=False)
    assert second.codes == [2, 2]
    assert re.fullmatch(
        rf"vitas: runs/quickstart: process {first.processes[0].pid} on \S+ is at work in this run; "
        "wait for it, or give this one another name",
        second.text().strip().splitlines()[-1],
    )
    assert first.running()
    first.processes[0].kill()
    first.wait()
    wait_for(lambda: not first.running(), 90)
    third = train(QUICKSTART, *SUPERNET, "supernet.epochs=9", options=[], cwd=tmp_path, check=False)
    assert third.codes == [0], third.text()
    steps = [line["step"] for line in lines(tmp_path, "supernet")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("stage", "words"),
    [("supernet", r"stopped and saved after step \d+"), ("evolve", "stopped; what is done is saved")],
)
def test_ctrl_c_saves_says_so_and_shows_no_traceback(tmp_path, stage, words):
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, str(QUICKSTART), *SHORT, "evolve.generations=30"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    run = tmp_path / "runs" / "quickstart"
    wait_for(
        lambda: lines(tmp_path, "supernet") if stage == "supernet" else [*run.glob("supernet/scores/*/*-0.jsonl")], 90
    )
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's workers too
    assert process.wait(60) == 130
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text
    assert re.search(f"vitas: {stage}: {words}.*the same command goes on", text)
    if stage == "supernet":
        assert list((run / "supernet").glob("step_*"))


@pytest.mark.parametrize("options", [[], ["--cpu", "--num_processes", "2"], config("ddp")], ids=["one", "cpu", "ddp"])
def test_ctrl_c_under_the_launcher_saves_and_shows_no_traceback(tmp_path, options):
    with open(tmp_path / "log", "w") as log:
        command = [str(Path(sys.executable).with_name("accelerate")), "launch", *options, str(QUICKSTART), *SUPERNET]
        command += ["supernet.epochs=300", "supernet.checkpoint_every=100000"]
        launcher = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    wait_for(lambda: lines(tmp_path, "supernet") or launcher.poll() is not None, 90)
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(60) != 0
    wait_for(lambda: "stopped and saved after step" in (tmp_path / "log").read_text(), 60)
    assert list((tmp_path / "runs" / "quickstart" / "supernet").glob("step_*"))
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_second_ctrl_c_ends_at_once_but_two_signals_of_one_press_do_not():
    code = """
import os, signal, sys, time
from vitas.train.stop import StopRequest
stop = StopRequest()
with stop:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("saves", flush=True)
    time.sleep(2.1)
    os.kill(os.getpid(), signal.SIGINT)
    print("never")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "saves\n")
    assert done.stderr == "\nvitas: stops after this step, to save; Ctrl-C once more ends at once\n"


def test_a_resumed_training_takes_a_new_rate_and_end_from_that_step_on(tmp_path):
    """The weights are those of a plain loop that does the same."""
    first = {"epochs": 12, "lr": 1e-2, "weight_decay": 0.1}
    then = first | {"epochs": 10, "lr": 3e-3, "on_nonfinite": "skip"}
    assert Ranks(toy_training, str(tmp_path), first, [5], options=[], cwd=tmp_path).wait(60) == [2]
    told = Ranks(toy_training, str(tmp_path), then, [5], options=[], cwd=tmp_path)
    assert told.wait(60) == [0], told.text()
    assert (
        "retrain: from step 4 on with lr 0.003 in place of 0.01, epochs 10.0 in place of 12.0, "
        "on_nonfinite skip in place of stop"
    ) in told.text()
    change = {"lr": [0.01, 0.003], "epochs": [12.0, 10.0], "on_nonfinite": ["stop", "skip"]}
    metrics = read_lines(tmp_path / "quickstart" / "metrics.jsonl")
    assert [line for line in metrics if "changed" in line] == [{"stage": "retrain", "step": 5, "changed": change}]

    model = Toy()
    groups = [{"params": [model.head.bias], "weight_decay": 0.0}, {"params": [model.head.weight], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups)
    for step in range(10):
        settings = first if step < 4 else then
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = settings["lr"]
        end = settings["epochs"]
        CosineLRScheduler(
            optimizer, t_initial=end, warmup_t=1, warmup_lr_init=1e-6, t_in_epochs=False
        ).step_update(step)  # fmt: skip
        if step == 5:
            continue
        images, labels = toy_images(step, 8)
        torch.nn.functional.cross_entropy(model(images, None), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in load_file(tmp_path / "retrain" / "model.safetensors").items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_changes_are_noted_in_the_manifest_and_others_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VITAS_STOP_FILE", str(tmp_path))  # is there: stops after each step
    for changes in ([], ["supernet.lr=1e-3"]):
        assert train(QUICKSTART, *SUPERNET, *changes, cwd=tmp_path, check=False).codes == [75]
    manifest = checkpoint.manifest(tmp_path / "runs" / "quickstart" / "supernet" / "step_00000002")
    assert manifest["changes"] == [{"step": 1, "lr": [0.003, 0.001]}]
    refused = train(QUICKSTART, *SUPERNET, "supernet.weight_decay=0.2", cwd=tmp_path, check=False)
    assert refused.codes == [2]
    assert "supernet: made with supernet.weight_decay: 0.05, and the recipe now says 0.2" in refused.text()
    ended = train(QUICKSTART, *SUPERNET, "supernet.epochs=0.1", "supernet.warmup_epochs=0", cwd=tmp_path, check=False)
    assert "supernet.warmup_epochs" in ended.text()


def impatient(*arguments) -> int:
    failures.SHORT_WAIT = timedelta(seconds=6)
    return toy_training(*arguments)


@pytest.mark.parametrize("sign", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_ranks_do_not_wait_for_one_that_hangs_or_has_died(tmp_path, backend, sign):
    changes = {"epochs": 100_000, "checkpoint_every": 100}
    ranks = Ranks(impatient, str(tmp_path), changes, [], options=config(backend), cwd=tmp_path)
    wait_for(lambda: checkpoint._checkpoints(tmp_path / "retrain") or not ranks.running(), 90)
    os.kill(ranks.processes[1].pid, sign)
    ranks.processes[0].join(30)
    code = ranks.processes[0].exitcode
    ranks.processes[1].kill()
    assert code == 1, ranks.text()
    assert "vitas: retrain: in training: another rank has ended, or did not answer for 0.1 minutes" in ranks.text()
    assert "Traceback" not in ranks.text()


def test_checkpoints_come_by_the_clock_of_the_main_rank(tmp_path):
    changes = {"checkpoint_every": None, "checkpoint_minutes": 1e-6, "keep_checkpoints": 20}
    ranks = Ranks(toy_training, str(tmp_path), changes, [11], options=config("ddp"), cwd=tmp_path)
    ranks.wait(60)  # ends at the last step
    assert len(checkpoint._checkpoints(tmp_path / "retrain")) == 11
