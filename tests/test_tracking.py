import json

import pytest
import wandb
from accelerate import Accelerator

from vitas import recipe
from vitas.files import read_lines
from vitas.report import tracking
from vitas.report.tracking import Tracker, wandb_mode


@pytest.fixture
def tracker(quickstart, tmp_path):
    settings = quickstart.model_copy(update={"output": str(tmp_path)})
    settings.folder.mkdir(parents=True)
    return Tracker(settings, Accelerator())


def test_metrics_are_lines_and_a_resumed_stage_forgets_what_it_will_repeat(tracker):
    for step in (10, 20, 30):
        tracker.log("supernet", step, loss=1.0 / step)
    tracker.log("retrain", 10, loss=0.5)
    with tracker.file.open("a") as lines:
        lines.write('{"stage": "retr')  # what a kill leaves
    tracker.rewind("supernet", 20)
    assert [(line["stage"], line["step"]) for line in read_lines(tracker.file)] == [
        ("supernet", 10), ("supernet", 20), ("retrain", 10),
    ]  # fmt: skip


def test_wandb_is_online_only_if_logged_in_and_reachable(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto", lambda: True) == "online"
    assert wandb_mode("auto", lambda: False) == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("online", lambda: False) == "online"


@pytest.mark.filterwarnings("default")
def test_an_offline_wandb_run_is_written_with_the_stage_as_prefix(quickstart, tmp_path, capsys):
    settings = recipe.load(recipe_file(tmp_path, quickstart), [f"output={tmp_path}", "tracking.wandb=offline"])
    settings.folder.mkdir(parents=True)
    tracker = Tracker(settings, Accelerator(log_with="wandb"))
    tracker.log("supernet", 10, **{tracking.LOSS: 0.5})
    tracker.finish()
    wandb.teardown()  # waits for its service, which writes behind; the end of a process does it too
    assert "wandb: offline" in capsys.readouterr().out
    (written,) = (settings.folder / "wandb").glob("offline-run-*/*.wandb")
    assert b"supernet/loss" in written.read_bytes()
    assert json.loads(tracker.file.read_text())["loss"] == 0.5


def recipe_file(folder, settings):
    (folder / "r.yaml").write_text(recipe.dump(settings))
    return folder / "r.yaml"
