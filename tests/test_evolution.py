import numpy as np
import pytest
from conftest import small_space

from vitas.config import UserError
from vitas.evolve import evolution
from vitas.sections import Evolution
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture
from vitas.spaces.budget import Budget

SPACE = small_space(embed_dim={"max": 40})
BUDGET = Budget(macs=(1e5, 2e5))
ALGORITHMS = ["nsga2", "regularized", "random"]


def worth(architecture) -> float:
    """A score that rewards wide MLPs in early blocks: better ones exist, and random search seldom meets them."""
    return sum(block.mlp_dim / (place + 1) for place, block in enumerate(architecture.blocks) if block)


class Scored:
    """Stands for the ranks; `asked` are the candidates that they were asked to score, and on which part."""

    def __init__(self, measured=lambda architecture: {}, noise=0.0):
        self.asked, self.measured, self.noise = [], measured, noise

    def costs(self, candidates):
        return [
            {"key": a.key, "architecture": a.model_dump(), **cost.count(a, 7), **self.measured(a)} for a in candidates
        ]

    def score(self, candidates, part):
        self.asked += [(candidate.key, part) for candidate in candidates]
        luck = [np.random.default_rng(int(a.key[:8], 16)).normal() * self.noise * (1 - part) for a in candidates]
        return [{"top1": worth(a) + x, "images": int(100 * part)} for a, x in zip(candidates, luck, strict=True)]


def search(budget=BUDGET, scored=None, **settings):
    scored = scored or Scored()
    settings = Evolution(**{"population": 12, "generations": 8} | settings)
    budgets = budget if isinstance(budget, dict) else {"": budget}
    skips = dict.fromkeys(budgets, 0.2)
    run = evolution.evolve(SPACE, budgets, settings, 7, scored.costs, scored.score, seed=1, skips=skips)
    return [entry for generation in run for entry in generation]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_candidate_is_new_and_inside_the_budget(algorithm):
    entries = search(algorithm=algorithm)
    assert len(entries) == len({entry["key"] for entry in entries}) == 12 * 8
    assert all(1e5 <= entry["macs"] <= 2e5 for entry in entries)


@pytest.mark.parametrize(("algorithm", "gain"), [("nsga2", 1.2), ("regularized", 1.2), ("random", 0)])
def test_evolution_improves_and_random_search_does_not(algorithm, gain):
    entries = search(algorithm=algorithm)
    first, last = (np.mean([entry["top1"] for entry in part]) for part in (entries[:12], entries[-12:]))
    assert last > gain * first if gain else abs(last / first - 1) < 0.15


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_longer_search_begins_as_a_shorter_one(algorithm):
    short, long = (search(algorithm=algorithm, generations=generations) for generations in (4, 8))
    assert long[: len(short)] == short


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
def test_the_first_generation_has_every_patch_size_though_few_random_ones_do(algorithm):
    budget = Budget(macs=(0.9e5, 1.1e5))
    first = search(budget, algorithm=algorithm)[:12]
    random = evolution.first_generation(SPACE, budget, 7, 400, seed=1, skip=0.2)
    assert min(np.bincount(random[:, 0])) < 140
    assert [sum(e["architecture"]["patch_size"] == patch for e in first) for patch in SPACE.patch_size] == [6, 6]


def test_an_aging_population_forgets_its_best():
    """The parents stay as they are when their children are mutated, and the oldest go, however good they are."""
    space = small_space()
    first = evolution.random_genomes(space, Budget(), 7, seed=0, skip=0.2)
    settings = Evolution(algorithm="regularized", mutation=0.5)
    algorithm = evolution.Algorithm(
        settings, space, 8, first, lambda genomes: np.ones(len(genomes), bool), 1, 1, seed=0
    )
    asked = []
    for age in range(6):
        genomes = algorithm.ask(8)
        asked += list(genomes)
        algorithm.tell(np.full((len(genomes), 1), float(age)), -np.ones((len(genomes), 1)))  # the first are the best
        kept = algorithm._algorithm.pop.get("X").astype(np.int64)
        assert np.array_equal(kept, asked[-8:])
    assert len(asked) == 8 + 5 * 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("objectives", [["loss"], ["params", "loss", "top1"]], ids=",".join)
def test_a_search_by_loss_finds_the_lowest(algorithm, objectives):
    """Top-1 says the opposite here, so that nothing is found by it."""
    scored = Scored()
    score = scored.score
    scored.score = lambda *of: [
        found | {"top1": -found["top1"] / 10, "loss": 100 - found["top1"]} for found in score(*of)
    ]
    entries = search(scored=scored, objectives=objectives, algorithm=algorithm, fidelity=[0.5, 1.0])
    whole = [entry for entry in entries if entry["fidelity"] == 1]
    assert evolution.front(entries, BUDGET, objectives)[0]["loss"] == min(entry["loss"] for entry in whole)
    assert evolution.front(entries, BUDGET, ["top1"])[0]["loss"] == max(entry["loss"] for entry in whole)
    if objectives == ["loss"] and algorithm != "random":
        first, last = (np.mean([entry["loss"] for entry in part]) for part in (entries[:12], entries[-12:]))
        assert last < first - 5
    spoiled = [*entries, whole[0] | {"key": "spoiled", "loss": float("nan")}]
    assert evolution.front(spoiled, BUDGET, ["loss"]) == evolution.front(entries, BUDGET, ["loss"])


