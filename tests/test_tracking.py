import base64
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest
from accelerate import Accelerator
from conftest import QUICKSTART, launch
from ranks import Ranks, config, recipe

from vitas.config import UserError
from vitas.files import read_lines
from vitas.report.login import wandb_mode
from vitas.report.tracking import Tracker

TWO_STEPS = [
    "stages=[supernet]", "supernet.epochs=0.05", "supernet.warmup_epochs=0.02", "supernet.batch_size=32",
    "data.workers=0",
]  # fmt: skip
KEY = "k" * 40


@pytest.fixture
def tracker(quickstart, tmp_path):
    settings = quickstart.model_copy(update={"output": str(tmp_path)})
    settings.folder.mkdir(parents=True)
    return Tracker(settings, Accelerator())


@pytest.fixture
def newcomer(tmp_path):
    """The environment of somebody who has never used wandb; its `HOME` is an empty folder."""
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    with mock.patch.dict(os.environ, kept | {"HOME": str(tmp_path / "home")}, clear=True):
        yield tmp_path / "home"


@pytest.fixture
def silent_server():
    """The address of a server that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def server():
    """A server that answers each question of wandb with a status, by default 200, and no data."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(http.status)
            self.end_headers()
            self.wfile.write(b'{"data": {}}')

        do_GET = do_POST

        def log_message(self, *_):
            pass

    http, asked = ThreadingHTTPServer(("127.0.0.1", 0), Handler), []
    http.status, http.asked, http.url = 200, asked, f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def run(cwd, *overrides: str, options=()) -> tuple[list[int], str, float]:
    """Exit codes, output and seconds of a run of two steps."""
    began = time.monotonic()
    ranks = Ranks(recipe, str(QUICKSTART), *TWO_STEPS, *overrides, options=list(options), cwd=cwd)
    return ranks.wait(200), ranks.text(), time.monotonic() - began


def wandb_runs(folder) -> list[str]:
    return sorted(path.name.split("-run-")[0] for path in folder.glob("runs/quickstart/wandb/*run-*"))


def test_metrics_are_lines_and_a_resumed_stage_forgets_what_it_will_repeat(tracker):
    for step in (10, 20, 30):
        tracker.log("supernet", step, loss=1.0 / step)
    tracker.log("retrain", 10, loss=0.5)
    with tracker.file.open("a") as lines:
        lines.write('{"stage": "retr')  # what a kill leaves
    tracker.rewind("supernet", 20)
    tracker.log("supernet", 30, loss=1.0 / 30)
    assert [(line["stage"], line["step"]) for line in read_lines(tracker.file)] == [
        ("supernet", 10), ("supernet", 20), ("retrain", 10), ("supernet", 30),
    ]  # fmt: skip


def test_a_resumed_stage_forgets_the_validations_that_its_checkpoint_does_not_know_of(tracker):
    for step in (10, 20):
        tracker.log("retrain", step, loss=1.0 / step)
        tracker.log("retrain", step, model="average", test_top1=float(step))
    tracker.rewind("retrain", 20, 10)
    assert [(line["step"], "model" in line) for line in read_lines(tracker.file)] == [
        (10, False), (10, True), (20, False),
    ]  # fmt: skip


def test_what_is_in_the_file_is_not_written_again_by_the_next_process(tracker):
    tracker.log("evolve", 1, best_top1=5.0)
    again = Tracker(tracker.recipe, tracker.accelerator)
    again.log("evolve", 1, best_top1=5.0)
    again.log("evolve", 2, best_top1=6.0)
    assert [line["step"] for line in read_lines(tracker.file)] == [1, 2]
    assert again.find("evolve", step=2) == {"best_top1": 6.0}
    assert again.find("evolve", step=3) is None


def test_damaged_lines_of_metrics_are_passed_over_and_told(tracker, capsys):
    tracker.log("supernet", 10, loss=0.5)
    with tracker.file.open("ab") as lines:
        lines.write(b'[1]\n\xff\x00\n{"stage": "supernet"}\n{"loss": 3}\n' + b"[" * 100_000 + b"\n")
    tracker.rewind("supernet", 20)
    assert [line["step"] for line in read_lines(tracker.file)] == [10]
    told = capsys.readouterr().out.splitlines()
    assert told == [f"warning: {tracker.file}: line {line} is damaged, and passed over" for line in range(2, 7)]


@pytest.mark.launch
def test_a_newcomer_who_types_a_recipe_with_wandb_auto_gets_an_offline_run(newcomer, tmp_path):
    done = launch(QUICKSTART, *TWO_STEPS, "tracking.wandb=auto", cwd=tmp_path)
    assert "wandb: offline, in runs/quickstart/wandb: not logged in to https://" in done.stdout
    assert wandb_runs(tmp_path) == ["offline"]
    (written,) = tmp_path.glob("runs/quickstart/wandb/offline-run-*/*.wandb")
    assert b"supernet/loss" in written.read_bytes()
    assert len(read_lines(tmp_path / "runs" / "quickstart" / "metrics.jsonl")) == 1


