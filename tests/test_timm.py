"""A model of ours does what timm's tests of models ask of each of its own; timm's own ViT stands beside it."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models._features_fx import FeatureGraphNet
from timm.models.vision_transformer import VisionTransformer

from vitas import Architecture, UserError, load_model
from vitas.models import saved, vit
from vitas.report import card
from vitas.spaces.architecture import Block

SHAPE = Architecture(
    image_size=32,
    patch_size=8,
    embed_dim=24,
    blocks=(Block(heads=2, qkv_dim=24, mlp_dim=32), None, Block(heads=3, qkv_dim=36, mlp_dim=16)),
)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def ours() -> vit.VisionTransformer:
    torch.manual_seed(0)
    model = vit.VisionTransformer(SHAPE, 5)
    torch.nn.init.normal_(model.pos_embed)
    model.pretrained_cfg |= {"label_names": list("abcde"), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    return model.eval()


def theirs() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_heads=3)
    return model.eval()


@pytest.fixture(params=[ours, theirs], ids=["ours", "timm's"])
def model(request):
    return request.param()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    saved.save_model(made := tmp_path_factory.mktemp("folder"), ours())
    return made


@torch.no_grad()
def test_features_and_classifiers(model):
    whole = model(IMAGES)
    features = model.forward_features(IMAGES)
    assert features.shape == (2, 17, model.num_features) and model.head_hidden_size == 24
    assert torch.equal(model.forward_head(features), whole)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert {"patch_embed.proj.weight", "head.weight"} <= model.state_dict().keys()
    assert model.get_classifier() is model.head
    last, maps = model.forward_intermediates(IMAGES)
    assert torch.equal(last, features) and [one.shape for one in maps] == [(2, 24, 4, 4)] * 2
    alone = model.forward_intermediates(IMAGES, indices=[1], stop_early=True, norm=True, intermediates_only=True)
    assert torch.allclose(alone[0], features[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    model.reset_classifier(0)
    assert torch.equal(model(IMAGES), features[:, 0])
    model.reset_classifier(0, "")
    assert torch.equal(model(IMAGES), features)
    assert model.prune_intermediate_layers([0]) == [0] and len(model.blocks) == 1


def test_every_parameter_has_a_gradient(model):
    model.train()(IMAGES).mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_masks_reach_the_attention(model):
    whole = model(IMAGES)
    mask = torch.ones(17, 17, dtype=torch.bool)
    assert (model(IMAGES, attn_mask=mask) - whole).abs().max() < 1e-5
    assert (model(IMAGES, attn_mask=mask.tril()) - whole).abs().max() > 1e-5


def test_fx_finds_the_same_features_and_their_gradients(model):
    maps = FeatureGraphNet(model, out_indices=(0, 1))
    found = maps(IMAGES)
    tokens = model.forward_intermediates(IMAGES, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    for one, (patches, first) in zip(found, tokens, strict=True):
        assert torch.equal(one, torch.cat([first, patches], 1))
    sum(one.mean() for one in found).backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated; timm tests it as long as it is there
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type system")
def test_it_is_traced_and_scripted(model):
    others = IMAGES.flip(0)
    for converted in (torch.jit.trace(model, IMAGES), torch.jit.script(model)):
        assert (converted(others) - model(others)).abs().max() < 1e-5


def test_a_folder_is_opened_by_timm_and_transformers_in_a_fresh_process(folder):
    program = f"""
import json, sys, timm, torch, vitas
from transformers import AutoImageProcessor, AutoModelForImageClassification
images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
name = "local-dir:{folder}"
model = timm.create_model(name, pretrained=True).eval()
wrapped = AutoModelForImageClassification.from_pretrained("{folder}").eval()
known = timm.data.resolve_model_data_config(model)
prepared = AutoImageProcessor.from_pretrained("{folder}").data_config
print(json.dumps(dict(
    logits=model(images).tolist(), wrapped=wrapped(images).logits.tolist(), names=model.pretrained_cfg["label_names"],
    ids=wrapped.config.id2label, mean=[known["mean"], prepared["mean"]],
    maps=[list(one.shape) for one in timm.create_model(name, features_only=True)(images)],
    fx=[list(one.shape) for one in timm.create_model(name, features_only=True, feature_cls="fx")(images)],
    larger=list(timm.create_model(name, pretrained=True, img_size=48, num_classes=7)(torch.zeros(1, 3, 48, 48)).shape),
)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    expected = ours()(IMAGES)
    for name in ("logits", "wrapped"):
        assert (torch.tensor(facts[name]) - expected).abs().max() < 1e-5
    assert facts["names"] == list("abcde") == list(facts["ids"].values())
    assert facts["mean"] == [[0.1, 0.2, 0.3]] * 2
    assert facts["maps"] == [[2, 24, 4, 4]] * 2 and facts["fx"] == [[2, 17, 24]] * 2 and facts["larger"] == [1, 7]


def test_timm_makes_any_architecture_by_name_file_or_fields(folder):
    for architecture in (SHAPE, SHAPE.model_dump(), str(folder), f"{folder}/architecture.yaml"):
        made = timm.create_model("vitas", architecture=architecture, num_classes=3, device="meta")
        assert (made.architecture, made.num_classes) == (SHAPE, 3)
        assert made.pretrained_cfg["input_size"] == (3, 32, 32)
    with pytest.raises(UserError, match="vitas: which architecture"):
        timm.create_model("vitas")
    with pytest.raises(UserError, match="architecture: unknown key pach_size"):
        timm.create_model("vitas", architecture=SHAPE.model_dump() | {"pach_size": 1})


def test_the_card_says_what_is_known_of_the_model(folder):
    card.write(folder)
    bare = (folder / "README.md").read_text()
    assert "patch 8, width 24, depth 2, heads 2 to 3" in bare and "5 classes: a, b, c, d, e." in bare
    assert "Not evaluated." in bare and "How it was made" not in bare and f"local-dir:{folder}" in bare
    assert f"| parameters | {sum(one.numel() for one in load_model(folder).parameters()):,} |" in bare
    (folder / "settings.yaml").write_text("data: {train: photos}\nretrain: {epochs: 7}\nclasses: {'0': secret}")
    (folder / "evaluation.json").write_text(json.dumps({"top1": 91.256, "top5": 99, "images": 1234, "data": "test"}))
    card.write(folder)
    full = (folder / "README.md").read_text()
    assert "Top-1 91.26 %, top-5 99.00 % on 1,234 test images (`test`)." in full
    assert "Training images: `photos`." in full and "epochs: 7" in full and "secret" not in full
    assert (folder / "architecture.png").read_bytes().startswith(b"\x89PNG")
    assert "hf-hub:me/digits" in card.text(folder, "me/digits") and "# digits\n" in card.text(folder, "me/digits")
