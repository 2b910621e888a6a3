"""Many searches of one supernet, on any number of ranks: real runs, and none scores what another one has scored."""

import json
import os
import random
import re
import shutil
import signal
import time

import pytest
from conftest import QUICKSTART, SHORT, first_of
from ranks import Ranks, config, train
from ranks import recipe as run_recipe
from test_launch import scored

from vitas import recipe
from vitas.cli import main
from vitas.config import UserError
from vitas.files import read_lines
from vitas.models.measured import measure
from vitas.models.saved import load_model
from vitas.models.vit import VisionTransformer
from vitas.report.page.compare import compare
from vitas.report.page.figures import figures
from vitas.runs import stages
from vitas.runs.result import Result
from vitas.spaces.architecture import Architecture
from vitas.spaces.cost import count

pytestmark = pytest.mark.launch

SEARCH = [setting for setting in SHORT if not setting.startswith("evolve.")]
SEARCH += ["data.workers=0", "evolve.batch_size=16", "evolve.population=8", "evolve.generations=4", "data.holdout=0.3"]
SEARCH += ["evolve.finalists=0", "evolve.smooth=0", "evolve.objectives=[top1]"]


def run(folder, *overrides: str) -> None:
    stages.run(recipe.load(QUICKSTART, [*SEARCH, f"output={folder}", *overrides]))


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """The run of a trained supernet that was never searched."""
    folder = tmp_path_factory.mktemp("supernet")
    run(folder, "stages=[supernet]")
    return folder / "quickstart"


@pytest.fixture
def copy(supernet, tmp_path):
    return shutil.copytree(supernet, tmp_path / "quickstart")


def outcome(folder) -> dict[str, str]:
    names = ("candidates.jsonl", "front.json", "best.yaml")
    return {name: (folder / name).read_text() for name in names}


def test_three_searches_with_three_budgets_score_nothing_twice(copy):
    windows = ("[0.5e6,0.9e6]", "[0.8e6,1.2e6]", "[0.5e6,1.2e6]")
    for name, window in zip(("small", "base", "both"), windows, strict=True):
        run(copy.parent, "stages=[evolve]", f"budget.macs={window}", f"evolve.name={name}")
        low, high = json.loads(window)
        assert all(low <= entry["macs"] <= high for entry in read_lines(copy / name / "candidates.jsonl"))
    done = scored(copy)
    keys = {
        entry["key"] for name in ("small", "base", "both") for entry in read_lines(copy / name / "candidates.jsonl")
    }
    slices = {number for _, number in done}
    assert len(done) == len(set(done)) == len(keys) * len(slices)
    # Another algorithm, other objectives, from another run: only what is new is scored.
    run(copy.parent, "name=elsewhere", f"supernet.from={copy}", "evolve.objectives=[top1,params]")
    run(copy.parent, "stages=[evolve]", "evolve.name=aging", "evolve.algorithm=regularized", "seed=0")
    again = scored(copy)
    assert len(again) == len(set(again))
    assert not (copy.parent / "elsewhere" / "supernet").exists()
    lines = read_lines(copy / "metrics.jsonl")
    assert [line["step"] for line in lines if line["stage"] == "evolve/base"] == [1, 2, 3, 4]


def test_what_another_search_found_is_not_taken_for_what_was_trained(copy, capsys):
    run(copy.parent, "stages=[evolve,retrain,evaluate]")
    trained = Result(copy).model().architecture
    run(copy.parent, "stages=[evolve]", "evolve.name=small", "budget.macs=[0.3e6,0.6e6]")
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    result = Result(copy)
    with pytest.raises(UserError, match=r"best is not trained yet; model\('found before'\) is"):
        result.model()
    assert result.model("found before").architecture == trained != result.best
    said = " ".join(figures(copy)["sentences"])
    assert "Trained alone, before the last search, the found architecture reaches" in said
    assert "score" not in compare([copy])["runs"][0]
    words = command.partition("-m vitas ")[2].split()
    stages.run(recipe.load(*words[:1], words[1:]))  # as it says
    found = Result(copy.parent / "quickstart-small")
    assert found.model().architecture == found.best == result.best


def test_a_search_continued_is_one_that_was_longer_from_the_start(copy, capsys):
    run(copy.parent, "stages=[evolve]", "evolve.generations=3")
    short = outcome(copy / "evolution")
    run(copy.parent, "stages=[evolve]", "evolve.generations=6")
    long = outcome(copy / "evolution")
    run(copy.parent, "name=fresh", f"supernet.from={copy}", "stages=[evolve]", "evolve.generations=6")
    assert outcome(copy.parent / "fresh" / "evolution") == long
    assert len(scored(copy)) == len(set(scored(copy)))
    assert long["candidates.jsonl"].startswith(short["candidates.jsonl"])
    capsys.readouterr()
    run(copy.parent, "stages=[evolve]", "evolve.generations=6")  # done: nothing to do, nothing to say
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(UserError, match=r"evolution: made with evolve.algorithm: nsga2, .* give evolve.name another"):
        run(copy.parent, "stages=[evolve]", "evolve.algorithm=random")


