import numpy as np
import pytest
from accelerate import Accelerator
from conftest import small_space

from vitas.config import UserError
from vitas.recipe import Evolution
from vitas.search import evolution
from vitas.search.journal import Journal
from vitas.search.workers import Workers
from vitas.spaces import cost
from vitas.spaces.budget import Budget

SPACE = small_space(embed_dim={"max": 40})
BUDGET = Budget(macs=(1e5, 2e5))


def fake_score(architecture) -> dict:
    """A score that rewards wide MLPs in early blocks: better ones exist, and random search seldom meets them."""
    wide = sum(block.mlp_dim / (place + 1) for place, block in enumerate(architecture.blocks) if block)
    return {"top1": wide, **cost.count(architecture, 7)}


def search(tmp_path, budget=BUDGET, score=fake_score, **settings):
    workers = Workers(Accelerator(), score, Journal(tmp_path, 0))
    settings = Evolution(**{"population": 12, "generations": 8} | settings)
    run = evolution.evolve(
        SPACE,
        budget,
        settings,
        7,
        lambda candidates: workers.score_all(candidates, lambda done: None),
        seed=1,
        skip=0.2,
    )
    return [entry for generation in run for entry in generation]


def test_every_candidate_is_inside_the_budget_and_the_search_improves(tmp_path):
    entries = search(tmp_path)
    assert len(entries) == 12 * 8
    assert all(1e5 <= entry["macs"] <= 2e5 for entry in entries)
    first, last = (np.mean([entry["top1"] for entry in part]) for part in (entries[:12], entries[-12:]))
    assert last > 1.2 * first


def test_a_search_is_replayed_from_its_journal_without_scoring_again(tmp_path):
    entries = search(tmp_path)
    again = search(tmp_path, score=lambda architecture: pytest.fail("scored twice"))
    assert [entry["key"] for entry in again] == [entry["key"] for entry in entries]


def test_a_search_cut_short_goes_on_to_the_same_end(tmp_path):
    whole = search(tmp_path / "whole")
    scored = []

    def dies(architecture):
        if len(scored) == 30:
            raise KeyboardInterrupt
        scored.append(architecture.key)
        return fake_score(architecture)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", score=dies)
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"key": "torn')  # what a kill in the middle of a write leaves
    once_more = []
    entries = search(tmp_path / "cut", score=lambda a: once_more.append(a.key) or fake_score(a))
    assert [entry["key"] for entry in entries] == [entry["key"] for entry in whole]
    assert not set(scored) & set(once_more)


def test_the_front_holds_what_nothing_beats(tmp_path):
    entries = search(tmp_path, objectives=["top1", "params"])
    front = evolution.front(entries, BUDGET, ["top1", "params"])
    assert front[0]["top1"] == max(entry["top1"] for entry in entries)
    for entry in entries:
        assert any(other["top1"] >= entry["top1"] and other["params"] <= entry["params"] for other in front)


def test_measured_throughput_is_a_constraint(tmp_path):
    def score(architecture):
        return {**fake_score(architecture), "throughput": 1e9 / cost.count(architecture, 7)["macs"]}

    budget = Budget(macs=(1e5, 2e5), throughput=(6000, 6500))
    entries = search(tmp_path, budget=budget, score=score, population=20, generations=12)
    found = evolution.front(entries, budget, ["top1"])
    assert found
    assert all(6000 <= entry["throughput"] <= 6500 for entry in found)
    best_of_first = evolution.front(entries[:20], budget, ["top1"])[0]["top1"]
    assert found[0]["top1"] > 1.2 * best_of_first


def test_a_budget_that_cannot_be_met_names_the_reachable_range():
    with pytest.raises(UserError, match=r"no architecture .* inside macs \[1e\+12, 1e\+12\]; the space reaches macs"):
        evolution.first_generation(SPACE, Budget(macs=(1e12, 1e12)), 7, 4, seed=0, skip=0.0)


def test_a_space_smaller_than_the_population_is_searched_whole(tmp_path, monkeypatch):
    small = small_space(patch_size=[4], depth=1, heads=[1], identity="none", mlp_dim={"max": 10, "ratios": [0.5, 1]})
    monkeypatch.setattr("test_evolution.SPACE", small)
    assert small.size == 18
    entries = search(tmp_path, budget=Budget(), population=50)
    assert len({entry["key"] for entry in entries}) == 18
