"""What a supernet gets wrong is learnt, from trials or from its own scores, and a search follows what was learnt."""

import json
import shutil
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUICKSTART, SHORT, small_space
from ranks import config, train
from scipy.stats import kendalltau

from vitas import recipe
from vitas.config import UserError
from vitas.evolve import evolution
from vitas.evolve.correction import Correction, Smoothing
from vitas.files import read_lines
from vitas.runs import stages
from vitas.sections import Evolution
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget

SPACE = small_space()
NETS = [SPACE.sample(5, number, skip=0.3) for number in range(124)]
TRAINED, OTHERS = slice(0, 24), slice(24, 124)


def heads(net: Architecture) -> float:
    return float(np.mean([np.log2(block.heads) for block in net.kept]))


def tau(one, other) -> float:
    return kendalltau(one, other).statistic


def test_a_bias_against_one_choice_is_taken_out():
    rng = np.random.default_rng(0)
    alone = np.exp([-0.5 * np.log(net.embed_dim) - np.log(len(net.kept)) - heads(net) for net in NETS])
    losses = alone * np.exp([heads(net) for net in NETS] + 0.1 * rng.normal(size=len(NETS)))
    correction = Correction(NETS[TRAINED], losses[TRAINED], alone[TRAINED])
    before, after = tau(losses[OTHERS], alone[OTHERS]), tau(correction(NETS[OTHERS], losses[OTHERS]), alone[OTHERS])
    assert before < 0.75 and after > 0.9
    assert correction.taus["supernet"] == pytest.approx(tau(losses[TRAINED], alone[TRAINED]))
    assert correction.taus["corrected"] > 0.85


def test_a_power_law_is_foretold_in_nats():
    alone = np.array([3 * net.embed_dim**-0.5 * len(net.kept) ** -0.25 for net in NETS])
    correction = Correction(NETS[TRAINED], alone[TRAINED] ** 2, alone[TRAINED])
    assert correction(NETS[OTHERS], alone[OTHERS] ** 2) == pytest.approx(alone[OTHERS], rel=0.05)
    assert len(correction([], np.zeros(0))) == 0


def test_a_supernet_that_is_right_stays_right_and_noise_in_the_trainings_does_not_spoil_it():
    rng = np.random.default_rng(1)
    losses = np.exp(rng.normal(size=len(NETS)))  # nothing that the choices tell
    correction = Correction(NETS[TRAINED], losses[TRAINED], losses[TRAINED] * np.exp(0.3 * rng.normal(size=24)))
    assert tau(correction(NETS[OTHERS], losses[OTHERS]), losses[OTHERS]) > 0.75


def test_what_was_trained_does_not_foretell_itself():
    rng = np.random.default_rng(2)
    correction = Correction(NETS[TRAINED], np.exp(rng.normal(size=24)), np.exp(rng.normal(size=24)))
    assert abs(correction.taus["corrected"]) < 0.35


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30, 0.0])
def test_a_loss_that_is_no_number_is_foretold_to_be_one(broken):
    losses = np.exp(np.linspace(0, 1, 24))
    correction = Correction(NETS[TRAINED], losses, losses)
    found, whole = correction(NETS[:2], np.array([broken, 1.5]))
    assert np.isfinite(found) and (found > whole or broken == 0.0)


def test_smoothing_takes_out_what_is_noise_of_single_architectures():
    rng = np.random.default_rng(0)
    truth = np.exp([-0.5 * np.log(net.embed_dim) - np.log(len(net.kept)) - 0.3 * heads(net) for net in NETS])
    losses = truth * np.exp(0.3 * rng.normal(size=len(NETS)))
    smoothing = Smoothing(NETS[TRAINED], losses[TRAINED])
    before, after = (tau(values[OTHERS], truth[OTHERS]) for values in (losses, smoothing(NETS, losses)))
    assert before < 0.75 and after > before + 0.08
    assert 0.5 < smoothing.explained < 0.95
    assert len(smoothing([], np.zeros(0))) == 0
    broken = smoothing(NETS[:2], np.array([np.nan, 1.0]))
    assert np.isfinite(broken).all() and broken[0] > broken[1]


