"""The tournament of a search: who enters, who wins, whatever the ranks and kills; and that of its opponents."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from conftest import QUICKSTART, SHORT, small_space
from ranks import Ranks, config, wait_for
from ranks import recipe as run_recipe

from vitas import recipe
from vitas.data.sources import open_splits
from vitas.evolve import evolution
from vitas.files import read_lines
from vitas.runs import claims, finalists, stages
from vitas.runs.finalists import rounds, shortened
from vitas.sections import Retraining
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget

SETTINGS = [setting for setting in SHORT if not setting.startswith(("evolve.", "retrain."))]
SETTINGS += [
    "data.workers=0",
    "data.holdout=0.3",
    "evolve.batch_size=16",
    "evolve.population=8",
    "evolve.generations=2",
]
SETTINGS += ["retrain.epochs=6", "retrain.warmup_epochs=1", "retrain.checkpoint_every=2", "evolve.finalists=4"]
SPACE = small_space()


def entries(count: int, **changes) -> list[dict]:
    """Random architectures; the further back, the worse."""
    nets = [SPACE.sample(3, number, skip=0.3) for number in range(count)]
    return [
        {"key": net.key, "architecture": net.model_dump(mode="json"), "fidelity": 1.0, "top1": 50 - number, "loss": 1.0}
        | cost.count(net, 10)
        | changes
        for number, net in enumerate(nets)
    ]


def genomes(chosen: list[dict]) -> np.ndarray:
    return np.array([SPACE.encode(Architecture.model_validate(entry["architecture"])) for entry in chosen])


def test_the_finalists_are_the_best_and_what_differs_most_from_it():
    given = entries(60)
    found = evolution.finalists(given[::-1], Budget(), ["top1"], SPACE, 5)
    pool = given[: 5 * evolution.NEAR_THE_BEST]
    assert found[0] == given[0] and all(entry in pool for entry in found)
    assert len({entry["key"] for entry in found}) == 5
    far = genomes(pool)
    taken = [0]
    for entry in found[1:]:  # by hand: the most genes from the nearest one taken, the best of several
        nearest = [min(int((row != far[one]).sum()) for one in taken) for row in far]
        taken.append(nearest.index(max(nearest)))
        assert entry == pool[taken[-1]]


def test_only_what_was_scored_on_all_images_and_is_inside_the_budget_can_be_a_finalist():
    given = entries(20)
    given[0]["fidelity"], limit = 0.5, sorted(entry["macs"] for entry in given)[10]
    found = evolution.finalists(given, Budget(macs=(0, limit)), ["top1"], SPACE, 20)
    assert sorted(entry["key"] for entry in found) == sorted(
        entry["key"] for entry in given[1:] if entry["macs"] <= limit
    )
    assert evolution.finalists(given[:1], Budget(), ["top1"], SPACE, 4) == []


@pytest.mark.parametrize(("entrants", "turns"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (256, 8)])
def test_a_tournament_takes_about_half_of_a_retraining(entrants, turns):
    left, epochs = entrants, 0.0
    for turn in range(rounds(entrants)):
        epochs += left * shortened(Retraining(epochs=300, warmup_epochs=5), entrants, turn, "supernet").epochs
        left = (left + 1) // 2
    assert (rounds(entrants), left) == (turns, 1)
    powers = entrants & (entrants - 1) == 0
    assert epochs == pytest.approx(150) if powers else 150 < epochs < 260


@pytest.mark.parametrize("heads", [[1, 2], [2, 4]])
def test_the_opponents_are_all_uniform_vits_of_no_less_cost(heads):
    space = small_space(heads=heads)
    found = space.sample(0, 1, skip=0.5)
    vits = cost.uniform_vits(found, 10, space)
    assert vits[0] == cost.uniform_vit(found, 10, min_heads=min(heads))
    shapes = [(vit.patch_size, vit.blocks[0].heads) for vit in vits]
    assert sorted(shapes) == [(patch, count) for patch in (4, 8) for count in heads]
    for vit in vits:
        assert cost.count(vit, 10)["macs"] >= cost.count(found, 10)["macs"] and len(vit.kept) == len(found.kept)


def run(folder, *overrides: str) -> None:
    stages.run(recipe.load(QUICKSTART, [*SETTINGS, f"output={folder}", *overrides]))


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """The run of a trained supernet."""
    folder = tmp_path_factory.mktemp("supernet")
    run(folder, "stages=[supernet]")
    return folder / "quickstart"


@pytest.fixture(scope="module")
def whole(supernet, tmp_path_factory):
    """The same run, searched by one process."""
    folder = shutil.copytree(supernet, tmp_path_factory.mktemp("whole") / "quickstart")
    run(folder.parent, "stages=[evolve]")
    return folder


@pytest.fixture
def copy(supernet, tmp_path):
    return shutil.copytree(supernet, tmp_path / "quickstart")


def outcome(folder) -> list[str]:
    return [(folder / "evolution" / name).read_text() for name in ("finalists.json", "best.yaml", "front.json")]


def trainings(folder) -> list[tuple[str, str]]:
    files = sorted(folder.glob("evolution/finalists/*/trainings/*/*.jsonl"))
    return [(file.parts[-4], line["key"]) for file in files for line in read_lines(file)]


def standings(folder) -> list[dict]:
    (found,) = json.loads((folder / "evolution" / "finalists.json").read_text()).values()
    return found


@pytest.mark.launch
def test_the_winner_is_the_best_and_leads_the_front(whole):
    found = standings(whole)
    assert [len(one["rounds"]) for one in found] == [2, 2, 1, 1]
    losses = [one["rounds"][-1]["loss"] for one in found]
    assert losses == [*sorted(losses[:2]), *sorted(losses[2:])]
    first = [one["rounds"][0]["loss"] for one in found]
    assert max(first[:2]) < min(first[2:])  # the better half went on
    assert [each["epochs"] for each in found[0]["rounds"]] == [6 / 16, 6 / 8]
    best = Architecture.from_yaml(whole / "evolution" / "best.yaml")
    front = json.loads((whole / "evolution" / "front.json").read_text())
    assert best.key == found[0]["key"] == front[0]["key"]
    assert len({entry["key"] for entry in front}) == len(front)
    scored = {entry["key"] for entry in read_lines(whole / "evolution" / "candidates.jsonl")}
    assert {one["key"] for one in found} <= scored
    assert len(trainings(whole)) == 6 and not list(whole.glob("evolution/finalists/*/a*-*"))


@pytest.mark.launch
def test_finalists_start_from_the_supernet_and_never_see_the_held_out_images(whole):
    settings = recipe.load(QUICKSTART, [*SETTINGS, f"output={whole.parent}"])
    train, _ = open_splits(settings.data)
    seen, _ = train.hold_out(settings.data.holdout, settings.seed)
    for turn in (1, 2):
        (about,) = whole.glob(f"evolution/finalists/{turn}/trainings/*/made_from.json")
        made_from = json.loads(about.read_text())
        assert made_from["supernet"] and made_from["retrain"]["epochs"] == settings.retrain.epochs * turn / 16
        assert made_from["train"] == claims.plain(claims.images(seen)) != claims.plain(claims.images(train))
    # A tournament of no steps would rank as the supernet does; from new weights losses would be those of guessing.
    first = standings(whole)[0]["rounds"][0]["loss"]
    assert first < 0.95 * np.log(10)


@pytest.mark.launch
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_two_ranks_that_are_stopped_go_on_alone_to_the_winner_of_one_process(whole, copy, tmp_path, sign):
    arguments = [str(QUICKSTART), *SETTINGS, f"output={copy.parent}", "stages=[evolve]"]
    ranks = Ranks(run_recipe, *arguments, options=config("ddp"), cwd=tmp_path)
    wait_for(
        lambda: (trainings(copy) and list(copy.glob("evolution/finalists/*/a*-*/step_*"))) or not ranks.running(), 200
    )
    for process in ranks.processes:
        os.kill(process.pid, sign)
    assert set(ranks.wait()) <= ({-9} if sign == signal.SIGKILL else {75}), ranks.text()
    done = trainings(copy)
    assert 0 < len(done) < 6
    again = Ranks(run_recipe, *arguments, options=[], cwd=tmp_path)
    assert again.wait(200) == [0], again.text()
    assert outcome(copy) == outcome(whole)
    assert sorted(trainings(copy)) == sorted(trainings(whole)) and set(done) < set(trainings(copy))


@pytest.mark.launch
def test_finalists_can_be_asked_for_later_and_an_earlier_search_is_left_alone(whole, copy, capsys):
    run(copy.parent, "stages=[evolve]", "evolve.finalists=0")
    before = (copy / "evolution" / "best.yaml").read_text()
    assert not (copy / "evolution" / "finalists.json").is_file()
    summary = copy / "evolution" / "summary.json"
    told = json.loads(summary.read_text())
    summary.write_text(json.dumps({name: value for name, value in told.items() if name != "finalists"}))
    run(copy.parent, "stages=[evolve]")  # of a version that had no finalists
    assert (copy / "evolution" / "best.yaml").read_text() == before and not trainings(copy)
    summary.write_text(json.dumps(told))
    capsys.readouterr()
    run(copy.parent, "stages=[evolve]")
    assert outcome(copy) == outcome(whole)
    assert "held-out loss" in capsys.readouterr().out
    run(copy.parent, "stages=[evolve]")
    assert capsys.readouterr().out.count("\n") < 3  # it is done


@pytest.mark.launch
@pytest.mark.slow
def test_each_budget_has_a_tournament_and_each_winner_a_fair_opponent(copy, monkeypatch, capsys):
    budgets = ["budget.macs=null", "budgets.small.macs=[0.4e6,0.7e6]", "budgets.base.macs=[0.8e6,1.2e6]"]
    short = ["retrain.epochs=0.5", "retrain.warmup_epochs=0", "evolve.finalists=2", *budgets]
    run(copy.parent, "stages=[evolve]", *short)
    told = json.loads((copy / "evolution" / "finalists.json").read_text())
    for name, (low, high) in {"small": (0.4e6, 0.7e6), "base": (0.8e6, 1.2e6)}.items():
        best = Architecture.from_yaml(copy / "evolution" / f"best_{name}.yaml")
        assert best.key == told[name][0]["key"] and low <= cost.count(best, 10)["macs"] <= high

    asked = []
    held = finalists.tournament
    monkeypatch.setattr("vitas.runs.baseline.tournament", lambda *args, **how: asked.append(args) or held(*args, **how))
    run(copy.parent, "stages=[retrain,baseline]", *short)
    (arguments,) = asked
    chosen = json.loads((copy / "opponents" / "finalists.json").read_text())
    for name in ("small", "base"):
        stage, best = f"baseline/best-{name}", Architecture.from_yaml(copy / "evolution" / f"best_{name}.yaml")
        vits = cost.uniform_vits(best, 10, recipe.load(QUICKSTART).space)
        assert arguments[2][stage] == vits and len(chosen[stage]) == len(vits) == 4
        (trained,) = [vit for vit in vits if vit.key == chosen[stage][0]["key"]]
        assert Architecture.from_yaml(copy / stage / "architecture.yaml") == trained
    assert capsys.readouterr().out.count("uniform ViTs: held-out loss") == 2
    run(copy.parent, "stages=[baseline]", *short)
    assert len(asked) == 1 and "held-out loss" not in capsys.readouterr().out  # they are trained, and stay


@pytest.mark.launch
def test_only_what_a_search_with_finalists_found_has_an_opponent_from_a_tournament(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "quickstart")
    own = small_space().sample(0, 0, skip=0.0)
    (tmp_path / "own.yaml").write_text(own.to_yaml())
    asked = []
    held = finalists.tournament
    monkeypatch.setattr("vitas.runs.baseline.tournament", lambda *args, **how: asked.append(args) or held(*args, **how))
    short = ["stages=[baseline]", "retrain.epochs=0.1", "retrain.warmup_epochs=0"]
    run(tmp_path, *short, f"retrain.architecture=[best,{tmp_path}/own.yaml]")
    assert [list(args[2]) for args in asked] == [["baseline/best"]]
    expected = cost.uniform_vit(own, 10, min_heads=2)
    assert Architecture.from_yaml(folder / "baseline" / "own" / "architecture.yaml") == expected
    run(tmp_path, "stages=[evolve]", "evolve.finalists=0")  # the highest score decides again
    shutil.rmtree(folder / "baseline")
    run(tmp_path, *short)
    assert len(asked) == 1


@pytest.mark.launch
def test_another_schedule_holds_another_tournament(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "quickstart")
    run(tmp_path, "stages=[evolve]", "retrain.epochs=3", "retrain.warmup_epochs=0.5")
    assert [each["epochs"] for each in standings(folder)[0]["rounds"]] == [3 / 16, 3 / 8]
    assert len(trainings(folder)) == 12


def test_a_loss_that_is_no_number_loses():
    nets = [SPACE.sample(3, number, skip=0.3) for number in range(3)]
    rounds = [[{"epochs": 1, "top1": 9.0, "loss": loss}] for loss in (float("nan"), 2.0, 1.0)]
    found = finalists._standings(nets, {net.key: each for net, each in zip(nets, rounds, strict=True)})
    assert [one["key"] for one in found] == [nets[2].key, nets[1].key, nets[0].key]
