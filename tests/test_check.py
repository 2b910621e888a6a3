"""What `vitas check` and the start of a run find before anything is read or trained."""

import platform

import pytest
import torch
from conftest import QUICKSTART, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import VALID
from PIL import Image

from vitas import recipe
from vitas.cli import main
from vitas.config import UserError, keys
from vitas.models import registry, saved
from vitas.models.vit import VisionTransformer
from vitas.runs import check
from vitas.spaces import architecture as limits
from vitas.spaces.architecture import Architecture, Block, Population
from vitas.spaces.cost import counts
from vitas.subnets import subnets
from vitas.train import memory
from vitas.train.stop import StopRequest


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("vitas: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("evaluate.weights=nowhere.pth.tar", "evaluate.weights: nowhere.pth.tar: No such file or directory"),
        ("evaluate.weights=.", "evaluate.weights: model.safetensors: No such file or directory"),
        ("evaluate.weights=here evaluate.architecture=vitas_d", "evaluate.architecture: unknown architecture vitas_d"),
        ("retrain.architecture=vitas_d", "retrain.architecture: unknown architecture vitas_d (did you mean vitas_"),
        ("retrain.architecture=nowhere.yaml", "retrain.architecture: nowhere.yaml: No such file or directory"),
        ("retrain.architecture=" + "a" * 300, "retrain.architecture: unknown architecture aaa"),
        ("retrain.architecture=" + "a" * 300 + ".yaml", "File name too long"),
        (
            "retrain.architecture=deit_ti retrain.init=supernet",
            "retrain.init: supernet: the architecture has 12 blocks",
        ),
        ("retrain.augment.auto_augment=rand-tweights-n30", "retrain.augment: timm cannot do it"),
        ("stages=[evolve]", "supernet/model.safetensors: No such file or directory: stage evolve needs a supernet"),
        ("stages=[retrain]", "evolution: No such file or directory: retrain.architecture: best needs"),
        ("stages=[baseline]", "evolution: No such file or directory: retrain.architecture: best needs"),
        ("stages=[evolve,retrain,evaluate]", "stage evolve needs a supernet; add stage supernet"),
        (
            "stages=[retrain] retrain.init=supernet retrain.architecture=s.yaml",
            "retrain.init: supernet needs a supernet",
        ),
        ("stages=[evaluate]", "stage evaluate needs a trained model; add stage retrain, or evaluate.weights"),
        ("data.test=nowhere/*.tar", "data.test: nowhere/*.tar: No such file or directory"),
    ],
)
def test_what_a_later_stage_will_miss_is_told_first(tmp_path, capsys, command, overrides, expected):
    (tmp_path / "here").write_text("")
    (tmp_path / "s.yaml").write_text(recipe.load(QUICKSTART).space.corner(-1, 4).to_yaml())
    assert main([command, str(QUICKSTART), *overrides.split()]) == 2
    assert expected in one_line(capsys)
    assert not list(tmp_path.rglob("*.jsonl")) and not list(tmp_path.rglob("cache"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check", str(QUICKSTART), "--ranks", "0"], "--ranks: expected 1 or more, got 0"),
        (["describe", "vitas_a", "--classes", "-5"], "--classes: expected 1 to 1,000,000, got -5"),
        (["describe", "vitas_a", "--classes", str(10**30)], "--classes: expected 1 to 1,000,000"),
        (["describe", "a" * 300], "unknown architecture aaa"),
        (["describe", "a" * 300 + "/b"], "File name too long"),
        (["describe", "."], "architecture.yaml: No such file or directory"),
        (["import", "a" * 300, "-o", "x"], "File name too long"),
        (["import", ".", "-o", "x"], ".: Is a directory"),
        (["run", "a" * 300], "No such file or directory"),
        (["run", "."], "."),
        (["check", str(QUICKSTART), "--config_file", "."], "expected a config file of Accelerate"),
    ],
)
def test_arguments_of_commands_are_checked_too(capsys, words, expected):
    assert main(words) == 2
    assert expected in one_line(capsys)


