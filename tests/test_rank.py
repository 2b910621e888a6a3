"""The stage `rank`, by its command: one table whatever the ranks, kills and earlier samples."""

import json
import os
import shutil
import signal

import pytest
from conftest import QUICKSTART, SHORT
from PIL import Image
from ranks import Ranks, config, wait_for

from vitas import recipe
from vitas.cli import main
from vitas.files import read_lines
from vitas.runs import stages

pytestmark = pytest.mark.launch

SETTINGS = [setting for setting in SHORT if not setting.startswith("evolve.pop")]
SETTINGS += ["data.workers=0", "data.holdout=0.3", "retrain.checkpoint_every=2", "rank.epochs=0.5"]
SMALL = ["--sample", "3", "--seeds", "2"]


def rank(*arguments: str) -> int:
    return main(["rank", *map(str, arguments)])


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """The run of a trained supernet."""
    folder = tmp_path_factory.mktemp("supernet")
    stages.run(recipe.load(QUICKSTART, [*SETTINGS, f"output={folder}", "stages=[supernet]"]))
    return folder / "quickstart"


@pytest.fixture(scope="module")
def whole(supernet, tmp_path_factory):
    """The same run, ranked by one process."""
    run = shutil.copytree(supernet, tmp_path_factory.mktemp("whole") / "quickstart")
    assert rank(run, *SMALL) == 0
    return run


@pytest.fixture
def copy(supernet, tmp_path):
    return shutil.copytree(supernet, tmp_path / "moved")


def table(run) -> str:
    return (run / "rank" / "ranking.json").read_text()


def trainings(run) -> list[tuple[str, int]]:
    return [(line["key"], line["number"]) for line in lines(run)]


def lines(run) -> list[dict]:
    return [line for file in sorted(run.glob("rank/trainings/*/*.jsonl")) for line in read_lines(file)]


def test_the_table_says_all_and_nothing_else_is_left(whole, supernet):
    (found,) = json.loads(table(whole))["tables"]
    assert list(found["rankings"]) == ["supernet", "supernet_loss", "supernet_smoothed", "macs", "params", "dss"]
    scores = [row["supernet_top1"] for row in found["architectures"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(trainings(whole)) == sorted(
        (row["key"], number) for row in found["architectures"] for number in range(2)
    )
    assert len({figure for row in found["architectures"] for figure in row["loss"]}) == 6  # seeds are others
    assert not list(whole.glob("rank/a*-*"))
    with Image.open(whole / "rank" / "ranking.png") as picture:
        assert picture.size[0] > 500
    assert json.loads(table(whole))["schedule"].startswith(f"{len(scores)} architectures, each trained alone")
    (metrics,) = [line for line in read_lines(whole / "metrics.jsonl") if line["stage"] == "rank"]
    assert metrics["tau_supernet"] == found["rankings"]["supernet"]["tau"] and metrics["ceiling"] == found["ceiling"]
    assert (whole / "recipe.yaml").read_text() == (supernet / "recipe.yaml").read_text()


def test_two_ranks_give_the_table_of_one(whole, copy, tmp_path):
    ranks = Ranks(rank, str(copy), *SMALL, options=config("ddp"), cwd=tmp_path)
    assert ranks.wait(200) == [0, 0], ranks.text()
    assert table(copy) == table(whole)
    assert {line["rank"] for line in lines(copy)} == {0, 1}
    assert sorted(trainings(copy)) == sorted(trainings(whole))
    # Figures of one rank are those of the other, however they were dealt out.
    figures = [{(line["key"], line["number"]): line["loss"] for line in lines(run)} for run in (copy, whole)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_ranking_that_was_stopped_in_a_training_goes_on_to_the_same_table(whole, copy, tmp_path, sign):
    ranks = Ranks(rank, str(copy), *SMALL, options=config("ddp"), cwd=tmp_path)
    wait_for(lambda: (lines(copy) and list(copy.glob("rank/a*-*/step_*"))) or not ranks.running(), 200)
    for process in ranks.processes:
        os.kill(process.pid, sign)
    codes = ranks.wait()
    assert set(codes) <= ({-9} if sign == signal.SIGKILL else {75}), ranks.text()
    done = trainings(copy)
    assert 0 < len(done) < 6
    assert list(copy.glob("rank/a*-*/step_*"))
    if sign == signal.SIGTERM:
        assert "the same command goes on" in ranks.text() and "Traceback" not in ranks.text()
    again = Ranks(rank, str(copy), *SMALL, options=[], cwd=tmp_path)
    assert again.wait(200) == [0], again.text()
    assert table(copy) == table(whole)
    assert sorted(trainings(copy)) == sorted(trainings(whole)) and set(done) < set(trainings(copy))


def test_more_architectures_or_seeds_train_only_what_is_new_and_another_schedule_all(whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "quickstart")
    before = trainings(run)
    assert rank(run, "--sample", "6", "--seeds", "2") == 0
    more = trainings(run)
    assert len(more) == len(set(more)) and set(before) < set(more)
    rows = json.loads(table(run))["tables"][0]["architectures"]
    kept = {key for key, _ in before} & {row["key"] for row in rows}
    assert kept and len(more) == len(before) + 2 * (6 - len(kept))
    assert rank(run, "--sample", "6", "--seeds", "3") == 0
    assert set(trainings(run)) - set(more) == {(row["key"], 2) for row in rows}
    count = len(trainings(run))
    assert rank(run, "--sample", "3", "--seeds", "1", "rank.epochs=0.2") == 0
    assert len(trainings(run)) == count + 3
    assert "the ceiling" not in capsys.readouterr().out


def test_each_of_several_budgets_has_a_table(copy, capsys):
    budgets = ["budget.macs=null", "budgets.small.macs=[0.4e6,0.6e6]", "budgets.base.macs=[0.8e6,1.2e6]"]
    assert rank(copy, "--sample", "3", "--seeds", "1", "--epochs", "0.1", *budgets) == 0
    small, base = json.loads(table(copy))["tables"]
    assert (small["budget"], base["budget"]) == ("small", "base")
    assert all(0.4e6 <= row["macs"] <= 0.6e6 for row in small["architectures"])
    assert capsys.readouterr().out.count("the supernet") >= 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "quickstart/supernet/model.safetensors: No such file or directory: stage rank needs a supernet; add"),
        (["supernet.from=nowhere"], "supernet.from: nowhere/model.safetensors: No such file or directory"),
        (["--sample", "2"], "rank.sample: expected greater than or equal to 3, got 2"),
        (["--seeds", "0"], "rank.seeds: expected greater than or equal to 1, got 0"),
        (["--epochs", "none"], "rank.epochs: "),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert rank("quickstart", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