def test_any_number_of_ranks_finds_the_same(copy, tmp_path):
    run(copy.parent, "stages=[evolve]", "evolve.fidelity=[0.3,1.0]")
    one = outcome(copy / "evolution"), sorted(scored(copy))
    for ranks in (2, 4):
        shutil.rmtree(copy / "evolution")
        shutil.rmtree(copy / "supernet" / "scores")
        arguments = [QUICKSTART, *SEARCH, f"output={copy.parent}", "stages=[evolve]", "evolve.fidelity=[0.3,1.0]"]
        train(*arguments, options=config("ddp", ranks), cwd=tmp_path)
        assert (outcome(copy / "evolution"), sorted(scored(copy))) == one
        working = [file for file in copy.glob("supernet/scores/*/*.jsonl") if read_lines(file)]
        assert len(working) == ranks


@pytest.mark.parametrize("kills", first_of([3, 20], 1))
def test_a_search_that_is_killed_again_and_again_scores_nothing_twice(copy, tmp_path, kills):
    """Of two ranks first one is killed and then the other; the last start ends as a search that was never killed."""
    run(copy.parent, "stages=[evolve]", "evolve.generations=8")
    expected = outcome(copy / "evolution"), sorted(scored(copy))
    shutil.rmtree(copy / "evolution")
    shutil.rmtree(copy / "supernet" / "scores")
    arguments = [QUICKSTART, *SEARCH, f"output={copy.parent}", "stages=[evolve]", "evolve.generations=8"]
    chance = random.Random(0)
    alive = 0
    for number in range(kills):
        ranks = Ranks(run_recipe, *map(str, arguments), options=config("ddp"), cwd=tmp_path)
        goal = (number + 1) * len(expected[1]) // (kills + 2)
        while len(scored(copy)) < goal and ranks.running():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        alive += ranks.running()
        for process in chance.sample(ranks.processes, 2):
            os.kill(process.pid, signal.SIGKILL)
        ranks.wait()
    train(*arguments, options=config("ddp"), cwd=tmp_path)
    assert alive == kills
    assert (outcome(copy / "evolution"), sorted(scored(copy))) == expected
    assert len(expected[1]) == len(set(expected[1]))


@pytest.mark.slow
def test_several_budgets_have_one_front_and_a_best_each_that_are_retrained_side_by_side(copy, capsys):
    two = ["budget.macs=null", "budgets.small.macs=[0.4e6,0.6e6]", "budgets.base.macs=[0.8e6,1.2e6]"]
    run(copy.parent, *two, "stages=[evolve]")
    said = capsys.readouterr().out
    assert re.search(r"^1 .* <- small$", said, re.MULTILINE) and re.search(r"^\d+ .* <- base$", said, re.MULTILINE)
    assert "next: accelerate launch -m vitas" in said
    assert "retrain.architecture=[best:small,best:base]" in said
    front = json.loads((copy / "evolution" / "front.json").read_text())
    names = [name for entry in front for name in entry["budgets"]]  # of equals all are in the front
    assert names == sorted(names, reverse=True) and set(names) == {"small", "base"}
    small, base = (Architecture.from_yaml(copy / "evolution" / f"best_{name}.yaml") for name in ("small", "base"))
    assert 0.4e6 <= count(small, 10)["macs"] <= 0.6e6 < 0.8e6 <= count(base, 10)["macs"] <= 1.2e6
    run(copy.parent, *two, "stages=[retrain,baseline,evaluate]")
    rows = json.loads((copy / "evaluation.json").read_text())
    assert list(rows) == ["best:small", "uniform ViT (best:small)", "best:base", "uniform ViT (best:base)"]
    assert load_model(copy / "retrain" / "best-base").architecture == base
    (row,) = compare([copy])["runs"]
    assert row["macs"] == count(small, 10)["macs"]  # all of one budget
    entry = next(one for one in read_lines(copy / "evolution" / "candidates.jsonl") if one["key"] == small.key)
    assert row["score"] == entry["top1"]
    assert any(f"describe {copy}/evolution/best_small.yaml" in step["command"] for step in figures(copy)["next"])
    with pytest.raises(UserError, match=r"budget.macs=.*: has no effect beside budgets.small.macs and budgets.base"):
        recipe.of_run(copy, ["budget.macs=[0.8e6,0.82e6]"])
    # One of them alone, as a job of an array does it, in a run of its own.
    search = f"retrain.search={copy}/evolution"
    for name, expected in (("front:1", small), ("best:base", base), (small.key, small)):
        run(copy.parent, "name=alone", "stages=[retrain]", search, f"retrain.architecture={name}")
        assert load_model(copy.parent / "alone" / "retrain").architecture == expected
        shutil.rmtree(copy.parent / "alone")
    wrong = {
        "front:99": f"front:99: expected front:1 to front:{len(front)}",
        "a" + "0" * 11: "no candidate of .* has this key",
        "best:huge": "best_huge.yaml: No such file",
    }
    for name, words in wrong.items():
        with pytest.raises(UserError, match=f"^retrain.architecture: .*{words}"):
            run(copy.parent, "name=alone", "stages=[retrain]", search, f"retrain.architecture={name}")
    with pytest.raises(UserError, match=r"best:bsae: expected best:small or best:base \(did you mean best:base\?\)"):
        run(copy.parent, *two, "retrain.architecture=best:bsae")