def test_a_home_and_variables_are_filled_in_wherever_a_path_is_taken(tmp_path, capsys, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PLACE", str(home / "place"))
    space = recipe.load(QUICKSTART).space
    saved.save_model(home / "place" / "model", VisionTransformer(space.corner(-1, 4), 10))
    (home / "base.yaml").write_text(VALID)
    (home / "place" / "mine.yaml").write_text("extends: ~/base.yaml\noutput: ~/runs\n")
    (home / "ddp.yaml").write_bytes((ROOT / "launch" / "accelerate" / "ddp.yaml").read_bytes())
    mine = recipe.load("$PLACE/mine.yaml")
    assert mine.folder == home / "runs" / "x"
    assert recipe.load(QUICKSTART, ["output=${PLACE}/runs"]).folder == home / "place" / "runs" / "quickstart"
    assert registry.find("~/place/model") == registry.find("$PLACE/model/architecture.yaml") == space.corner(-1, 4)
    assert saved.load_model("$PLACE/model", "~/place/model").num_classes == 10
    assert main(["describe", "~/place/model"]) == 0
    wanted = [
        "evaluate.weights=~/place/model",
        "evaluate.architecture=$PLACE/model",
        "retrain.architecture=~/place/model",
    ]
    assert main(["check", str(QUICKSTART), *wanted, "--config_file", "~/ddp.yaml", "--ranks", "2"]) == 0
    capsys.readouterr()
    assert main(["import", "$PLACE/nothing.pth.tar", "-o", "~/out"]) == 2
    assert f"{home}/place/nothing.pth.tar: No such file or directory" in one_line(capsys)
    monkeypatch.setenv("VITAS_STOP_FILE", "~/stop")
    stop = StopRequest()
    assert not stop
    (home / "stop").touch()
    assert stop
    assert not list(tmp_path.rglob("~*"))


def test_a_test_on_the_training_images_is_told(tmp_path, capsys):
    for part, colour in (("train/a", 0), ("train/b", 9), ("other/a", 20), ("other/b", 30)):
        (tmp_path / part).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (16, 16), (colour, number, 0)).save(tmp_path / part / f"{number}.png")
    overrides = [f"output={tmp_path}", f"data.train={tmp_path / 'train'}", "supernet.batch_size=8"]
    told = []
    for test in ("data.test=" + str(tmp_path / "train"), "data.test=" + str(tmp_path / "other"), "data.test_part=0.5"):
        assert main(["check", "quickstart", *overrides, test, "retrain.batch_size=8"]) == 0
        told.append("the SAME as train images" in capsys.readouterr().out)
    assert told == [True, False, False]


def test_an_override_changes_its_own_section_alone():
    changed = recipe.load(QUICKSTART, ["supernet.augment.hflip=0.5"])  # retrain takes its augment by `<<: *training`
    assert (changed.supernet.augment.hflip, changed.retrain.augment.hflip) == (0.5, 0.0)


