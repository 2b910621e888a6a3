from copy import deepcopy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy

from vitas.config import UserError
from vitas.models import registry, saved


def trained_like(model: torch.nn.Module) -> torch.nn.Module:
    """Weights under which every part matters: new ones have positions of zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = parameter + 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    model = trained_like(timm.create_model("vitas_b"))
    saved.save_model(folder, model)
    return folder, model


@torch.no_grad()
def distance(one, other, image_size=224) -> float:
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    return (one(images) - other(images)).abs().max().item()


def test_timm_knows_the_networks_and_their_preprocessing():
    assert timm.list_models("vitas*") == ["vitas", *(f"vitas_{letter}" for letter in "abcef")]
    for name in timm.list_models("vitas_*"):
        model = timm.create_model(name, device="meta")
        assert model.architecture == registry.named(name)
        assert all(parameter.is_meta for parameter in model.parameters())
        data = timm.data.resolve_model_data_config(model)
        assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 224, 224), 0.875, "bicubic")


def test_a_training_of_the_class_token_alone_is_that_of_all_tokens():
    images, found = torch.randn(4, 3, 192, 192, generator=torch.Generator().manual_seed(0)), []
    for only in (False, True):
        torch.manual_seed(0)  # for the weights
        model = trained_like(timm.create_model("vitas_b", num_classes=10, img_size=192, drop_path_rate=0.3)).train()
        model.set_class_token_only(only)
        torch.manual_seed(0)  # for drop path
        cross_entropy(logits := model(images), torch.arange(4)).backward()
        found.append([logits, *(parameter.grad for parameter in model.parameters())])
        assert model.forward_features(images).shape[1] == (1 if only else 145)
        assert model.eval().forward_features(images).shape[1] == 145
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * one.abs().max().item())


def test_one_step_of_training_at_another_size():
    model = timm.create_model("vitas_b", num_classes=10, img_size=192, drop_path_rate=0.1)
    model.set_grad_checkpointing()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(model.pos_embed) not in decayed and id(model.blocks[0].mlp.fc1.weight) in decayed
    images, labels = torch.randn(4, 3, 192, 192), torch.arange(4)
    losses = []
    for _ in range(3):
        losses.append(cross_entropy(model(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_habits_of_timm(imported):
    model, images = deepcopy(imported[1]), torch.randn(1, 3, 224, 224)
    features = model.forward_features(images)
    assert features.shape == (1, 197, 192) and model.num_features == 192
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (1, 192)
    assert {"pos_embed", "cls_token"} <= model.no_weight_decay()
    model.reset_classifier(7)
    assert model(images).shape == (1, 7)
    maps = timm.create_model("vitas_b", features_only=True, out_indices=(0, 5))
    assert [output.shape for output in maps(images)] == [(1, 192, 14, 14)] * 2
    assert maps.feature_info.channels() == [192, 192] and maps.feature_info.reduction() == [16, 16]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(imported, backend):
    model = imported[1]
    assert distance(torch.compile(model, fullgraph=True, backend=backend), model) < 1e-4


def test_imported_weights_load_at_any_size(imported):
    folder, model = imported
    file = str(folder / "model.safetensors")
    assert distance(timm.create_model("vitas_b", checkpoint_path=file).eval(), model) == 0
    resized = deepcopy(model)
    resized.set_input_size((192, 192))
    small = timm.create_model("vitas_b", checkpoint_path=file, img_size=192).eval()
    assert distance(small, resized, 192) < 1e-5
    tuned = timm.create_model("vitas_b", pretrained=True, pretrained_cfg_overlay={"file": file}, num_classes=10)
    assert tuned.head.out_features == 10 and torch.equal(
        tuned.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight
    )


def test_weights_are_loaded_from_all_that_holds_them(imported, tmp_path):
    folder, model = imported
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "x.pth.tar")
    for weights, architecture in ((folder, None), (folder, "vitas_b"), (folder / "model.safetensors", "vitas_b")):
        assert distance(saved.load_model(weights, architecture), model) == 0
    for weights, words in {
        folder: "model.safetensors: does not hold the weights of vitas_a",
        tmp_path / "x.pth.tar": "x.pth.tar: does not fit the architecture: missing",
        tmp_path / "none.safetensors": "No such file",
        tmp_path: "No such file",
    }.items():
        with pytest.raises(UserError, match=words):
            saved.load_model(weights, "vitas_a")
    other = model.architecture.to_yaml().replace("heads: 6", "heads: 3")  # of all the same widths
    (tmp_path / "other.yaml").write_text(other)
    with pytest.raises(UserError, match=r"has other numbers of heads than .*other\.yaml"):
        saved.load_model(folder, str(tmp_path / "other.yaml"))


def test_there_is_nothing_to_download():
    with pytest.raises(UserError, match=r"vitas import FILE\.pth\.tar -o DIR"):
        timm.create_model("vitas_c", pretrained=True)


def test_an_option_that_would_do_nothing_is_refused():
    with pytest.raises(UserError, match="vitas_c: num_heads: not an option"):
        timm.create_model("vitas_c", num_heads=6)


def test_an_unknown_name_finds_the_nearest(tmp_path):
    for wrong, right in (("vitas-c", "vitas_c"), ("ViTAS_E", "vitas_e"), ("deit_tiny", "deit_ti")):
        with pytest.raises(UserError, match=rf"unknown architecture {wrong} \(did you mean {right}\?\)"):
            registry.find(wrong)
    (tmp_path / "architecture.yaml").write_text(registry.named("deit_s").to_yaml())
    assert (
        registry.find(str(tmp_path)) == registry.find(str(tmp_path / "architecture.yaml")) == registry.named("deit_s")
    )
    with pytest.raises(UserError, match=r"gone\.yaml: No such file"):
        registry.find(str(tmp_path / "gone.yaml"))
