"""Scores are sums over slices of the images: whoever computes which slice, they are those of a plain loop."""

import heapq
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import ROOT, small_space

from vitas import recipe
from vitas.data.decoded import Cached
from vitas.data.device import DeviceImages, stratified
from vitas.evolve import evolution
from vitas.evolve.candidates import Candidates
from vitas.evolve.scores import Scores
from vitas.evolve.scoring import Scorer, slices, tally
from vitas.evolve.store import Store
from vitas.evolve.workers import Workers, jobs
from vitas.files import read_lines
from vitas.models.supernet import Supernet
from vitas.spaces.cost import count

SPACE = small_space()
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
LABELS = np.random.default_rng(1).choice(5, 211, p=[0.5, 0.3, 0.1, 0.08, 0.02])
IMAGES = Cached(np.random.default_rng(0).integers(0, 256, (211, 3, 16, 16), dtype=np.uint8), LABELS, "digest")
CANDIDATES = [SPACE.sample(0, step, skip=0.2) for step in range(6)]


@pytest.fixture(scope="module")
def net() -> Supernet:
    torch.manual_seed(0)
    net = Supernet(SPACE, 5).eval()
    for parameter in net.parameters():  # far from zero: else all images get the same class
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def on_cpu() -> DeviceImages:
    return DeviceImages(IMAGES, torch.device("cpu"), mean=MEAN, std=STD, order=stratified(LABELS))


def plain(net: Supernet, architecture, side: str) -> tuple[int, float]:
    pixels = torch.from_numpy(IMAGES.images) / 255
    images = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = torch.from_numpy(LABELS)
    with torch.inference_mode():
        logits = net._forward_side(images, architecture, side)
    return int((logits.argmax(1) == labels).sum()), float(F.cross_entropy(logits, labels, reduction="sum"))


def candidates(net, folder, writer="one", measure=lambda architecture: {}, measured=(), batch_size=16) -> Candidates:
    scorer = Scorer(net, on_cpu(), batch_size=batch_size, precision="no")
    stores = (Store(folder / name, {"of": "these"}, writer) for name in ("costs", "scores"))
    costs, scores = stores
    return Candidates(
        Workers(Accelerator(cpu=True)),
        num_classes=5,
        measure=measure,
        measured=measured,
        costs=costs,
        scorer=scorer,
        store=scores,
        on_progress=lambda done, of: None,
    )


@pytest.mark.parametrize("sharing", ["bilateral", "ordinal"])
def test_scores_are_those_of_a_plain_loop_over_the_whole_supernet(tmp_path, net, sharing):
    if sharing == "ordinal":
        weights = net.state_dict()
        net = Supernet(SPACE, 5, sharing=sharing).eval()
        net.load_state_dict(weights)
    found = candidates(net, tmp_path).score(CANDIDATES, 1.0)
    for entry, architecture in zip(found, CANDIDATES, strict=True):
        hits, losses = zip(*(plain(net, architecture, side) for side in net.sides), strict=True)
        assert entry["top1"] == pytest.approx(100 * np.mean(hits) / 211, rel=1e-12)
        assert entry["loss"] == pytest.approx(np.mean(losses) / 211, rel=1e-5)
        assert entry["images"] == 211
        if len(net.sides) > 1:
            assert [entry[side] for side in net.sides] == [100 * right / 211 for right in hits]


def test_the_same_scores_bit_for_bit_however_the_work_is_cut(tmp_path, net):
    whole = candidates(net, tmp_path / "whole").score(CANDIDATES, 1.0)
    scorer = Scorer(net, on_cpu(), batch_size=16, precision="no")
    for ranks in (2, 5, 64):
        store = Store(tmp_path / str(ranks), {}, "writer")
        queue = jobs([(a.key, range(len(scorer.slices))) for a in CANDIDATES], ranks)
        assert len(queue) == len({(key, first) for key, first, _ in queue}) > len(CANDIDATES)
        by_key = {architecture.key: architecture for architecture in CANDIDATES}
        for key, first, length in np.random.default_rng(ranks).permutation(np.array(queue, dtype=object)):
            store.append(scorer.score(by_key[key], first, length))
        scores = Scores(store, scorer.slices, net.sides)
        assert [scores.entry(a.key, len(scorer.slices)) for a in CANDIDATES] == whole