def test_smoothing_is_the_mean_with_what_a_regression_on_the_choices_foretells():
    exact = np.array([3 * net.embed_dim**-0.5 * len(net.kept) ** -0.25 for net in NETS])
    smoothing = Smoothing(NETS, exact)
    assert smoothing.explained > 0.999
    assert smoothing(NETS, 4 * exact) == pytest.approx(2 * exact, rel=0.01)
    alike = Smoothing(NETS, np.full(len(NETS), 2.0))
    assert alike.explained == 0 and alike(NETS, exact) == pytest.approx(np.sqrt(2 * exact))
    rng = np.random.default_rng(1)
    losses = np.exp(rng.normal(size=len(NETS)))  # nothing that the choices tell
    smoothing = Smoothing(NETS[TRAINED], losses[TRAINED])
    assert smoothing.explained < 0.3
    assert tau(smoothing(NETS[OTHERS], losses[OTHERS]), losses[OTHERS]) > 0.75


def test_a_search_with_trials_improves_the_corrected_loss_in_place_of_scores():
    def improved(*objectives: str, trials: int = 8) -> list[str]:
        return evolution.objectives(Evolution(objectives=list(objectives), trials=trials))

    assert improved("top1", trials=0) == ["top1"]
    assert improved("loss") == ["corrected"]
    assert improved("macs", "loss", "top1") == ["macs", "corrected"]
    with pytest.raises(ValueError, match="expected 0 or at least 8, got 3"):
        Evolution(trials=3)
    two = [f"budgets.{name}.macs=[0.8e6,1.2e6]" for name in ("a", "b")]
    with pytest.raises(UserError, match=r"evolve\.trials: expected 0 or at least 16, 8 a budget, got 8"):
        recipe.load(QUICKSTART, ["budget.macs=null", "evolve.trials=8", *two])
    assert evolution.objectives(Evolution(smooth=8)) == ["corrected"]
    with pytest.raises(UserError, match=r"evolve\.smooth: expected 0 or at least 16, 8 a budget, got 8"):
        recipe.load(QUICKSTART, ["budget.macs=null", "evolve.smooth=8", *two])


def test_scores_that_are_named_beside_each_other_become_one_objective():
    settings = Evolution(population=8, generations=3, trials=8, objectives=["macs", "loss", "top1"])

    def score(nets: list[Architecture], _: float) -> list[dict]:
        return [{"top1": 1.0, "loss": 1.0, "images": 9, "corrected": float(len(net.kept))} for net in nets]

    def costs(nets: list[Architecture]) -> list[dict]:
        return [{"key": net.key, "architecture": net.model_dump(mode="json")} | cost.count(net, 10) for net in nets]

    generations = evolution.evolve(SPACE, {"": Budget()}, settings, 10, costs, score, seed=0, skips={"": 0.3})
    entries = [entry for generation in generations for entry in generation]
    front = evolution.front(entries, Budget(), evolution.objectives(settings))
    assert front[0]["corrected"] == min(entry["corrected"] for entry in entries)
    assert [entry["macs"] for entry in front] == sorted((entry["macs"] for entry in front), reverse=True)


SETTINGS = [setting for setting in SHORT if not setting.startswith(("evolve.", "retrain."))]
SETTINGS += [
    "data.workers=0",
    "data.holdout=0.3",
    "evolve.batch_size=16",
    "evolve.population=8",
    "evolve.generations=3",
]
SETTINGS += ["retrain.epochs=2", "retrain.warmup_epochs=1", "evolve.trials=8", "stages=[evolve]"]
SETTINGS += ["evolve.finalists=0", "evolve.objectives=[top1]"]


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
    run(folder.parent)
    return folder


def outcome(folder) -> list[str]:
    names = ("trials.json", "candidates.jsonl", "front.json", "best.yaml")
    return [(folder / "evolution" / name).read_text() for name in names]


def trainings(folder) -> list[str]:
    return sorted(
        line["key"] for file in folder.glob("evolution/trials/trainings/*/*.jsonl") for line in read_lines(file)
    )


