"""Models in files: what is written, and what reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from safetensors.torch import load_file, save
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from vitas.config import UserError, one_line
from vitas.files import expanded, write_atomically
from vitas.models import release
from vitas.models.registry import find, name_of
from vitas.models.vit import VisionTransformer, from_state
from vitas.spaces.architecture import Architecture


def save_weights(file: Path, state: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Writes a `.safetensors` file in float32, whole or not at all; `about` goes into its metadata.

    DeepSpeed trains with weights in half precision; those who read the file expect float32.
    """
    whole = {name: value.detach().float().cpu().contiguous() for name, value in state.items()}
    write_atomically(file, save(whole, about))


def save_description(folder: Path, model: VisionTransformer) -> None:
    """Writes all but the weights: `architecture.yaml`, and timm's `config.json` with classes and preprocessing."""
    shape = model.architecture
    name = name_of(shape)
    arguments = None
    if name is None or not timm.is_model(name):
        name = "vitas"
        arguments = {"architecture": shape.model_dump(mode="json")}
    about: dict[str, Any] = {"architecture": name}
    if names := model.pretrained_cfg.get("label_names"):
        about["label_names"] = names  # where transformers looks for them
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "config.json"
        save_config_for_hf(model, file, about, arguments)  # pyright: ignore[reportArgumentType]
        config = json.loads(file.read_text())
    config.get("model_args", {}).pop("num_classes", None)  # said above as well, and transformers gives it itself
    write_atomically(folder / "config.json", json.dumps(config, indent=2))
    write_atomically(folder / "architecture.yaml", shape.to_yaml())


def save_model(folder: Path, model: VisionTransformer) -> None:
    """Writes `architecture.yaml`, `config.json` and `model.safetensors`, which `vitas.load_model` reads."""
    save_description(folder, model)
    save_weights(folder / "model.safetensors", model.state_dict())


def load_weights(model: nn.Module, file: Path) -> None:
    """Fills a model with the weights of a `.safetensors` file.

    Raises:
        UserError: The file is missing, damaged, or holds the weights of another model.
    """
    try:
        model.load_state_dict(load_file(file))
    except Exception as error:  # safetensors and torch raise several kinds; to the user all mean the same
        raise UserError(f"{file}: does not hold the weights of the {type(model).__name__}: {one_line(error)}") from None


def weights_file(weights: Path | str) -> Path:
    """The file that holds the weights of a folder, or itself."""
    path = expanded(weights)
    return path / "model.safetensors" if path.is_dir() else path


def load_model(weights: Path | str, architecture: str | None = None) -> VisionTransformer:
    """The model of an imported, extracted or retrained folder, or of any file of weights; in evaluation mode.

    Its `pretrained_cfg` holds the classes (`label_names`) and the preprocessing of the `config.json` beside the
    weights: `timm.data.resolve_model_data_config` finds them there. Without that file both are unknown.

    Args:
        weights: A folder that holds `model.safetensors`, that file itself, or a `.pth.tar` of the original release.
        architecture: Name or file of its architecture. Left out, it is the `architecture.yaml` beside
            `model.safetensors`, and a `.pth.tar` is one of the published networks.

    Raises:
        UserError: A file is missing or damaged, or the weights are not those of the architecture.
    """
    weights = weights_file(weights)
    shape = None if architecture is None else find(architecture)
    if weights.suffix != ".safetensors":
        if shape is None:
            return from_state(*release.convert(weights), release.PREPROCESSING)
        state = release.translate(release.read(weights), shape, source=weights)
        return from_state(shape, state, release.PREPROCESSING)
    if not weights.is_file():
        raise UserError(f"{weights}: No such file or directory")
    beside = weights.parent / "architecture.yaml"
    shape = shape or Architecture.from_yaml(beside)
    try:
        model = from_state(shape, load_file(weights))
    except Exception as error:  # safetensors and torch raise several kinds; to the user all mean the same
        what = architecture or beside
        raise UserError(f"{weights}: does not hold the weights of {what}: {one_line(error)}") from None
    if architecture is not None and beside.is_file() and Architecture.from_yaml(beside).kept != shape.kept:
        raise UserError(f"{weights}: {beside} has other numbers of heads than {architecture}")  # weights do not tell
    model.pretrained_cfg |= _read_config(weights.parent / "config.json", model.num_classes)
    return model


def _read_config(file: Path, num_classes: int) -> dict[str, Any]:
    """The `pretrained_cfg` in a `config.json` of timm; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
        above = {key: config[key] for key in ("architecture", "num_classes", "label_names") if key in config}
        known: dict[str, Any] = config["pretrained_cfg"] | above
        counts = {known["num_classes"], len(known.get("label_names", range(num_classes)))}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: not a model config of timm, or damaged: {one_line(repr(error))}") from None
    if counts != {num_classes}:
        raise UserError(f"{file}: says {' and '.join(map(str, counts))} classes, and the weights have {num_classes}")
    return known
