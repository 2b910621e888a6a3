"""How rankings are compared: the statistics, the score that trains nothing, and the lone training behind them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import QUICKSTART
from ranks import Ranks
from safetensors.torch import load_file
from scipy.stats import kendalltau, spearmanr
from torch import nn
from toy import ARCHITECTURE, Toy, toy_data, toy_images, toy_labels

from vitas import recipe
from vitas.data.batches import Batch
from vitas.evolve import ranking, zero_cost
from vitas.models.vit import VisionTransformer
from vitas.report.tables import ranking_table
from vitas.report.tracking import Untracked
from vitas.runs.accelerator import make_accelerator
from vitas.runs.rank import spread
from vitas.sections import Retraining
from vitas.spaces.architecture import Architecture, Block
from vitas.train import stop, trainer
from vitas.train.alone import _Scaled, alone, one_thread

TINY = Architecture(image_size=8, patch_size=4, embed_dim=4, blocks=(Block(heads=1, qkv_dim=6, mlp_dim=5), None))


def scores(n: int, **given: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: given.get(name, rng.normal(size=n)) for name in ("supernet", "supernet_loss", "macs", "params", "dss")
    }


def test_agreement_and_regret_of_four_architectures_counted_by_hand():
    top1 = np.array([[70.0, 72.0], [74.0, 73.0], [75.0, 71.0], [60.0, 61.0]])  # means 71, 73.5, 73, 60.5
    found = ranking.compare(scores(4, supernet=np.array([4.0, 3.0, 2.0, 1.0])), top1)["rankings"]["supernet"]
    assert found["tau"] == pytest.approx((4 - 2) / 6)  # two of six pairs are the other way round
    assert found["rho"] == pytest.approx(1 - 6 * (4 + 1 + 1) / (4 * 15))
    # By the first seed the third is best and has 71 on the second, by the second the second, with 74 on the first.
    assert found["regret"] == pytest.approx(((74 - 70) + (71 - 72)) / 2)
    assert ranking.regret(np.array([4.0, 3, 2, 1]), top1[:, :1]) == 5
    assert ranking.regret(np.array([1.0, 1, 0, 0]), top1[:, :1]) == 75 - 72  # of equals the mean


def test_intervals_are_those_of_a_plain_bootstrap_and_leave_out_resamples_that_say_nothing():
    rng = np.random.default_rng(3)
    top1 = rng.normal(80, 2, (12, 2))
    given = scores(12, supernet=top1.mean(1) + rng.normal(0, 2, 12))
    found = ranking.compare(given, top1, seed=5)["rankings"]["supernet"]
    rows = np.random.default_rng(5).integers(0, 12, (1000, 12))
    for name, plain in (("tau", kendalltau), ("rho", spearmanr)):
        assert found[name] == pytest.approx(plain(given["supernet"], top1.mean(1)).statistic)
        drawn = [plain(given["supernet"][row], top1.mean(1)[row]).statistic for row in rows]
        np.testing.assert_allclose(found[f"{name}_interval"], np.quantile(drawn, [0.025, 0.975]))
    three = ranking.compare(scores(3, macs=np.ones(3)), np.array([[1.0], [2.0], [3.0]]))
    assert three["ceiling"] is None and three["seed_deviation"] is None
    assert (three["rankings"]["macs"]["tau"], three["rankings"]["macs"]["tau_interval"]) == (0, [-1, 1])
    assert all(math.isfinite(end) for row in three["rankings"].values() for end in row["tau_interval"])


@pytest.mark.parametrize(("noise", "seeds"), [(1.0, 2), (0.5, 3), (2.0, 4), (0.0, 2)])
def test_the_ceiling_is_the_tau_that_the_true_ranking_has_with_the_table(noise, seeds):
    rng = np.random.default_rng(0)
    quality = rng.normal(size=1000)
    top1 = quality[:, None] + noise * rng.normal(size=(1000, seeds))
    true = kendalltau(quality, top1.mean(1)).statistic
    assert ranking.attainable(ranking.ceiling(top1)) == pytest.approx(true, abs=0.05)


def test_a_verdict_says_plainly_what_is_no_better_and_what_cannot_be_told():
    what = "counting parameters"
    worse = ranking.verdict(0.46, 0.51, what, [-0.3, -0.01], by_loss=0.5)
    assert worse == (
        "the supernet ranks no better than counting parameters (tau 0.46 against 0.51): train it longer, "
        "or see docs/QUALITY.md"
    )
    unsure = ranking.verdict(0.46, 0.51, what, [-0.3, 0.2], by_loss=0.6)
    assert unsure.startswith(f"{worse}; its loss ranks better, with a tau of 0.60; the difference may be -0.30 to 0.20")
    assert "too few to tell" in ranking.verdict(0.6, 0.5, what, [-0.1, 0.3], by_loss=0.5)
    assert ranking.verdict(0.7, 0.4, what, [0.1, 0.5], by_loss=0.5) == (
        "the supernet ranks better than counting parameters: tau 0.70 against 0.40, a difference of 0.10 to 0.50"
    )


def test_what_is_judged_is_what_the_search_goes_by():
    top1 = np.array([[70.0], [71.0], [72.0], [73.0], [74.0], [75.0]])
    values = scores(6, supernet=-np.arange(6), macs=-np.arange(6)) | {"supernet_smoothed": np.arange(6)}
    by_top1, smoothed = (ranking.compare(values, top1, judged=name) for name in ("supernet", "supernet_smoothed"))
    assert "supernet ranks no better" in by_top1["verdict"] and by_top1["lead"][1] <= 0
    assert smoothed["judged"] == "supernet_smoothed" and smoothed["lead"][0] >= 0
    assert "the supernet, by its smoothed loss, ranks better than" in smoothed["verdict"]


def test_the_table_has_a_line_for_each_ranking_and_says_what_noise_there_is():
    top1 = np.array([[70.0, 72.0], [74.0, 73.0], [75.0, 71.0], [60.0, 61.0]])
    rows = [{"top1": list(row)} for row in top1]
    text = ranking_table(ranking.compare(scores(4), top1) | {"architectures": rows, "budget": "small"})
    assert len(text.splitlines()) == 9 and "4 architectures of budget small" in text and "true ranking" in text
    one = ranking_table(ranking.compare(scores(4), top1[:, :1]) | {"architectures": rows, "budget": None})
    assert "one seed does not tell" in one


def test_a_sample_is_spread_over_the_ranks_and_takes_what_is_trained_already():
    pool = [{"key": f"a{number:02}", "top1": float(-number % 40), "loss": 0.0} for number in range(40)]
    ranked = sorted(pool, key=lambda entry: -entry["top1"])
    places = [ranked.index(entry) for entry in spread(pool, 8, set())]
    assert places[0] == 0 and places[-1] == 39 and all(5 * at <= place < 5 * at + 5 for at, place in enumerate(places))
    trained = {ranked[at]["key"] for at in (1, 6, 9, 22)}
    places = [ranked.index(entry) for entry in spread(pool, 8, trained)]
    assert places[0] == 0 and places[1] == 6 and places[4] == 22  # the best is always there; else one near the middle
    assert len(spread(pool[:5], 8, set())) == 5


def by_hand(model: VisionTransformer) -> float:
    """DSS of a network with one block and one head, its forward written out on matrices."""
    named = {name: value.detach().double().abs().requires_grad_() for name, value in model.named_parameters()}

    def linear(x, name):
        return x @ named[f"{name}.weight"].T + named[f"{name}.bias"]

    def norm(x, name, eps):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * named[f"{name}.weight"] + named[f"{name}.bias"]

    patch = named["patch_embed.proj.weight"].sum((1, 2, 3)) + named["patch_embed.proj.bias"]  # an image of ones
    x = torch.cat([named["cls_token"][0], patch.expand(4, -1)]) + named["pos_embed"][0]
    q, k, v = linear(norm(x, "blocks.0.norm1", 1e-6), "blocks.0.attn.qkv").chunk(3, -1)
    x = x + linear(((q @ k.T) / q.shape[1] ** 0.5).softmax(-1) @ v, "blocks.0.attn.proj")
    hidden = linear(norm(x, "blocks.0.norm2", 1e-6), "blocks.0.mlp.fc1")
    x = x + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, "blocks.0.mlp.fc2")
    linear(norm(x, "norm", 1e-5)[:1], "head").sum().backward()
    total = 0.0
    for name in ("attn.qkv", "attn.proj"):
        weight = named[f"blocks.0.{name}.weight"]
        nuclear = [torch.linalg.svdvals(matrix.detach()).sum().item() for matrix in (weight.grad, weight)]
        total += nuclear[0] * nuclear[1]
    for name in ("mlp.fc1", "mlp.fc2"):
        weight = named[f"blocks.0.{name}.weight"]
        total += sum(abs(g * w) for g, w in zip(weight.grad.flatten().tolist(), weight.flatten().tolist(), strict=True))
    return total


def test_dss_is_its_formula_and_always_the_same():
    torch.manual_seed(4)
    model = VisionTransformer(TINY, 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    assert by_hand(model) == pytest.approx(zero_cost.synaptic(model), rel=1e-9)
    before = torch.get_rng_state()
    first = zero_cost.dss(TINY, 3)
    torch.manual_seed(9)
    assert zero_cost.dss(TINY, 3) == first
    torch.set_rng_state(before)
    zero_cost.dss(TINY, 3)
    assert torch.equal(torch.get_rng_state(), before)


def trained(folder: str, changes: dict, by_itself: bool) -> int:
    """The work of a process: trains a toy by an Accelerator, or by what stands in for it."""
    settings = Retraining(**({"epochs": 12, "warmup_epochs": 1, "batch_size": 8, "checkpoint_every": 5} | changes))
    quickstart = recipe.load(QUICKSTART, [f"output={folder}"])
    accelerator: Accelerator = make_accelerator(quickstart)

    def batches(plan):
        for step in range(plan.start, plan.stop):
            for part in toy_images(step, plan.batch_size)[0].chunk(plan.accumulation):
                bad = float("nan") if step == 4 and settings.on_nonfinite == "skip" else 1.0
                yield Batch(part * bad, toy_labels(part), {})

    trainer.Trainer(
        accelerator=alone(accelerator) if by_itself else accelerator,
        model=Toy(),
        settings=settings,
        folder=Path(folder) / ("alone" if by_itself else "accelerate"),
        stage="retrain",
        data=toy_data(batches),
        inputs=lambda step: (ARCHITECTURE,),
        tracker=Untracked(),
        stop=stop.StopRequest(),
        on_step=(lambda *_: None) if by_itself else None,
    ).run()
    return 0


@pytest.mark.launch
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lone_training_is_that_of_one_process_bit_for_bit(tmp_path, precision):
    changes = {"micro_batch_size": 2, "clip_grad": 0.1, "ema": 0.9, "on_nonfinite": "skip"}
    for by_itself in (False, True):
        ranks = Ranks(
            trained, str(tmp_path), changes, by_itself, options=["--mixed_precision", precision], cwd=tmp_path
        )
        assert ranks.wait(60) == [0], ranks.text()
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "accelerate"))
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight) and not torch.equal(weight, Toy().state_dict()[name])


def test_a_scaled_optimizer_leaves_out_an_update_whose_gradient_overflows():
    weight = nn.Parameter(torch.ones(1))
    scaler = torch.amp.GradScaler("cpu")
    optimizer = _Scaled(torch.optim.SGD([weight], lr=0.5), scaler)
    for factor, after in ((1.0, 0.5), (float("inf"), 0.5), (1.0, 0.0)):
        scaler.scale(weight * factor).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert weight.item() == after
    assert scaler.get_scale() == 2.0**15
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_one_thread_is_for_the_while_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with one_thread(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
