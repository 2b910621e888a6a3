import json

import numpy as np
import pytest
import yaml
from conftest import small_space
from hypothesis import given
from hypothesis import strategies as st

from vitas import recipe
from vitas.config import UserError
from vitas.spaces.architecture import Architecture, Block
from vitas.spaces.named import NAMED
from vitas.spaces.space import SearchSpace, Widths

SPACES = [small_space(identity=identity, tied_blocks=tied) for identity in ("none", "free", "tail") for tied in (0, 1)]
genomes = st.builds(
    lambda space, seed, skip: (space, space.sample_genomes(np.random.default_rng(seed), 1, skip=skip)[0]),
    st.sampled_from(SPACES),
    st.integers(0, 2**32),
    st.floats(0, 1),
)


@given(genomes)
def test_a_genome_makes_the_round_trip(drawn):
    space, genome = drawn
    assert (space.encode(space.decode(genome)) == genome).all()
    assert (space.canonical(genome)[0] == genome).all()


@given(genomes)
def test_an_architecture_makes_the_round_trip_through_yaml_and_json(drawn):
    space, genome = drawn
    architecture = space.decode(genome)
    for text in (architecture.to_yaml(), architecture.model_dump_json()):
        again = Architecture.model_validate(yaml.safe_load(text))
        assert again == architecture
        assert hash(again) == hash(architecture)
        assert again.key == architecture.key


@given(st.sampled_from(SPACES), st.integers(0, 2**32))
def test_any_genome_has_one_canonical_form(space: SearchSpace, seed: int):
    genome = np.random.default_rng(seed).integers(0, space.cardinality)
    canonical = space.canonical(genome)
    assert (space.canonical(canonical) == canonical).all()
    architecture = space.decode(genome)
    assert architecture.kept
    assert space.decode(canonical[0]) == architecture
    if space.identity == "tail":
        assert None not in architecture.blocks[: len(architecture.kept)]


@pytest.mark.parametrize("identity", ["none", "free", "tail"])
@pytest.mark.parametrize("tied", [False, True])
def test_size_is_the_number_of_architectures_that_sampling_finds(identity, tied):
    two = Widths(max=12, ratios=[0.5, 1])
    space = SearchSpace(
        image_size=4, patch_size=[2, 4], embed_dim=two, depth=2, heads=[1, 2], qkv_dim=two, mlp_dim=two,
        identity=identity, tied_blocks=tied,
    )  # fmt: skip
    drawn = space.sample_genomes(np.random.default_rng(0), 20_000, skip=0.4)
    assert len({space.decode(genome) for genome in np.unique(drawn, axis=0)}) == space.size


def test_sampling_depends_on_seed_and_step_alone():
    space = small_space()
    assert space.sample(3, 7, skip=0.3) == space.sample(3, 7, skip=0.3)
    assert len({space.sample(3, step, skip=0.3) for step in range(50)}) == 50


def test_sampling_is_uniform_over_what_is_kept():
    space = small_space()
    population = space.widths(space.sample_genomes(np.random.default_rng(0), 20_000, skip=0.25))
    assert abs((population.heads == 0).mean() - 0.25) < 0.01
    for heads in space.heads:
        assert abs((population.heads == heads).mean() - 0.25) < 0.01


def test_a_head_count_that_does_not_divide_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"heads 5 does not divide qkv_dim 12 \(120 x ratio\)"):
        small_space(heads=[5])


def test_an_architecture_of_another_space_is_refused():
    block = Block(heads=3, qkv_dim=9, mlp_dim=7)
    stranger = Architecture(image_size=16, patch_size=4, embed_dim=40, blocks=(block,) * 4)
    with pytest.raises(UserError, match=r"heads 3 is not among the space's \[1, 2, 4\]"):
        small_space().encode(stranger)


def test_json_of_a_skipped_block_has_no_widths():
    architecture = small_space().sample(0, 0, skip=0.9)
    assert None in json.loads(architecture.model_dump_json())["blocks"]


@pytest.mark.parametrize("name", NAMED)
def test_a_ready_space_fits_its_image_sizes_and_is_what_a_recipe_changes(name):
    for size in NAMED[name].image_sizes:
        space = SearchSpace.model_validate({"extends": name, "image_size": size, "depth": 3})
        assert (space.image_size, space.depth, len(space.sample(0, 0).blocks)) == (size, 3, 3)
        assert SearchSpace.model_validate(space.model_dump()) == space and "extends" not in space.model_dump()
    loaded = recipe.load("quickstart", [f"space={{extends: {name}}}", f"space.image_size={size}"])
    assert loaded.space == SearchSpace.model_validate(
        {"extends": int(name) if name.isdigit() else name, "image_size": size}
    )
    assert recipe.load("search_1G", ["space.extends=small"]).space.embed_dim.max == 192


def test_an_unknown_ready_space_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"space: extends: expected one of tiny, .*, got smal \(did you mean small\?\)"):
        recipe.load("quickstart", ["space={extends: smal}"])
