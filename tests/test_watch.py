"""What people see of a run that is at work: the view of its folder, and its bars, in a real terminal of 80 columns."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICKSTART, ROOT

from vitas.cli import main
from vitas.recipe import dump, load
from vitas.report import blocks, tables
from vitas.report.outlook import Outlook, Work
from vitas.report.terminal import progress
from vitas.runs.reporting import Reporting
from vitas.spaces.architecture import Architecture, Block

LINES = [
    {"stage": "supernet", "step": 10, "loss": 2.0, "images_per_second": 500.0, "lr": 1e-3, "epoch": 0.5},
    {"stage": "supernet", "step": 20, "loss": 1.0, "images_per_second": 500.0, "lr": 1e-3, "epoch": 1.0},
    {"stage": "supernet", "step": 20, "model": "largest", "holdout_top1": 61.0, "epoch": 1.0},
    {"stage": "evolve", "step": 1, "best_top1": 70.0, "median_top1": 50.0, "scored": 3, "candidates_per_hour": 1234.5},
    {"stage": "evolve/other", "step": 7, "best_top1": 99.0, "scored": 3},
]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run that is searching."""
    folder = tmp_path / "quickstart"
    (folder / "supernet").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(load(QUICKSTART)))
    (folder / "supernet" / "model.safetensors").touch()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"stage": "evol')
    outlook = Outlook(folder)
    outlook.works = {"evolve": Work(100.0, "score"), "retrain": Work(300.0, "train")}
    with progress("evolve", 128, "candidate", show=True) as bar:
        outlook.follow(bar, "evolve")
        bar.start_t = time.time() - 60
        bar.update(32)
    return folder