def test_the_front_holds_what_nothing_beats():
    entries = search(objectives=["top1", "params"])
    front = evolution.front(entries, BUDGET, ["top1", "params"])
    assert front[0]["top1"] == max(entry["top1"] for entry in entries)
    for entry in entries:
        assert any(other["top1"] >= entry["top1"] and other["params"] <= entry["params"] for other in front)


def test_measured_costs_are_constraints_and_what_breaks_them_is_not_scored():
    scored = Scored(lambda architecture: {"throughput": 1e9 / cost.count(architecture, 7)["macs"], "latency": 1.0})
    budget = Budget(macs=(1e5, 2e5), throughput=(6000, 6500), latency=(0.5, 1.5))
    entries = search(budget, scored, population=20, generations=12)
    found = evolution.front(entries, budget, ["top1"])
    assert found
    assert all(6000 <= entry["throughput"] <= 6500 for entry in found)
    best_of_first = evolution.front(entries[:20], budget, ["top1"])[0]["top1"]
    assert found[0]["top1"] > 1.2 * best_of_first
    inside = {entry["key"] for entry in entries if 6000 <= entry["throughput"] <= 6500}
    assert [key for key, _ in scored.asked] == [entry["key"] for entry in entries if entry["key"] in inside]
    assert all(("top1" in entry) == (entry["key"] in inside) for entry in entries)


def test_throughput_is_improved_upwards_and_latency_downwards():
    def measured(architecture):
        speed = 1e9 / cost.count(architecture, 7)["macs"]
        return {"throughput": speed, "latency": 1 / speed}

    for objectives in (["top1", "throughput"], ["top1", "latency"]):
        entries = search(scored=Scored(measured), objectives=objectives)
        front = evolution.front(entries, BUDGET, objectives)
        assert min(entry["macs"] for entry in front) == min(entry["macs"] for entry in entries)


def test_several_budgets_share_the_population_and_find_one_best_each():
    budgets = {"small": Budget(macs=(0.5e5, 1e5)), "base": Budget(macs=(1e5, 2e5))}
    entries = search(budgets, population=13)
    per_budget = [sum(low <= entry["macs"] <= high for entry in entries) for low, high in ((0.5e5, 1e5), (1e5, 2e5))]
    assert per_budget == [7 * 8, 6 * 8]
    small, base = (evolution.front(entries, budget, ["top1"])[0] for budget in budgets.values())
    assert small["macs"] <= 1e5 <= base["macs"]
    first = entries[:13]
    assert small["top1"] > evolution.front(first, budgets["small"], ["top1"])[0]["top1"]


def test_halving_scores_the_better_half_on_more_images_and_finds_only_what_was_scored_on_all():
    scored = Scored(noise=5.0)
    entries = search(scored=scored, fidelity=[0.1, 0.3, 1.0])
    parts = [part for _, part in scored.asked]
    assert [parts.count(part) for part in (0.1, 0.3, 1.0)] == [8 * 12, 8 * 6, 8 * 3]
    assert {entry["fidelity"]: entry["images"] for entry in entries} == {0.1: 10, 0.3: 30, 1.0: 100}
    generation = entries[:12]
    luck = {entry["key"]: np.random.default_rng(int(entry["key"][:8], 16)).normal() * 5.0 for entry in generation}
    noisy = {entry["key"]: entry["top1"] for entry in generation if entry["fidelity"] == 0.1}
    # Those who went no further had the lower scores on a tenth of the images.
    further = [entry for entry in generation if entry["fidelity"] > 0.1]
    first = [worth(Architecture.model_validate(entry["architecture"])) + 0.9 * luck[entry["key"]] for entry in further]
    assert max(noisy.values()) <= min(first)
    front = evolution.front(entries, BUDGET, ["top1"])
    assert front[0]["top1"] == max(entry["top1"] for entry in entries if entry["fidelity"] == 1)


def test_a_budget_that_cannot_be_met_names_the_reachable_range():
    with pytest.raises(UserError, match=r"no architecture .* inside macs \[1e\+12, 1e\+12\]; the space reaches macs"):
        evolution.first_generation(SPACE, Budget(macs=(1e12, 1e12)), 7, 4, seed=0, skip=0.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_space_smaller_than_the_population_is_searched_whole(algorithm, monkeypatch):
    small = small_space(patch_size=[4], depth=1, heads=[1], identity="none", mlp_dim={"max": 10, "ratios": [0.5, 1]})
    monkeypatch.setattr("test_evolution.SPACE", small)
    assert small.size == 18
    entries = search(Budget(), population=50, algorithm=algorithm)
    assert len({entry["key"] for entry in entries}) == 18
