"""The card of a model: the README.md of its folder, which the Hub shows as the model's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from vitas.config import read_yaml
from vitas.files import write_atomically
from vitas.report import blocks, tracking
from vitas.spaces import cost
from vitas.spaces.architecture import Architecture

README, PICTURE, EVALUATION = "README.md", "architecture.png", "evaluation.json"

MOST_NAMES = 30
"""Classes that a card names."""

HEADER = {
    "library_name": "timm",
    "pipeline_tag": "image-classification",
    "tags": ["image-classification", "timm", "transformers", "vitas"],
}

USE = """\
```python
import timm
import torch
import vitas  # timm learns of this architecture by it: pip install vitas
from PIL import Image

model = timm.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    scores = model(transform(Image.open("image.png").convert("RGB"))[None])[0]
print(model.pretrained_cfg["label_names"][scores.argmax()])
```
"""

CITATION = """\
```bibtex
@article{su2021vitas,
  title   = {{ViTAS}: Vision Transformer Architecture Search},
  author  = {Su, Xiu and You, Shan and Xie, Jiyang and Zheng, Mingkai and Wang, Fei and Qian, Chen and
             Zhang, Changshui and Wang, Xiaogang and Xu, Chang},
  journal = {arXiv preprint arXiv:2106.13700},
  year    = {2021}
}
```
"""


def write(folder: Path, place: Path | None = None, hub: str | None = None) -> None:
    """Writes `README.md` and its picture from what lies beside a model: call it again when there is more.

    Args:
        folder: The model's.
        place: Where to; left out, beside the model.
        hub: The model's name on the Hub, if it goes there.
    """
    place = place or folder
    write_atomically(place / PICTURE, blocks.picture(Architecture.from_yaml(folder / "architecture.yaml")))
    write_atomically(place / README, text(folder, hub))


def text(folder: Path, hub: str | None = None) -> str:
    """The card of the model in `folder`; `hub` is its name on the Hub, if it goes there."""
    architecture = Architecture.from_yaml(folder / "architecture.yaml")
    config = json.loads((folder / "config.json").read_text())
    settings = read_yaml(file) if (file := folder / "settings.yaml").is_file() else {}
    parts = [
        f"---\n{yaml.safe_dump(HEADER, sort_keys=False)}---",
        f"# {hub.rpartition('/')[2] if hub else folder.resolve().name}",
        f"A Vision Transformer for images of {architecture.image_size} x {architecture.image_size} pixels: "
        f"{architecture.in_words}. Made with vitas.",
        f"![The blocks of the architecture]({PICTURE})",
        "## What it costs",
        _costs(cost.count(architecture, config["num_classes"])),
        "## What it knows",
        _classes(config, settings),
        "## How good it is",
        _accuracy(folder / EVALUATION),
        "## How to use it",
        USE.format(source=f"hf-hub:{hub}" if hub else f"local-dir:{folder}"),
        *(["## How it was made", _recipe(settings)] if settings else []),
        "## Citation",
        CITATION,
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _costs(costs: dict[str, int]) -> str:
    rows = {"parameters": "params", "multiply-adds": "macs", "FLOPs, as the paper counts them": "flops"}
    return "| | |\n|---|---:|\n" + "\n".join(f"| {name} | {costs[key]:,} |" for name, key in rows.items())


def _classes(config: dict[str, Any], settings: dict[str, Any]) -> str:
    known, names = config["pretrained_cfg"], config.get("label_names", [])
    shown = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    lines = [f"{config['num_classes']:,} classes{f': {shown}' if names else ''}."]
    if source := settings.get("data", {}).get("train"):
        lines.append(f"Training images: `{source}`.")
    how = {"mean": "mean", "std": "standard deviation", "crop_pct": "centre crop", "interpolation": "interpolation"}
    facts = ", ".join(f"{name} {known[key]}" for key, name in how.items() if key in known)
    return "\n\n".join([*lines, f"Preprocessing: {facts}." if facts else "Preprocessing: not known."])


def _accuracy(file: Path) -> str:
    if not file.is_file():
        return "Not evaluated."
    facts = json.loads(file.read_text())
    return (
        f"Top-1 {facts[tracking.TOP1]:.2f} %, top-5 {facts[tracking.TOP5]:.2f} % "
        f"on {facts['images']:,} test images (`{facts['data']}`)."
    )


def _recipe(settings: dict[str, Any]) -> str:
    shown = {name: value for name, value in settings.items() if name not in ("classes", "shape")}
    return f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"