def test_a_run_is_watched_from_its_folder_alone(run_folder, capsys):
    assert main(["watch", str(run_folder), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "supernet  done\n  step 20: loss 1.000, images/s 500, lr 1.0e-03\n  █▁\n  top-1 %: largest 61.0\n" in shown
    assert "evolve    at work\n  step 1: best 70.00, median 50.00, an hour 1,234\n" in shown
    assert "99.00" not in shown  # of another search
    assert "retrain   waits\n" in shown
    assert "evolve 25% |████▌             | 32/128 candidates\n03:00 left, 15:00 of the run\n" in shown
    assert f"process {os.getpid()} on " in shown


def test_damaged_and_missing_files_are_watched_as_well(run_folder, capsys):
    for name in ("progress.json", "metrics.jsonl", "recipe.yaml"):
        (run_folder / name).write_text("[1, {")
        assert main(["watch", str(run_folder)]) == 0
    (run_folder / "recipe.yaml").unlink()
    capsys.readouterr()
    assert main(["watch", str(run_folder)]) == 2
    assert capsys.readouterr().err == f"vitas: {run_folder}: no run: there is no recipe.yaml in it\n"


def test_time_is_counted_over_all_starts_of_a_run(tmp_path):
    for _ in range(2):
        with Reporting(tmp_path, {"devices": 4}) as told, told.stage("supernet"):
            time.sleep(1)
    assert len(told.times) == 2 and all(1 <= one["seconds"] < 5 for one in told.times)
    hour = {"stage": "supernet", "seconds": 1800.0, "devices": 4}
    assert tables.time_table([hour, {**hour, "stage": "rank"}, hour], ["supernet", "evolve"]).splitlines()[1:] == [
        "supernet           1:00:00         4.000", "evolve               00:00         0.000",
        "all                1:00:00         4.000",
    ]  # fmt: skip


def test_architectures_are_drawn_to_scale(capsys):
    wide, narrow = Block(heads=2, qkv_dim=24, mlp_dim=96), Block(heads=1, qkv_dim=48, mlp_dim=48)
    one = Architecture(image_size=8, patch_size=4, embed_dim=8, blocks=(wide, None, narrow))
    _, first, skipped, last = blocks.bars(one)
    assert (first.count("█"), last.count("█")) == (6 + 24, 12 + 12) and skipped.endswith("skipped")
    assert main(["describe", "vitas_b", "deit_ti"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["vitas_b", "deit_ti"] and max(map(len, lines)) <= 80
    assert lines[5].split() == ["flops", "paper", "990,624,768", "1,284,003,840"]
    assert len([line for line in lines if line[:1].isdigit()]) == 16
    assert main(["describe", "vitas_b", "deit_ti", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deit_ti"]["macs"] == 1_253_683_200


class Pane:
    """A command in a terminal of tmux's, 80 columns wide."""

    def __init__(self, name: str, command: list[str], cwd: Path) -> None:
        self.tmux = ["tmux", "-L", f"vitas-{os.getpid()}-{name}"]
        # By way of a shell that stays: what is on the screen at the end can still be looked at.
        line = f"cd {shlex.quote(str(cwd))}; PYTHONPATH={ROOT} {shlex.join(command)}; echo ended $?; cat"
        environment = os.environ | {"TERM": "screen", "LC_ALL": "C.UTF-8"}
        new = [*self.tmux, "-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "50", line]
        subprocess.run(new, check=True, env=environment)

    def screen(self) -> list[str]:
        """The lines that are on the screen, or were; those that were wrapped are told as one."""
        captured = subprocess.run([*self.tmux, "capture-pane", "-pJ", "-S", "-"], capture_output=True, text=True)
        return [line.rstrip() for line in captured.stdout.splitlines()]

    def wait(self, words: str, seconds: float) -> list[str]:
        end = time.monotonic() + seconds
        while words not in "\n".join(lines := self.screen()):
            assert time.monotonic() < end, lines
            time.sleep(0.1)
        return lines

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([*self.tmux, "kill-server"], capture_output=True)


@pytest.mark.tmux
def test_the_view_in_a_terminal_has_no_wrapped_and_no_doubled_lines(run_folder):
    command = [sys.executable, "-m", "vitas", "watch", str(run_folder)]
    with Pane("watch", command, run_folder) as pane:
        pane.wait("at work", 60)
        with (run_folder / "metrics.jsonl").open("a") as lines:
            lines.write("\n" + json.dumps(LINES[3] | {"step": 2, "best_top1": 71.5}) + "\n")
        lines = pane.wait("best 71.50", 60)
        assert max(map(len, lines)) <= 80
        for start in ("supernet ", "evolve  ", "  step 2:", "retrain ", "evolve 25%"):
            assert len([line for line in lines if line.startswith(start)]) == 1, lines
        assert not any("best 70.00" in line for line in lines)
        Outlook(run_folder).end()
        assert "the run is done" in "\n".join(pane.wait("ended 0", 60))


@pytest.mark.tmux
@pytest.mark.launch
def test_the_bars_in_a_terminal_have_no_wrapped_and_no_doubled_lines(tmp_path):
    settings = [
        "stages=[supernet,evolve,retrain]", "supernet.epochs=2", "supernet.warmup_epochs=1",
        "supernet.validate_every=1", "retrain.epochs=1", "retrain.warmup_epochs=0.5", "evolve.population=4",
        "evolve.generations=2", "evolve.batch_size=16", "evolve.finalists=0", "data.workers=0",
    ]  # fmt: skip
    with Pane("bars", [sys.executable, "-m", "vitas", "run", str(QUICKSTART), *settings], tmp_path) as pane:
        at_work = pane.wait("loss=", 200)
        lines = pane.wait("ended 0", 500)
    for seen in (at_work, lines):
        bars = [line for line in seen if "|" in line]
        assert all(len(line) <= 80 for line in bars), bars
        assert len({line.split()[0] for line in bars}) == len(bars), bars
    (bar,) = [line for line in at_work if "of the run" in line]
    assert "left" in bar and "loss=" in bar
    stages = ["supernet", "evolution/smoothing", "evolve", "retrain"]
    assert [line.split()[0] for line in lines if "|" in line] == stages
    assert any("top-1=" in line for line in lines if line.startswith("supernet "))
    assert not any("arning" in line for line in lines)
