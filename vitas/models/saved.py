"""Models in files: what is written, and what reads it back."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor, nn

from vitas.config import UserError, one_line
from vitas.files import expanded, write_atomically
from vitas.models import release
from vitas.models.registry import find
from vitas.models.vit import VisionTransformer, from_state
from vitas.spaces.architecture import Architecture


def save_weights(file: Path, state: dict[str, Tensor]) -> None:
    """Writes a `.safetensors` file in float32, whole or not at all.

    DeepSpeed trains with weights in half precision; those who read the file expect float32.
    """
    write_atomically(file, save({name: value.detach().float().cpu().contiguous() for name, value in state.items()}))


def save_model(folder: Path, model: VisionTransformer) -> None:
    """Writes `architecture.yaml` and `model.safetensors`, which `vitas.load_model` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.yaml").write_text(model.architecture.to_yaml())
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


def load_model(weights: Path | str, architecture: str | None = None) -> VisionTransformer:
    """The model of an imported, extracted or retrained folder, or of any file of weights; in evaluation mode.

    Args:
        weights: A folder that holds `model.safetensors`, that file itself, or a `.pth.tar` of the original release.
        architecture: Name or file of its architecture. Left out, it is the `architecture.yaml` beside
            `model.safetensors`, and a `.pth.tar` is one of the published networks.

    Raises:
        UserError: A file is missing or damaged, or the weights are not those of the architecture.
    """
    weights = expanded(weights)
    weights = weights / "model.safetensors" if weights.is_dir() else weights
    shape = None if architecture is None else find(architecture)
    if weights.suffix != ".safetensors":
        if shape is None:
            return from_state(*release.convert(weights))
        return from_state(shape, release.translate(release.read(weights), shape, source=weights))
    if not weights.is_file():
        raise UserError(f"{weights}: No such file or directory")
    shape = shape or Architecture.from_yaml(weights.parent / "architecture.yaml")
    try:
        return from_state(shape, load_file(weights))
    except Exception as error:  # safetensors and torch raise several kinds; to the user all mean the same
        what = architecture or weights.parent / "architecture.yaml"
        raise UserError(f"{weights}: does not hold the weights of {what}: {one_line(error)}") from None