@pytest.mark.launch
def test_a_server_that_never_answers_costs_five_seconds_and_no_run(newcomer, silent_server, tmp_path):
    with mock.patch.dict(os.environ, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": silent_server}):
        codes, text, _ = run(tmp_path, "tracking.wandb=auto")
        assert (codes, wandb_runs(tmp_path)) == ([0], ["offline"]), text
        assert f"wandb: offline, in runs/quickstart/wandb: {silent_server} cannot be reached: timed out" in text
        codes, text, seconds = run(tmp_path, "tracking.wandb=online", "name=online")
    assert codes == [2]
    assert f"vitas: tracking.wandb: online: {silent_server} cannot be reached: timed out" in text
    assert seconds < 15


def test_a_login_is_found_wherever_wandb_finds_it(newcomer, tmp_path, monkeypatch):
    nobody = "http://127.0.0.1:9"
    netrc = f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n"
    monkeypatch.setenv("WANDB_BASE_URL", nobody)
    assert wandb_mode("auto") == ("offline", f"not logged in to {nobody} (wandb login)")
    unreachable = ("offline", f"{nobody} cannot be reached: [Errno 111] Connection refused")
    with monkeypatch.context() as inside:
        inside.setenv("WANDB_API_KEY", KEY)
        assert wandb_mode("auto") == unreachable
    with monkeypatch.context() as inside:
        (tmp_path / "logins").write_text(netrc)
        inside.setenv("NETRC", str(tmp_path / "logins"))
        assert wandb_mode("auto") == unreachable
    (newcomer / ".netrc").write_text(netrc)
    assert wandb_mode("auto") == unreachable
    (newcomer / ".netrc").write_text("machine")
    assert "not logged in" in wandb_mode("auto")[1]
    settings = newcomer / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\nbase_url = {nobody}\napi_key = {KEY}\n")
    monkeypatch.delenv("WANDB_BASE_URL")
    assert wandb_mode("auto") == unreachable
    settings.write_text("[default]\nmode = offline\n")  # what `wandb offline` writes
    assert wandb_mode("auto") == ("offline", "")


@pytest.mark.parametrize("status", [200, 401])
def test_the_key_is_tried_before_the_run(newcomer, server, monkeypatch, status):
    server.status = status
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    told = {200: ("online", ""), 401: ("offline", f"{server.url} does not take the key (wandb login)")}
    assert wandb_mode("auto") == told[status]
    assert server.asked == [f"/graphql Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"]


def test_the_mode_of_the_environment_overrules_the_recipe(newcomer, monkeypatch):
    for told, asked, mode in (
        ("disabled", "online", None), ("offline", "online", "offline"), ("dryrun", "auto", "offline"),
        ("online", "never", None), ("", "offline", "offline"),
    ):  # fmt: skip
        monkeypatch.setenv("WANDB_MODE", told)
        assert wandb_mode(asked) == (mode, "")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="online: not logged in"):
        wandb_mode("auto")
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="WANDB_MODE: expected online, offline or disabled, got ofline"):
        wandb_mode("auto")


@pytest.mark.launch
def test_a_server_that_talks_nonsense_costs_the_dashboard_and_not_the_run(newcomer, server, tmp_path):
    with mock.patch.dict(os.environ, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}):
        codes, text, _ = run(tmp_path, "tracking.wandb=auto")
    assert codes == [0], text
    assert "wandb: online\n" in text
    assert any("file_stream" in question for question in server.asked)  # wandb did send
    assert len(read_lines(tmp_path / "runs" / "quickstart" / "metrics.jsonl")) == 1


@pytest.mark.launch
@pytest.mark.parametrize("options", [[], config("ddp")], ids=["one", "ddp"])
def test_online_without_a_login_is_one_line_of_all_ranks_at_once(newcomer, tmp_path, options):
    codes, text, _ = run(tmp_path, "tracking.wandb=online", options=options)
    assert codes == [2] * (2 if options else 1)
    (line,) = [line for line in text.splitlines() if line.startswith("vitas")]
    assert "tracking.wandb: online: not logged in to https://" in line
    assert "tracking.wandb=offline" in line
    assert not (tmp_path / "runs" / "quickstart" / "recipe.yaml").exists()


@pytest.mark.launch
def test_a_finished_run_that_is_started_again_adds_no_metrics_and_no_wandb_run(newcomer, tmp_path):
    every = [
        *TWO_STEPS, "stages=[supernet,evolve,retrain,baseline,evaluate]", "evolve.population=2", "evolve.generations=2",
        "retrain.epochs=0.05", "retrain.warmup_epochs=0.02", "retrain.batch_size=32", "tracking.wandb=offline",
    ]  # fmt: skip
    metrics = tmp_path / "runs" / "quickstart" / "metrics.jsonl"
    assert run(tmp_path, *every)[0] == [0]
    before = metrics.read_text()
    assert wandb_runs(tmp_path) == ["offline"]
    (written,) = tmp_path.glob("runs/quickstart/wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    assert b"evaluate/found/top1" in content
    assert b"evaluate/uniform_ViT/top1" in content
    assert run(tmp_path, *every)[0] == [0]
    assert metrics.read_text() == before
    assert wandb_runs(tmp_path) == ["offline"]
    # As a kill leaves it that comes between the two models, and in a line of the search.
    lines = before.splitlines(keepends=True)
    assert [json.loads(line).get("model") for line in lines[-2:]] == ["found", "uniform ViT"]
    metrics.write_text("".join(lines[:-1]))
    (tmp_path / "runs" / "quickstart" / "evolution" / "best.yaml").unlink()
    assert run(tmp_path, *every)[0] == [0]
    again = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in again if line["stage"] == "evolve"] == [1, 2]
    assert [line["model"] for line in again if line["stage"] == "evaluate"] == ["found", "uniform ViT"]
    assert wandb_runs(tmp_path) == ["offline", "offline"]
    # Other weights are other figures.
    weights = tmp_path / "runs" / "quickstart" / "retrain" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    assert run(tmp_path, *every)[0] == [0]
    again = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["model"] for line in again if line["stage"] == "evaluate"] == ["found", "uniform ViT", "found"]