@pytest.mark.launch
def test_the_best_is_what_the_trials_foretell_to_be_the_best(whole, capsys):
    told = json.loads((whole / "evolution" / "trials.json").read_text())
    assert len({one["key"] for one in told["trials"]}) == 8 == len(trainings(whole))
    assert recipe.of_run(whole).evolve.smooth and not (whole / "evolution" / "smoothing.json").exists()
    assert {one["shape"].split(",")[0] for one in told["trials"]} == {"patch 4", "patch 8"}
    settings = recipe.load(QUICKSTART, [*SETTINGS])
    lines = read_lines(whole / "evolution" / "candidates.jsonl")
    nets = [Architecture.model_validate(line["architecture"]) for line in lines]
    (about,) = whole.glob("evolution/trials/trainings/*/made_from.json")
    made_from = json.loads(about.read_text())
    assert made_from["retrain"]["epochs"] == settings.retrain.epochs / 4 and made_from["supernet"]
    best = Architecture.from_yaml(whole / "evolution" / "best.yaml")
    found = {line["key"]: line["corrected"] for line in lines}
    assert found[best.key] == min(found.values())
    # By hand, from what the file says: the trials are the first architectures of their seed.
    by_key = {one["key"]: one for one in told["trials"]}
    trials = [net for net in drawn(settings) if net.key in by_key]
    assert len(trials) == 8
    losses, alone = (np.array([by_key[net.key][name] for net in trials]) for name in ("supernet_loss", "loss"))
    foretold = Correction(trials, losses, alone)(nets, np.array([line["loss"] for line in lines]))
    assert list(found.values()) == pytest.approx(foretold)


def drawn(settings) -> list[Architecture]:
    from vitas.runs.corrected import FIRST_SEED

    genomes = evolution.random_genomes(settings.space, settings.budget, 10, seed=FIRST_SEED, skip=0.0)
    return [settings.space.decode(genome) for genome in evolution.each_patch_size(genomes, 80)]


@pytest.mark.launch
def test_two_ranks_find_what_one_process_finds_and_a_second_search_trains_nothing(whole, supernet, tmp_path):
    copy = shutil.copytree(supernet, tmp_path / "quickstart")
    train(QUICKSTART, *SETTINGS, f"output={tmp_path}", options=config("ddp"), cwd=tmp_path)
    assert outcome(copy) == outcome(whole)
    assert trainings(copy) == trainings(whole)
    run(tmp_path, "evolve.generations=4")
    assert trainings(copy) == trainings(whole)
    with pytest.raises(UserError, match=r"made with trials\.lr"):
        run(tmp_path, "evolve.generations=4", "retrain.lr=0.01")


@pytest.mark.launch
def test_a_search_with_smoothing_finds_the_best_smoothed_loss_and_the_same_on_two_ranks(
    supernet, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("vitas.runs.evolve.time", SimpleNamespace(perf_counter=count().__next__))  # a second a call
    one, two = (shutil.copytree(supernet, tmp_path / name / "quickstart") for name in ("one", "two"))
    smooth = ["evolve.trials=0", "evolve.smooth=16"]
    run(one.parent, *smooth)
    assert "of 16 random architectures differ" in capsys.readouterr().out
    metrics = [line for line in read_lines(one / "metrics.jsonl") if line["stage"] == "evolve"]
    assert 0 < metrics[0]["candidates_per_hour"] <= 3600 * 8  # those of the generation alone
    lines = read_lines(one / "evolution" / "candidates.jsonl")
    told = json.loads((one / "evolution" / "smoothing.json").read_text())["architectures"]
    random = [Architecture.model_validate(entry["architecture"]) for entry in told]
    assert len({net.key for net in random}) == 16 and {net.patch_size for net in random} == {4, 8}
    smoothing = Smoothing(random, np.array([entry["loss"] for entry in told]))
    nets = [Architecture.model_validate(line["architecture"]) for line in lines]
    smoothed = smoothing(nets, np.array([line["loss"] for line in lines]))
    assert [line["corrected"] for line in lines] == pytest.approx(smoothed)
    best = Architecture.from_yaml(one / "evolution" / "best.yaml")
    assert best.key == lines[int(smoothed.argmin())]["key"]
    train(QUICKSTART, *SETTINGS, *smooth, f"output={two.parent}", options=config("ddp"), cwd=tmp_path)
    for name in ("smoothing.json", "candidates.jsonl", "front.json"):
        assert (two / "evolution" / name).read_text() == (one / "evolution" / name).read_text()