def test_no_count_overflows_at_the_limits():
    """All the largest widths, patches, blocks and classes: the counts are those of Python's own whole numbers."""
    width, depth, classes = 65_535, limits.MOST_BLOCKS, limits.MOST_CLASSES
    block = Block(heads=1, qkv_dim=width, mlp_dim=width)
    for image, patch in ((8192, 32), (256, 1), (8192, 8192)):
        largest = Architecture(image_size=image, patch_size=patch, embed_dim=width, blocks=(block,) * depth)
        found = counts(Population.of([largest]), classes)
        patches = (image // patch) ** 2
        linear = width * (width * 4 // 3 + 2 * width)

        def body(tokens: int) -> int:
            return depth * (tokens * linear + 2 * tokens**2 * (width // 3))  # noqa: B023

        stem = patches * 3 * patch**2 * width
        assert int(found["flops"][0]) == stem + body(patches) + patches * width * classes
        assert int(found["macs"][0]) == stem + body(patches + 1) + width * classes
    with pytest.raises(ValueError, match="into 66,049 patches, expected 1 to 65,536"):
        Architecture(image_size=257, patch_size=1, embed_dim=8, blocks=(None,))
    with pytest.raises(ValueError, match="into 0 patches"):
        Architecture(image_size=8, patch_size=16, embed_dim=8, blocks=(None,))


def test_a_space_as_large_as_allowed_is_checked_without_its_memory(tmp_path, capsys):
    (tmp_path / "valid.yaml").write_text(VALID)
    large = [
        "space.embed_dim.max=65000",
        "space.qkv_dim.max=60000",
        "space.mlp_dim.max=65000",
        "space.depth=160",
        "stages=[supernet]",
    ]
    assert main(["check", "valid.yaml", *large, "supernet.batch_size=64"]) == 0
    told = capsys.readouterr().out
    assert "supernet memory" in told and "architectures           1.000e+" in told


VALUES = {
    "a number": st.sampled_from(
        ["0", "1", "2", "3", "8", "12", "16", "60", "1000", "8192", "65536", "1e6", "0.5", "-1"]
    ),
    "a list": st.sampled_from(
        ["[1]", "[4,8]", "[0.5,1]", "[1,1e6]", "[0.5,0.5,0.5]", "[evolve]", "[retrain,evaluate]"]
    ),
    "a word": st.sampled_from(
        ["null", "true", "digits", "best", "vitas_c", "supernet", "free", "tail", "~/x", "/proc/x", "rand-m9-tfoo", "x"]
    ),
}
OVERRIDE = st.builds("{}={}".format, st.sampled_from(keys(recipe.Recipe)), st.one_of(*VALUES.values()))


@settings(max_examples=200, deadline=None)
@given(overrides=st.lists(OVERRIDE, min_size=1, max_size=3), ranks=st.sampled_from([1, 8]))
def test_a_check_of_any_recipe_tells_its_facts_or_one_line(tmp_path_factory, overrides, ranks):
    file = tmp_path_factory.getbasetemp() / "valid.yaml"
    file.write_text(VALID)
    try:
        assert check.facts(recipe.load(file, overrides), check.backend(None, ranks, "no"))
    except UserError as error:
        assert len(str(error).splitlines()) == 1


BUDGETS = ["budget.macs=null", "budgets.a.macs=[0.4e6,0.7e6]", "budgets.b.macs=[0.8e6,1.2e6]"]


@pytest.mark.parametrize(
    "overrides", [[], BUDGETS, ["supernet.sandwich=1"], ["space.identity=tail", "supernet.skip=0.5"]]
)
def test_the_choices_that_the_fewest_steps_train_are_those_of_the_steps(overrides):
    chosen = recipe.load(QUICKSTART, ["supernet.epochs=12", *overrides])
    facts = check.facts(chosen, check.backend(None, 1, "no"))
    steps = facts["supernet_steps"]
    assert steps < check.STEPS_LOOKED_AT  # all of them are looked at
    skips = chosen.skip_probabilities(10)
    drawn = [subnets(chosen, 10, skips, step, steps) for step in range(steps)]
    shares = {
        f"patch_size {size}": sum(any(net.patch_size == size for net in nets) for nets in drawn)
        for size in chosen.space.patch_size
    }
    shares |= {
        f"heads {heads} of block {number + 1}": sum(
            any(net.blocks[number] and net.blocks[number].heads == heads for net in nets) for nets in drawn
        )
        for number in range(4)
        for heads in chosen.space.heads
    }
    told = dict(part.rsplit(" in ", 1) for part in facts["seldom_trained"].removesuffix(" of the steps").split(", "))
    assert [name.split()[0] for name in told] == ["patch_size", "embed_dim", "heads", "qkv_dim", "mlp_dim"]
    for name in told.keys() & shares.keys():
        assert told[name] == f"{100 * shares[name] / steps:.1f} %"
        assert shares[name] == min(share for other, share in shares.items() if other.split()[0] == name.split()[0])
    assert len(told.keys() & shares.keys()) == 2


def test_bfloat16_without_the_instructions_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for known in (True, False):
        for name in ("avx512_bf16", "amx_tile"):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda known=known: known, raising=False)
        told = check.facts(recipe.load(QUICKSTART), memory.Backend(precision="bf16")).get("precision", "")
        assert ("eight times slower" in told) == (not known and platform.machine() == "x86_64")
