"""A trained model knows its classes and its preprocessing, and evaluation holds it to them."""

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import QUICKSTART
from PIL import Image
from test_data import folder_of_jpegs, picture
from torch import nn

from vitas import load_model, recipe
from vitas.config import UserError
from vitas.data import augment, decoded, sources
from vitas.models import saved
from vitas.models.vit import VisionTransformer
from vitas.runs import stages
from vitas.sections import Data
from vitas.spaces.architecture import Architecture, Block

SHAPE = Architecture(image_size=16, patch_size=4, embed_dim=8, blocks=(Block(heads=2, qkv_dim=24, mlp_dim=16), None))
DATA = Data(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], crop_pct=0.7)


def trained(folder, classes, data=DATA, answer=None) -> VisionTransformer:
    """A model in `folder`, as a training leaves it; with `answer`, one that always answers with this class."""
    model = VisionTransformer(SHAPE, len(classes))
    nn.init.normal_(model.pos_embed)
    if answer is not None:
        nn.init.zeros_(model.head.weight)
        model.head.bias.data[list(classes).index(answer)] = 1
    model.pretrained_cfg |= augment.preprocessing(16, data) | {"label_names": list(classes)}
    saved.save_model(folder, model)
    return model


def fruit(folder, **counts: int) -> str:
    """A folder of so many images of each class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(0).save(folder / name / f"{number}.png")
    return str(folder)


def evaluated(folder, test: str, *overrides: str) -> dict[str, float]:
    """The figures of `folder/model` on the images in the folder `test`, in a run of that name."""
    of_data = [f"data.{key}={json.dumps(getattr(DATA, key))}" for key in ("mean", "std", "crop_pct")]
    name = Path(test).name
    settings = [
        f"output={folder}",
        f"name=run_{name}",
        f"data.test={test}",
        f"evaluate.weights={folder}/model",
        "data.workers=0",
    ]
    settings += ["stages=[evaluate]", "evaluate.throughput_batch=1", *of_data, *overrides]
    stages.run(recipe.load(QUICKSTART, settings))
    (row,) = json.loads((folder / f"run_{name}" / "evaluation.json").read_text()).values()
    return row


@torch.no_grad()
def test_timm_prepares_images_for_a_loaded_model_as_evaluation_does(tmp_path):
    test = str(folder_of_jpegs(tmp_path / "images") / "test")
    trained(tmp_path / "model", ("apple", "banana", "cherry"))
    model = load_model(tmp_path / "model")
    _, split = sources.open_splits(DATA.model_copy(update={"test": test, "workers": 0}), train=False)
    cached = decoded.decoded(split, tmp_path / "cache", 16, DATA, write=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (DATA.mean, DATA.std))
    ours = model((torch.from_numpy(cached.images.copy()).float() - mean) / std)

    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    files = [split.dataset[row]["image"]["path"] for row in range(len(split.indices))]
    theirs = model(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
    assert config["input_size"] == [3, 16, 16] and config["crop_pct"] == 0.7
    assert (ours - theirs).abs().max() < 1e-5 < ours.std()
    assert model.pretrained_cfg["label_names"] == ["apple", "banana", "cherry"]
    assert model.pretrained_cfg["num_classes"] == 3


def test_the_description_is_one_of_timm(tmp_path):
    from timm.models._hub import load_model_config_from_path

    model = trained(tmp_path / "own", "ab")
    known, name, arguments = load_model_config_from_path(tmp_path / "own")
    assert name == "vitas" and Architecture.model_validate(arguments["architecture"]) == SHAPE
    assert (known["num_classes"], known["label_names"], known["mean"]) == (2, ["a", "b"], DATA.mean)
    model.reset_classifier(3)  # names of other classes are names no more
    model.set_input_size((24, 24))
    saved.save_model(tmp_path / "changed", model)
    changed = load_model(tmp_path / "changed")
    assert (changed.num_classes, changed.architecture.image_size) == (3, 24)
    assert "label_names" not in changed.pretrained_cfg and changed.pretrained_cfg["input_size"] == [3, 24, 24]

    published = timm.create_model("vitas_b", num_classes=7)
    saved.save_model(tmp_path / "named", published)
    again = timm.create_model(f"local-dir:{tmp_path}/named", pretrained=True)
    assert torch.equal(again.head.weight, published.head.weight)


def test_a_damaged_description_and_one_of_another_model_are_refused(tmp_path):
    trained(tmp_path, "ab")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["label_names"] = ["a", "b", "c"]
    for content, words in {
        file.read_text()[:99]: "not a model config of timm, or damaged",
        "[]": "not a model config of timm, or damaged",
        json.dumps(config): "says 2 and 3 classes, and the weights have 2",
    }.items():
        file.write_text(content)
        with pytest.raises(UserError, match=f"config.json: {words}"):
            load_model(tmp_path)


def test_classes_are_matched_by_name(tmp_path):
    trained(tmp_path / "model", ("kiwi", "cherry", "apple"), answer="cherry")
    assert evaluated(tmp_path, fruit(tmp_path / "all", apple=4, cherry=5, kiwi=1))["top1"] == 50
    assert evaluated(tmp_path, fruit(tmp_path / "some", apple=2, cherry=6))["top1"] == 75


def test_other_classes_are_refused(tmp_path):
    trained(tmp_path / "model", ("apple", "cherry", "kiwi"))
    words = (
        rf"^data.test: {tmp_path}/images: class aple is none of the 3 classes of {tmp_path}/model \(did you mean apple"
    )
    with pytest.raises(UserError, match=words):
        evaluated(tmp_path, fruit(tmp_path / "images", aple=2, cherry=2, kiwi=2))


def test_another_preprocessing_is_refused(tmp_path):
    trained(tmp_path / "model", ("apple", "cherry"))
    test = fruit(tmp_path / "images", apple=2, cherry=2)
    with pytest.raises(UserError, match=rf"^data.crop_pct: is 0.9, but {tmp_path}/model was made for 0.7$"):
        evaluated(tmp_path, test, "data.crop_pct=0.9")
    with pytest.raises(UserError, match=r"^data.std: is \[0.4, 0.5, 0.7\], but .* was made for \[0.4, 0.5, 0.6\]$"):
        evaluated(tmp_path, test, "data.std=[0.4,0.5,0.7]")


def test_a_model_without_a_description_is_evaluated_and_that_is_said(tmp_path, capsys):
    trained(tmp_path / "model", ("kiwi", "lime"), answer="lime")
    (tmp_path / "model" / "config.json").unlink()  # as earlier versions left it
    assert evaluated(tmp_path, fruit(tmp_path / "two", apple=1, cherry=3), "data.crop_pct=0.9")["top1"] == 75
    assert f"{tmp_path}/model: does not name its classes" in capsys.readouterr().out
    with pytest.raises(UserError, match="model: has 2 classes, the data 3"):
        evaluated(tmp_path, fruit(tmp_path / "three", apple=2, cherry=2, kiwi=2))
