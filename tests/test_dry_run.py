"""Every search recipe with its full-size supernet, on stand-in images of 224 x 224: two steps and four candidates."""

import json
import statistics

import numpy as np
import pytest
import torch
from conftest import QUICKSTART, ROOT, SHORT, launch
from PIL import Image

from vitas import recipe
from vitas.files import read_lines
from vitas.models.measured import measure
from vitas.models.vit import VisionTransformer
from vitas.spaces.architecture import Architecture

pytestmark = pytest.mark.launch
RECIPES = sorted((ROOT / "recipes").glob("search_*.yaml"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir()
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), np.uint8)).save(folder / name / f"{number}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_search_recipe_runs_with_its_full_size_supernet(path, images, tmp_path):
    changes = [
        "stages=[supernet,evolve]", f"data.train={images}", f"data.test={images}", "data.workers=0", "data.holdout=0.2",
        "supernet.batch_size=4", "supernet.epochs=1", "supernet.warmup_epochs=0", "evolve.population=4",
        "evolve.generations=1", "tracking.wandb=never",
    ]  # fmt: skip
    launch(path, *changes, cwd=tmp_path)
    run = tmp_path / "runs" / recipe.load(path).name
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["stage"] == "supernet"]
    assert [line["step"] for line in lines if "model" not in line] == [2]
    assert len({line["model"] for line in lines if "model" in line}) == 5  # validated: the ends and three inside
    entries = read_lines(run / "evolution" / "candidates.jsonl")
    low, high = recipe.load(path).budget.flops
    # The classifier of the stand-in's two classes is smaller; the budget is counted with it.
    assert len(entries) == 4
    assert all(low <= entry["flops"] <= high for entry in entries)


@pytest.mark.slow  # a busy machine measures other figures from one minute to the next
def test_a_throughput_window_is_honoured_on_this_machine(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as the run has
    try:
        settings = recipe.load(QUICKSTART)
        middle = VisionTransformer(settings.space.sample(0, 1), 10)
        speed = measure(middle, 16, ["throughput"], batch_size=64)["throughput"]
        low, high = 0.7 * speed, 1.4 * speed
        budget = [f"budget.throughput=[{low},{high}]", "budget.throughput_batch=64", "budget.macs=null"]
        launch(QUICKSTART, *SHORT, *budget, "stages=[supernet,evolve]", "evolve.population=8", cwd=tmp_path)
        front = json.loads((tmp_path / "runs" / "quickstart" / "evolution" / "front.json").read_text())
        assert front
        for entry in front:
            model = VisionTransformer(Architecture.model_validate(entry["architecture"]), 10)
            again = statistics.median(measure(model, 16, ["throughput"], batch_size=64)["throughput"] for _ in range(5))
            assert 0.9 * low <= again <= 1.1 * high
    finally:
        torch.set_num_threads(threads)
