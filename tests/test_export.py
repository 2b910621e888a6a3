"""A model in other formats gives the logits that it gives in PyTorch."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from test_models import trained_like
from test_timm import ours

from vitas import UserError, load_model
from vitas.cli import main
from vitas.models import export, registry, saved, vit
from vitas.spaces.space import SearchSpace

WITHOUT_TORCH = """
import importlib.abc, json, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm", "vitas", "onnx", "PIL", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
images = numpy.load(sys.argv[2])
(logits,) = session.run(None, {session.get_inputs()[0].name: images})
print(json.dumps({"logits": logits.tolist(), "about": {name: json.loads(about[name]) for name in about}}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    saved.save_model(made := tmp_path_factory.mktemp("model"), ours())
    return made


def exported(folder, capsys, *arguments: str) -> dict:
    assert main(["export", str(folder), *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_onnx_runs_without_torch_and_knows_its_classes(folder, tmp_path, capsys):
    facts = exported(folder, capsys, "--format", "onnx", "--dynamic-batch")
    assert facts["file"] == str(folder / "model.onnx") and facts["difference"] < 1e-5
    images = np.random.default_rng(0).normal(size=(7, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", WITHOUT_TORCH, facts["file"], str(tmp_path / "images.npy")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    expected = load_model(folder)(torch.from_numpy(images))
    assert (torch.tensor(said["logits"]) - expected).abs().max() < 1e-5
    about = said["about"]
    assert (about["class_names"], about["mean"], about["input_size"]) == (list("abcde"), [0.1, 0.2, 0.3], [3, 32, 32])
    assert about["architecture"] == load_model(folder).architecture.model_dump(mode="json")


def test_smaller_numbers_make_smaller_files_and_other_logits(tmp_path, capsys):
    torch.manual_seed(0)
    model = vit.VisionTransformer(registry.named("deit_ti").model_copy(update={"image_size": 32, "blocks": ()}), 5)
    block = vit.Block(192, registry.named("deit_ti").kept[0])
    model.blocks.append(block)
    model.architecture = model.architecture.model_copy(update={"blocks": registry.named("deit_ti").blocks[:1]})
    saved.save_model(tmp_path, trained_like(model))
    weights = sum(parameter.numel() for parameter in model.parameters())
    half = exported(tmp_path, capsys, "--format", "onnx", "--half")
    assert half["file"].endswith("model_half.onnx") and half["bytes"] < 3 * weights
    quantized = exported(tmp_path, capsys, "--format", "onnx", "--quantize", "dynamic")
    assert quantized["file"].endswith("model_int8.onnx") and quantized["bytes"] < 2.5 * weights
    kinds = {tensor.data_type for tensor in onnx.load(quantized["file"]).graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} & kinds
    for facts in (half, quantized):
        assert 0 < facts["difference"] < 0.05 * facts["logits"]


def test_pt2_and_safetensors_are_read_back(folder, capsys):
    images = torch.randn(7, 3, 32, 32)
    expected = load_model(folder)(images)
    facts = exported(folder, capsys, "--format", "pt2", "--dynamic-batch")
    extra = {"class_names.json": ""}
    program = torch.export.load(facts["file"], extra_files=extra).module()
    assert (program(images) - expected).abs().max() < 1e-5 and json.loads(extra["class_names.json"]) == list("abcde")
    facts = exported(folder, capsys, "--format", "safetensors", "--half")
    with safe_open(facts["file"], "pt") as file:
        assert file.get_tensor("head.weight").dtype == torch.float16
        assert json.loads(file.metadata()["class_names"]) == list("abcde")
    assert 0 < facts["difference"] < 1e-2


def test_what_cannot_be_exported_is_said_in_a_line(folder, tmp_path, capsys, monkeypatch):
    for arguments, words in (
        (["--format", "pt2", "--quantize", "dynamic"], "--quantize: needs --format onnx without --half, got pt2"),
        (["--format", "onnx", "--half", "--quantize", "dynamic"], "without --half, got onnx --half"),
        (
            ["--format", "safetensors", "--dynamic-batch", "-o", f"{tmp_path}/x"],
            "--dynamic-batch: safetensors holds weights alone",
        ),
        (["--format", "safetensors"], "model.safetensors: is the model itself"),
    ):
        assert main(["export", str(folder), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is missing: pip install 'vitas\[export\]'"):
        export.export(load_model(folder), tmp_path / "x.onnx", "onnx")

    class Stubborn(vit.VisionTransformer):
        def forward(self, x):
            return super().forward(x) * (1 if x.sum() > 0 else 2)  # what no graph holds

    with pytest.raises(UserError, match=r"^pt2: cannot be exported: "):
        export.export(Stubborn(ours().architecture, 5), tmp_path / "x.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def random_architecture(seed: int):
    space = {
        "image_size": 224,
        "patch_size": [14, 16, 32],
        "embed_dim": {"max": 192},
        "depth": 8,
        "heads": [3, 6, 12],
        "qkv_dim": {"max": 720},
        "mlp_dim": {"max": 720},
        "identity": "free",
    }
    return SearchSpace.model_validate(space).sample(seed, 0, skip=0.2)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [*registry.release.PUBLISHED, *range(5)])
def test_all_ways_to_run_a_model_agree(name, tmp_path):
    """Compiled, exported and in ONNX, for 1 and 7 images, of 224 and of other pixels."""
    shape = random_architecture(name) if isinstance(name, int) else registry.named(name)
    torch.manual_seed(0)
    model = trained_like(vit.VisionTransformer(shape, 10))
    for size in (shape.image_size, 112):
        model.set_input_size((size, size))
        for format in ("onnx", "pt2"):
            made = export.export(model, tmp_path / f"model.{format}", format, dynamic_batch=True)
            assert made.difference <= 1e-4, (size, made)
        if size == shape.image_size:
            compiled = torch.compile(model, dynamic=True)
            for count in export.SIZES:
                images = torch.randn(count, 3, size, size)
                with torch.inference_mode():
                    assert (compiled(images) - model(images)).abs().max() <= 1e-4
    torch.compiler.reset()
