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
from conftest import QUICKSTART, ROOT, launch
from ranks import Ranks, config, recipe, wait_for
from wandb_files import segments

from vitas.cli import main
from vitas.config import UserError
from vitas.files import read_lines
from vitas.report import metrics, names
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
    return ranks.wait(400), ranks.text(), time.monotonic() - began


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
    stages = ["supernet", "evolve", "retrain", "baseline", "evaluate"]
    assert run(tmp_path, *every)[0] == [0]
    before = metrics.read_text()
    written = segments(tmp_path / "runs" / "quickstart")
    assert [(one.group, one.job_type) for one in written] == [("quickstart", stage) for stage in stages]
    assert all(one.config["supernet"]["batch_size"] == 32 for one in written)
    assert {"found/top1", "uniform_vit/macs"} <= written[-1].summary.keys()
    assert written[1].artifacts[-1] == "quickstart-evolve"
    assert run(tmp_path, *every)[0] == [0]
    assert metrics.read_text() == before
    assert len(segments(tmp_path / "runs" / "quickstart")) == len(stages)
    # As a kill leaves it that comes between the two models, and in a line of the search.
    lines = before.splitlines(keepends=True)
    assert [json.loads(line).get("model") for line in lines[-2:]] == ["found", "uniform ViT"]
    metrics.write_text("".join(lines[:-1]))
    (tmp_path / "runs" / "quickstart" / "evolution" / "best.yaml").unlink()
    assert run(tmp_path, *every)[0] == [0]
    again = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in again if line["stage"] == "evolve"] == [1, 2]
    assert [line["model"] for line in again if line["stage"] == "evaluate"] == ["found", "uniform ViT"]
    more = segments(tmp_path / "runs" / "quickstart")[len(stages) :]
    assert [one.job_type for one in more] == ["evolve", "evaluate"]
    assert not any("evolve/top1" in row for row in more[0].rows)  # only the front, which the end of a search shows
    # Other weights are other figures.
    weights = tmp_path / "runs" / "quickstart" / "retrain" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    assert run(tmp_path, *every)[0] == [0]
    again = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["model"] for line in again if line["stage"] == "evaluate"] == ["found", "uniform ViT", "found"]


def test_the_page_of_metrics_is_that_of_the_code():
    assert (ROOT / "docs" / "METRICS.md").read_text() == metrics.page(), (
        "python -m vitas.report.metrics > docs/METRICS.md"
    )


