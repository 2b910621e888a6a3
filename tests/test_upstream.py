import argparse
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from vitas import load_model, recipe
from vitas.cli import main
from vitas.config import UserError
from vitas.models import registry, release, vit
from vitas.spaces.cost import count

# Two small networks with random weights in the release's format, with the logits that the original code computed for
# an image given as a formula; and the keys and shapes of the release's five files.
DATA = Path(__file__).parent / "data" / "upstream"
NETS = {"vitas_a": "858M", "vitas_b": "1G", "vitas_c": "1.3G", "vitas_e": "2.7G", "vitas_f": "4.9G"}

# The tables of the paper and of the release, at 224 pixels and 1000 classes: FLOPs as counted there, MACs, parameters.
COSTS = {
    "vitas_a": (858_652_480, 833_487_568, 3_679_478),
    "vitas_b": (990_624_768, 958_618_176, 4_400_248),
    "vitas_c": (1_303_042_496, 1_265_114_864, 6_048_414),
    "vitas_e": (2_706_797_632, 2_653_906_672, 12_550_598),
    "vitas_f": (4_930_994_656, 4_898_506_168, 22_540_277),
    "deit_ti": (1_284_003_840, 1_253_683_200, 5_717_416),
    "deit_s": (4_648_906_752, 4_598_882_304, 22_050_664),
}