def test_a_supernet_from_elsewhere_must_be_of_the_same_space_and_images(copy):
    there = f"supernet.from={copy}"
    other = ["name=mine", "stages=[evolve]"]
    with pytest.raises(
        UserError, match=r"supernet: trained with space.depth: 4, .* 3, space.heads: \[2, 4\], .* \[2\]$"
    ):
        run(copy.parent, *other, there, "space.depth=3", "space.heads=[2]")
    with pytest.raises(UserError, match=r"trained with data.crop_pct: 1.0, and the recipe now says 0.9"):
        run(copy.parent, *other, there, "data.crop_pct=0.9")
    with pytest.raises(UserError, match=r"supernet.from: .*/nowhere/model.safetensors: No such file"):
        run(copy.parent, *other, f"supernet.from={copy}/nowhere")
    # No training section is compared; sharing and hold-out are the supernet's.
    training = ["supernet.lr=0.1", "supernet.sharing=ordinal", "data.holdout=0.1", "seed=7"]
    run(copy.parent, *other, f"{there}/supernet", *training, "supernet.epochs=100")
    run(copy.parent, "stages=[evolve]")
    ours, own = (read_lines(copy.parent / name / "evolution" / "candidates.jsonl") for name in ("mine", "quickstart"))
    assert {entry["images"] for entry in ours} == {entry["images"] for entry in own} == {431}
    assert len(scored(copy)) == len(set(scored(copy)))
    (copy / "supernet" / "settings.yaml").unlink()
    with pytest.raises(UserError, match=r"settings.yaml: expected what the supernet was trained with"):
        run(copy.parent, "name=third", "stages=[evolve]", there)


@pytest.mark.slow
def test_flops_params_and_latency_at_once_hold_when_measured_again(copy, quickstart):
    image = quickstart.space.image_size
    middle = VisionTransformer(quickstart.space.corner(-1, 8), 10)
    latency = measure(middle, image, ["latency"])["latency"]  # other tests may slow this machine down threefold
    windows = {"flops": (0.3e6, 1.0e6), "params": (50_000, 150_000), "latency": (0.0, 4 * latency)}
    budget = [f"budget.{name}=[{low},{high}]" for name, (low, high) in windows.items()]
    run(copy.parent, "stages=[evolve]", "budget.macs=null", *budget, "evolve.objectives=[top1,latency,params]")
    front = json.loads((copy / "evolution" / "front.json").read_text())
    assert len(front) > 1
    for entry in front:
        architecture = Architecture.model_validate(entry["architecture"])
        model = VisionTransformer(architecture, 10)
        again = {**count(architecture, 10), **measure(model, image, ["latency"])}
        assert again["params"] == sum(parameter.numel() for parameter in model.parameters())
        assert entry["latency_again"] <= windows["latency"][1]
        for name, (low, high) in windows.items():
            assert low <= again[name] <= high
    measured = [line for file in copy.glob("supernet/costs/*/*.jsonl") for line in read_lines(file)]
    first = [line["key"] for line in measured if "latency" in line]
    assert len(first) == len(set(first)) >= len(front)


def test_a_window_that_nothing_can_meet_says_what_is_reached(copy, capsys):
    arguments = [*SEARCH, f"output={copy.parent}", "stages=[evolve]", "evolve.generations=1", "evolve.smooth=16"]
    assert main(["run", str(QUICKSTART), *arguments, "budget.latency=[1e-6,2e-6]"]) == 2
    assert re.search(
        r"vitas: budget: no candidate was inside latency \[1e-06, 2e-06\]; those that were measured reach latency 0",
        capsys.readouterr().err,
    )
    measured = [line["key"] for file in copy.glob("supernet/costs/*/*.jsonl") for line in read_lines(file)]
    assert len(measured) == 8  # the candidates, and none of those that smoothing learns from
