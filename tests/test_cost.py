import numpy as np
import pytest
import torch
from conftest import small_space
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitas.config import UserError
from vitas.models.vit import VisionTransformer
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture, Block, Population
from vitas.spaces.budget import Budget, calibrate_skip
from vitas.spaces.space import SearchSpace, Widths

SPACE_1G = SearchSpace(
    image_size=224, patch_size=[14, 16, 32], embed_dim=Widths(max=384), depth=16, heads=[3, 6, 12, 16],
    qkv_dim=Widths(max=1440), mlp_dim=Widths(max=1440), identity="free",
)  # fmt: skip


def uniform(embed: int, depth: int, heads: int, qkv: int, mlp: int) -> Architecture:
    block = Block(heads=heads, qkv_dim=qkv, mlp_dim=mlp)
    return Architecture(image_size=224, patch_size=16, embed_dim=embed, blocks=(block,) * depth)


@pytest.mark.parametrize("step", range(12))
def test_macs_and_params_are_what_torch_counts(step):
    architecture = small_space(identity="tail" if step % 2 else "free").sample(1, step, skip=0.3)
    model = VisionTransformer(architecture, num_classes=7).eval()
    # The counter does not see the fused attention that some CPUs choose.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    counted = cost.count(architecture, 7)
    assert 2 * counted["macs"] == counter.get_total_flops()
    assert counted["params"] == sum(parameter.numel() for parameter in model.parameters())


def test_published_figures():
    vitas_c = uniform(230, 12, 3, 432, 720)
    assert cost.count(vitas_c, 1000) == {"flops": 1_303_042_496, "macs": 1_265_114_864, "params": 6_048_414}
    deit_s = uniform(384, 12, 6, 1152, 1536)
    assert cost.count(deit_s, 1000) == {"flops": 4_648_906_752, "macs": 4_598_882_304, "params": 22_050_664}


def test_a_population_costs_what_its_members_cost():
    genomes = SPACE_1G.sample_genomes(np.random.default_rng(0), 100, skip=0.4)
    together = cost.counts(SPACE_1G.widths(genomes), 1000)
    members = [SPACE_1G.decode(genome) for genome in genomes]
    again = cost.counts(Population.of(members), 1000)
    for name, values in together.items():
        assert values.tolist() == again[name].tolist() == [cost.count(member, 1000)[name] for member in members]


def test_the_reachable_range_holds_all_and_is_reached():
    space = small_space(depth=2)
    corners = [[0] * 8, [1, 0, 0, 0, 0, 3, 0, 0]]
    genomes = np.concatenate([space.sample_genomes(np.random.default_rng(0), 200_000, skip=0.2), corners])
    costs = cost.counts(space.widths(space.canonical(genomes)), 10)
    for name, (low, high) in cost.reachable(space, 10).items():
        assert low == costs[name].min(), name
        assert costs[name].max() <= high


def test_calibrated_skipping_brings_fresh_samples_into_the_window():
    budget = Budget(flops=(0.9e9, 1.0e9))
    skip = calibrate_skip(SPACE_1G, budget, 1000)
    fresh = SPACE_1G.sample_genomes(np.random.default_rng(99), 2000, skip=skip)
    assert 0.9e9 <= cost.counts(SPACE_1G.widths(fresh), 1000)["flops"].mean() <= 1.0e9


def test_a_window_out_of_reach_is_refused_with_the_range():
    with pytest.raises(UserError, match=r"budget.flops: no skip probability .* it reaches [\d.e+]+ to [\d.e+]+"):
        calibrate_skip(SPACE_1G, Budget(flops=(9e12, 1e13)), 1000)


def test_the_uniform_vit_by_hand():
    # 16 px in 4 px patches: 17 tokens. A block of width w: 17 w (3 w + w + 8 w) + 2 x 17^2 w MACs; the
    # stem 16 x 48 w, the classifier 10 w. For two blocks at w = 12: 58,752 + 13,872 + 9,216 + 120 = 81,960; at w = 8:
    # 26,112 + 9,248 + 6,144 + 80 = 41,584.
    def found(*heads: int) -> Architecture:
        blocks = [Block(heads=count, qkv_dim=48, mlp_dim=40) for count in heads]
        return Architecture(image_size=16, patch_size=4, embed_dim=12, blocks=(blocks[0], None, *blocks[1:]))

    # 17 x 12 x (48 + 16 + 80) + 2 x 289 x 16 = 38,624 a block, 9,216 + 120 besides: 86,584 and 125,208.
    assert [cost.count(found(*[2] * depth), 10)["macs"] for depth in (2, 3)] == [86_584, 125_208]
    for heads, min_heads, expected in (
        ((4, 4), 1, "patch 4, width 16, depth 2, heads 4"),
        ((2, 2), 1, "patch 4, width 14, depth 2, heads 2"),  # no more channels than it needs
        ((2, 2), 4, "patch 4, width 16, depth 2, heads 4"),
        ((1, 4), 1, "patch 4, width 16, depth 2, heads 4"),  # of equally frequent counts the larger
        ((1, 4, 1), 1, "patch 4, width 13, depth 3, heads 1"),
    ):
        assert cost.uniform_vit(found(*heads), 10, min_heads=min_heads).in_words == expected
    assert found(1, 4, 1).in_words == "patch 4, width 12, depth 3, heads 1 to 4"


def test_the_uniform_vit_is_the_smallest_of_its_heads_that_costs_no_less():
    for step in range(40):
        space = (SPACE_1G, small_space())[step % 2]
        found = space.sample(0, step, skip=0.5)
        vit, target = cost.uniform_vit(found, 10), cost.count(found, 10)["macs"]
        (block,) = set(vit.blocks)
        used = [kept.heads for kept in found.kept]
        assert used.count(block.heads) == max(map(used.count, used))
        assert vit.embed_dim % block.heads == 0 and (block.qkv_dim, block.mlp_dim) == (
            3 * vit.embed_dim,
            4 * vit.embed_dim,
        )
        assert cost.count(vit, 10)["macs"] >= target
        if vit.embed_dim > block.heads:
            width = vit.embed_dim - block.heads
            smaller = Block(heads=block.heads, qkv_dim=3 * width, mlp_dim=4 * width)
            changes = {"embed_dim": width, "blocks": (smaller,) * len(vit.blocks)}
            assert cost.count(vit.model_copy(update=changes), 10)["macs"] < target