def random_checkpoint(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((DATA / f"keys_{NETS[name]}.json").read_text())
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def error(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("kind", ["block_level", "channel_level"])
def test_an_imported_network_gives_the_logits_of_the_original(kind, tmp_path, capsys):
    known = json.loads((DATA / f"{kind}.json").read_text())
    assert main(["import", f"{DATA / kind}.pth.tar", "-o", str(tmp_path), "--config", f"{DATA / kind}.json"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: a network of its own, {known['params']:,} parameters, 10 classes\n"
    model = load_model(tmp_path)
    channel, row, column = torch.meshgrid(*map(torch.arange, (3, 224, 224)), indexing="ij")
    image = torch.sin(0.01 * (7 * channel + 3 * row + 5 * column).double()).float()[None]
    with torch.no_grad():
        worst = (model(image)[0] - torch.tensor(known["logits"])).abs().max().item()
    assert worst < 1e-5, f"logits differ by {worst:.2e}"
    costs = count(model.architecture, 10)
    assert (costs["flops"], costs["params"]) == (known["flops_paper_count"], known["params"])


@pytest.mark.parametrize("name", NETS)
def test_a_published_file_is_recognised_and_leaves_no_key_over(name, tmp_path):
    state = random_checkpoint(name)
    torch.save({"epoch": 300, "model": state, "optimizer": {"step": torch.ones(1)}}, tmp_path / "net.pth.tar")
    architecture, ours = release.convert(tmp_path / "net.pth.tar")
    assert registry.name_of(architecture) == name
    model = vit.from_state(architecture, ours)  # strict: neither missing nor unexpected
    assert sum(value.numel() for value in model.state_dict().values()) == sum(value.numel() for value in state.values())
    # All but q passes unchanged, and the gaps in the numbering close.
    last = max(int(key.split("Block_Block_")[1].split(".")[0]) for key in state if "Block_Block_" in key)
    theirs = state[f"module.net.backbone_Block_Block_{last}.0.mlp.fc2.weight"]
    assert torch.equal(model.blocks[-1].mlp.fc2.weight, theirs)


def test_bare_state_dicts_and_other_class_counts_are_read_too(tmp_path):
    state = {key.removeprefix("module."): value for key, value in random_checkpoint("vitas_a").items()}
    for part in ("weight", "bias"):
        key = f"net.backbone_FC_FC_0.0.module.0.{part}"
        state[key] = state[key][:7]
    torch.save(state, tmp_path / "bare.pth.tar")
    architecture, ours = release.convert(tmp_path / "bare.pth.tar")
    assert (registry.name_of(architecture), len(ours["head.bias"])) == ("vitas_a", 7)


def test_what_does_not_fit_is_named(tmp_path, capsys):
    state = random_checkpoint("vitas_b")
    state["module.net.extra"] = state.pop("module.net.backbone_Norm_Norm_0.0.bias")
    torch.save({"model": state}, tmp_path / "net.pth.tar")
    assert main(["import", str(tmp_path / "net.pth.tar"), "-o", str(tmp_path / "out")]) == 2
    said = error(capsys)
    assert "nearest, vitas_b: missing backbone_Norm_Norm_0.0.bias; unexpected extra" in said
    assert not (tmp_path / "out").exists()
    config = DATA / "block_level.json"
    with pytest.raises(UserError, match=r"fit the architecture: .* of another shape .* \[1, 1, 192\] instead of"):
        release.convert(tmp_path / "net.pth.tar", config)


def test_unsafe_and_damaged_files_are_refused_in_one_line(tmp_path, capsys):
    torch.save({"model": {}, "args": argparse.Namespace()}, tmp_path / "unsafe.pth.tar")
    (tmp_path / "cut.pth.tar").write_bytes((DATA / "block_level.pth.tar").read_bytes()[:9999])
    (tmp_path / "text.pth.tar").write_text("hello")
    torch.save({"epoch": 1}, tmp_path / "other.pth.tar")
    for name, words in {
        "unsafe": "refused: expected tensors and plain values only, and it holds argparse.Namespace",
        "cut": "not a PyTorch checkpoint of tensors, or damaged",
        "text": "not a PyTorch checkpoint of tensors, or damaged",
        "other": "epoch: expected a tensor, got int",
        "none": "No such file or directory",
    }.items():
        assert main(["import", str(tmp_path / f"{name}.pth.tar"), "-o", str(tmp_path / "out")]) == 2
        assert f"{name}.pth.tar: {words}" in error(capsys)


def test_the_whole_configs_of_the_release_are_read(tmp_path):
    known = json.loads((DATA / "channel_level.json").read_text())["model"]
    space = {key: value for key, value in known.items() if key != "net_id"}
    (tmp_path / "net.yaml").write_text(json.dumps({"model": space, "test": {"model": known}}))
    architecture, _ = release.convert(DATA / "channel_level.pth.tar", tmp_path / "net.yaml")
    assert [block and block.heads for block in architecture.blocks] == [4, None, 2, 4]


@pytest.mark.parametrize(
    ("net_id", "words"),
    [("1 2", "expected 52 numbers"), ("1 x", "whole numbers"), ("1 5" + " 0" * 50, "number 2: expected 0 to 4, got 5")],
)
def test_a_wrong_net_id_says_where(net_id, words):
    with pytest.raises(UserError, match=words):
        release.parse_net_id(net_id)


@pytest.mark.parametrize("name", COSTS)
def test_described_costs_are_those_of_the_tables(name, capsys):
    assert main(["describe", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["flops_paper"], facts["macs"], facts["params"]) == COSTS[name]
    assert name not in NETS or release.PUBLISHED[name].flops == COSTS[name][0]


@pytest.mark.parametrize("name", NETS)
def test_a_published_network_lies_in_the_space_and_budget_of_its_search(name):
    search = {"vitas_c": "1.3G_block"}.get(name, NETS[name])
    settings = recipe.load(ROOT / "recipes" / f"search_{search}.yaml")
    architecture = registry.named(name)
    genome = settings.space.encode(architecture)
    assert settings.space.decode(genome) == architecture
    low, high = settings.budget.flops
    assert low == pytest.approx(0.9 * high) and low <= COSTS[name][0] <= high


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("retrain_*.yaml")), ids=lambda file: file.stem)
def test_retraining_recipes_name_a_known_architecture(file):
    settings = recipe.load(file)
    assert settings.name == file.stem == f"retrain_{settings.retrain.architecture}"
    assert registry.named(settings.retrain.architecture).image_size == settings.space.image_size
    strong = settings.retrain.architecture not in ("vitas_a", "vitas_b", "vitas_c")
    assert (settings.retrain.augment.mixup, settings.retrain.augment.cutmix) == ((0.8, 1.0) if strong else (0, 0))
    assert settings.retrain.augment.auto_augment == "rand-m9-mstd0.5-inc1"
