"""Which subnets a step of the supernet's training takes."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUICKSTART, ROOT, small_space

from vitas import recipe
from vitas.spaces import cost
from vitas.spaces.budget import Budget, calibrate_skip, sample_inside
from vitas.subnets import subnets
from vitas.train.trainer import Trainer


@pytest.mark.parametrize("changes", [{}, {"identity": "none"}, {"identity": "tail"}, {"tied_blocks": True}], ids=str)
def test_largest_and_smallest_are_corners_of_all_patch_sizes_and_head_counts(changes):
    space = small_space(**changes)
    drawn = [space.ends(7, step) for step in range(60)]
    assert drawn == [space.ends(7, step) for step in range(60)]
    for end, found in zip((-1, 0), zip(*drawn, strict=True), strict=True):
        assert {architecture.patch_size for architecture in found} == {*space.patch_size}
        for number, block in enumerate(space.corner(end, 4).blocks):
            heads = {architecture.blocks[number] and architecture.blocks[number].heads for architecture in found}
            assert heads == ({*space.heads} if block else {None})
        for architecture in found:
            space.encode(architecture)  # is in the space
            corner = space.corner(end, architecture.patch_size)
            assert architecture.embed_dim == corner.embed_dim
            widths = [[block and (block.qkv_dim, block.mlp_dim) for block in a.blocks] for a in (architecture, corner)]
            assert widths[0] == widths[1]


@pytest.mark.parametrize("name", ["quickstart", "search_1G"])
def test_subnets_inside_the_budget_are_even_over_it_and_the_same_again(name):
    settings = recipe.load(ROOT / "recipes" / f"{name}.yaml")
    space, budget, classes = settings.space, settings.budget, settings.data.num_classes or 10
    skip = calibrate_skip(space, budget, classes)
    ((key, (low, high)),) = budget.windows().items()
    found = [sample_inside(space, budget, classes, seed=0, step=step, skip=skip) for step in range(400)]
    assert found[:9] == [sample_inside(space, budget, classes, seed=0, step=step, skip=skip) for step in range(9)]
    costs = np.array([cost.count(architecture, classes)[key] for architecture in found])
    assert low <= costs.min() and costs.max() <= high
    assert min(np.histogram(costs, 4, (low, high))[0]) > 0.15 * len(costs)


def test_where_nothing_is_inside_the_nearest_is_taken():
    space = small_space()
    for step in range(20):
        found = sample_inside(space, Budget(macs=(1, 2)), 7, seed=0, step=step, skip=0.9)
        assert cost.count(found, 7)["macs"] < 2 * cost.count(space.corner(0, 8), 7)["macs"]


def test_the_budget_counts_after_the_switching_step_and_several_take_turns():
    windows = {"small": (0.5e6, 0.7e6), "base": (0.8e6, 1.2e6)}
    given = ["supernet.sandwich=2", "supernet.in_budget=0.25"]
    settings = recipe.load(
        QUICKSTART, [*given, *(f"budgets.{name}.macs={[*window]}" for name, window in windows.items())]
    )
    skips = settings.skip_probabilities(10)
    before = recipe.load(QUICKSTART, ["supernet.sandwich=2"])
    plain = [subnets(before, 10, {"": skips["small"]}, step, 100) for step in range(100)]
    inside = []
    for step in range(100):
        found = subnets(settings, 10, skips, step, 100)
        assert [*found[:2]] == before.space.ends(before.seed, step) == [*plain[step][:2]]
        for (low, high), architecture in zip(windows.values(), found[2:], strict=True):
            inside.append(low <= cost.count(architecture, 10)["macs"] <= high)
    assert all(inside[150:]) and np.mean(inside[:150]) < 0.6
    alone = recipe.load(QUICKSTART)
    assert subnets(alone, 10, {"": 0.3}, 5, 100) == (alone.space.sample(0, 5, skip=0.3),)


def test_an_error_names_all_subnets_of_the_step():
    found = small_space().ends(0, 0)
    told = Trainer._what(SimpleNamespace(inputs=lambda step: found), 0)
    assert told == f", architectures {found[0].model_dump_json()}, {found[1].model_dump_json()}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["supernet.distill=soft"], "supernet: distill soft needs a sandwich: its largest subnet teaches the others"),
        (
            ["supernet.in_budget=1", "budget.macs=null"],
            "supernet.in_budget: expected a window of flops or macs or params",
        ),
        (["supernet.in_budget=1", "budgets={a: {macs: null, latency: [1, 2]}}"], "params in budgets.a"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(given, says):
    with pytest.raises(recipe.UserError) as error:
        recipe.load(QUICKSTART, given)
    assert says in str(error.value) and "\n" not in str(error.value)
    # A search alone may have a budget that its supernet did not have.
    assert "distill" in says or recipe.load(QUICKSTART, [*given, "stages=[evolve]"])