@pytest.mark.launch
@pytest.mark.slow
def test_every_metric_reaches_every_tracker_once_also_after_a_kill(newcomer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every = [
        "stages=[supernet,evolve,rank,retrain,baseline,evaluate]", "data.workers=0", "tracking.wandb=offline",
        "tracking.with=[tensorboard]", "supernet.epochs=2", "supernet.warmup_epochs=0.1", "supernet.validate_every=1",
        "supernet.checkpoint_every=8", "retrain.epochs=0.6", "retrain.warmup_epochs=0.1", "retrain.validate_every=1",
        "retrain.ema=0.9", "evolve.population=3", "evolve.generations=2", "evolve.batch_size=16", "evolve.finalists=0",
        "evolve.objectives=[top1,loss,macs]", "rank.sample=3", "rank.seeds=2", "rank.epochs=0.1",
    ]  # fmt: skip
    folder = tmp_path / "runs" / "quickstart"
    killed = Ranks(recipe, str(QUICKSTART), *every, options=[], cwd=tmp_path)
    # Step 20 is sent, and done again from the checkpoint of step 16 on.
    wait_for(lambda: '"step": 20, "loss"' in (folder / "metrics.jsonl").read_text(), 300)
    killed.processes[0].kill()
    killed.wait()
    done = Ranks(recipe, str(QUICKSTART), *every, options=[], cwd=tmp_path)
    assert done.wait(500) == [0], done.text()
    assert "supernet: goes on from step" in done.text()

    lines = read_lines(folder / "metrics.jsonl")
    places = [(line["stage"], line["step"], line.get("model")) for line in lines]
    assert len(set(places)) == len(places)
    known = {axis: {metric.name for metric in each} for axis, each in metrics.METRICS.items()}
    absent = {names.MFU, names.LEFT_OUT, names.CHANGED}  # of GPUs, and of trainings that went otherwise
    for axis, all_names in known.items():
        told = {name for line in lines if line["stage"] in axis.kinds for name in line} - {"stage", "step"}
        assert told == all_names - absent

    wanted = {
        (f"{line['stage']}/{line.get('model', '')}/{name}".replace("//", "/").replace(" ", "_"), line["step"])
        for line in lines
        for name, value in line.items()
        if isinstance(value, (int, float)) and name != "step"
    }
    rows = [row for segment in segments(folder) for row in segment.rows]
    sent = [
        (name, row[f"{name.partition('/')[0]}/step"])
        for row in rows
        for name, value in row.items()
        if not name.endswith("/step") and not name.startswith("_") and "." not in name
    ]
    assert len(set(sent)) == len(sent)
    # Trackers write behind: what was sent in the seconds before the kill may be lost. It is not sent again.
    early = {(name, step) for name, step in wanted if name.startswith("supernet/") and step <= 20}
    assert wanted - early <= set(sent) <= wanted
    assert {name for name, _ in sent} == {name for name, _ in wanted}
    assert {"evolve/heads.bins", "evolve/front.path", "evolve/architecture.path"} <= {
        name for row in rows for name in row
    }

    drawn = []
    for stage in ("supernet", "evolve", "rank", "retrain", "baseline", "evaluate"):
        events = EventAccumulator(str(folder / "tensorboard" / stage)).Reload()
        drawn += [(name, event.step) for name in events.Tags()["scalars"] for event in events.Scalars(name)]
    assert len(set(drawn)) == len(drawn)
    assert wanted - early <= set(drawn) <= wanted


def test_what_a_resumed_stage_repeats_is_not_sent_again(quickstart, tmp_path):
    tracking = quickstart.tracking.model_copy(update={"wandb": "offline"})
    settings = quickstart.model_copy(update={"output": str(tmp_path), "tracking": tracking})
    settings.folder.mkdir(parents=True)
    for first, stop, rewound in ((10, 50, None), (20, 40, 10), (20, 70, 10)):  # killed twice, the second time earlier
        tracker = Tracker(settings, Accelerator())
        if rewound:
            tracker.rewind("supernet", rewound, rewound)
        for step in range(first, stop, 10):
            tracker.log("supernet", step, loss=1.0 / step, images_per_second=float(stop))
            tracker.log("supernet", step, model="largest", holdout_top1=float(step))
        tracker.finish()
    assert [line["step"] for line in read_lines(tracker.file)] == [step for step in range(10, 70, 10) for _ in "ab"]
    rows = [row for segment in segments(settings.folder) for row in segment.rows]
    for name in ("supernet/loss", "supernet/largest/holdout_top1"):
        # Those of segments that begin in the same second lie in no order.
        assert sorted(row["supernet/step"] for row in rows if name in row) == [10, 20, 30, 40, 50, 60]
    # Begun anew with other settings it is another run, of which all is sent.
    other = settings.model_copy(update={"seed": 5})
    tracker = Tracker(other, Accelerator())
    tracker.rewind("supernet", 0)
    tracker.log("supernet", 10, loss=3.0)
    tracker.finish()
    losses = [[row.get("supernet/loss") for row in segment.rows] for segment in segments(settings.folder)]
    assert [3.0] in losses


def test_a_tracker_that_fails_is_one_line_and_the_others_go_on(quickstart, tmp_path, capsys):
    tracking = quickstart.tracking.model_copy(update={"others": ["tensorboard"], "wandb": "offline"})
    settings = quickstart.model_copy(update={"output": str(tmp_path), "tracking": tracking})
    settings.folder.mkdir(parents=True)
    (settings.folder / "tensorboard").write_text("in the way")
    tracker = Tracker(settings, Accelerator())
    tracker.log("supernet", 10, loss=1.0)
    tracker.log("supernet", 20, loss=0.5)
    tracker.finish()
    warned = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warned) == 1 and warned[0].startswith("warning: tensorboard: ") and "goes on without it" in warned[0]
    # wandb's own process writes the file, perhaps a moment after the end.
    wait_for(lambda: [row["supernet/loss"] for row in segments(settings.folder)[0].rows] == [1.0, 0.5])


def test_a_dashboard_is_built_without_the_service(newcomer, tmp_path, capsys):
    assert main(["dashboard", "me/vitas", "-o", str(tmp_path / "view.json")]) == 0
    view = json.loads((tmp_path / "view.json").read_text())
    assert (view["entity"], view["project"]) == ("me", "vitas")
    sections = {one["name"]: one["panels"] for one in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Supernet", "Search", "Retrain"]
    known = {name for each in metrics.METRICS.values() for name in (metric.name for metric in each)} | {*names.CHOSEN}
    plots = [panel["config"] for panels in sections.values() for panel in panels if "xAxis" in panel["config"]]
    assert len(plots) > 25
    for plot in plots:  # each by its own axis, and of metrics that there are
        (kind,) = {plot["xAxis"].removesuffix("/step"), *(name.partition("/")[0] for name in plot["metrics"])}
        assert kind in ("supernet", "evolve", "retrain", "baseline")
        assert {name.rpartition("/")[2] for name in plot["metrics"]} <= known
    capsys.readouterr()
    assert main(["dashboard", "me/vitas"]) == 2
    assert "dashboard: not logged in to https://" in capsys.readouterr().err