def test_the_same_scores_bit_for_bit_on_any_number_of_threads(tmp_path, net):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(candidates(net, tmp_path / str(threads)).score(CANDIDATES, 1.0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_what_is_known_is_not_scored_again_and_parts_are_completed(tmp_path, net, monkeypatch):
    first = candidates(net, tmp_path)
    part = first.score(CANDIDATES, 0.3)
    assert {entry["images"] for entry in part} == {106}  # two slices of four
    monkeypatch.setattr(first.scorer, "score", lambda *_: pytest.fail("scored twice"))
    assert first.score(CANDIDATES, 0.5) == part
    monkeypatch.undo()
    second = candidates(net, tmp_path, "two")
    whole = second.score(CANDIDATES, 1.0)
    assert candidates(net, tmp_path / "other").score(CANDIDATES, 1.0) == whole
    lines = [line for file in tmp_path.glob("scores/*/*.jsonl") for line in read_lines(file)]
    done = [(line["key"], line["first"] + at) for line in lines for at in range(len(line["hits"]["left"]))]
    assert len(done) == len(set(done)) == 6 * 4


def test_measured_costs_are_kept_and_the_second_measurement_is_another(tmp_path, net):
    measurements = []

    def measure(architecture):
        measurements.append(architecture.key)
        return {"latency": float(len(measurements))}

    first = candidates(net, tmp_path, measure=measure, measured=["latency"])
    entries = first.costs(CANDIDATES)
    assert [entry["latency"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[0].items() >= count(CANDIDATES[0], 5).items()
    assert first.costs_again(CANDIDATES[2]) == {"latency": 7}
    again = candidates(net, tmp_path, "two", measure=measure, measured=["latency"])
    assert again.costs(CANDIDATES) == entries
    assert again.costs_again(CANDIDATES[2]) == {"latency": 7}
    assert len(measurements) == 7


def test_work_is_shared_out_so_that_64_ranks_are_busy_with_50_candidates():
    """Simulated with the cost of each slice in multiply-adds; `benchmarks/search.py` does it with measured times."""
    settings = recipe.load(ROOT / "recipes" / "search_1G.yaml")
    wide = settings.budget.model_copy(update={"flops": (0.5e9, 1.5e9)})  # costs three times apart
    genomes = evolution.first_generation(settings.space, wide, 1000, 50, seed=0, skip=0.3)
    costs = {a.key: count(a, 1000)["macs"] for a in map(settings.space.decode, genomes)}
    keys = sorted(costs, key=lambda key: costs[key], reverse=True)
    for ranks in (1, 8, 64):
        queue = jobs([(key, range(20)) for key in keys], ranks)
        assert sorted((key, first + at) for key, first, length in queue for at in range(length)) == sorted(
            (key, number) for key in keys for number in range(20)
        )
        free = [0] * ranks
        for key, _, length in queue:
            heapq.heapreplace(free, free[0] + costs[key] * length)
        assert sum(free) / (ranks * max(free)) > 0.95
    assert len(jobs([(key, range(20)) for key in keys], 1)) < 150  # large jobs: seldom another candidate


def test_gaps_are_filled_and_nothing_else():
    assert [tuple(job) for job in jobs([("a", [0, 1, 3]), ("b", [2])], 1)] == [("a", 0, 2), ("a", 3, 1), ("b", 2, 1)]
    assert jobs([], 3) == []


@pytest.mark.parametrize("images", [1, 63, 64, 65, 216, 1280, 10_000])
def test_slices_are_even_and_hold_each_image_once(images):
    cuts = slices(images)
    assert [number for first, stop in cuts for number in range(first, stop)] == list(range(images))
    sizes = [stop - first for first, stop in cuts]
    assert max(sizes) - min(sizes) <= 1
    assert len(cuts) == min(20, -(-images // 64))


def test_any_stretch_of_the_order_holds_the_classes_in_proportion():
    order = stratified(LABELS)
    assert sorted(order) == list(range(211))
    shares = np.bincount(LABELS) / 211
    for start, stop in ((0, 53), (53, 106), (10, 30), (150, 211)):
        here = np.bincount(LABELS[order[start:stop]], minlength=5)
        assert np.abs(here - shares * (stop - start)).max() <= 1.01


def test_images_are_normalised_and_dealt_in_even_batches():
    images = on_cpu()
    batches = list(images.batches(3, 103, 32))
    assert [len(pixels) for pixels, _ in batches] == [25, 25, 25, 25]
    rows = images.order[3:103]
    expected = (IMAGES.images[rows] / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    np.testing.assert_allclose(torch.cat([pixels for pixels, _ in batches]), expected, rtol=1e-5, atol=1e-5)
    assert torch.cat([labels for _, labels in batches]).tolist() == LABELS[rows].tolist()
    assert tally(lambda pixels: torch.zeros(len(pixels), 5), images, 7, 7, batch_size=4) == (0, 0, 0.0, 0)


def test_half_precision_is_used_and_near_float32(net):
    model = net.extract(CANDIDATES[0])
    seen = []
    model.blocks[0].mlp.fc1.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    full, half = (tally(model, on_cpu(), 0, 211, batch_size=64, precision=precision) for precision in ("no", "bf16"))
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert abs(full.top1 - half.top1) <= 5
    assert half.loss == pytest.approx(full.loss, rel=0.02)


def test_the_fastest_batch_is_measured_within_a_slice(net):
    scorer = Scorer(net, on_cpu(), batch_size=None, precision="no")
    assert scorer.fastest_batch(CANDIDATES[0]) in (16, 32)  # a slice has 53 images


def test_damaged_lines_are_told_and_another_origin_is_another_store(tmp_path, net, capsys):
    scored = candidates(net, tmp_path)
    scored.score(CANDIDATES[:1], 1.0)
    (file,) = tmp_path.glob("scores/*/one.jsonl")
    whole = json.loads(file.read_text().splitlines()[0])
    changes: list[dict] = [
        {"hits": {}},
        {"first": 99},
        {"loss": {"left": [float("nan")], "right": [1.0]}},
        {"hits": {"left": [54], "right": [0]}, "loss": {"left": [1.0], "right": [1.0]}},
    ]
    damaged = ["5", "{}", *(json.dumps(whole | change) for change in changes)]
    file.write_text("\n".join([*damaged, file.read_text()]) + '{"key": "cut sh')
    again = candidates(net, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "is damaged, and passed over" in line]
    assert len(said) == len(damaged)
    again.score(CANDIDATES[:2], 1.0)
    assert '{"key": "cut sh' not in file.read_text()
    other = Store(tmp_path / "scores", {"of": "others"}, "one")
    assert other.read(lambda line: True) == []
    assert json.loads((other.folder / "made_from.json").read_text()) == {"of": "others"}
