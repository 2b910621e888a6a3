"""What a model says of images."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from vitas.config import UserError, one_line
from vitas.data import listing
from vitas.data.images import UNREADABLE, decode
from vitas.files import expanded
from vitas.models import saved

Guesses = list[tuple[str, float]]
"""Class names with their probabilities, the likeliest first."""


class Classifier(NamedTuple):
    """A model with all that it takes to classify images."""

    model: torch.nn.Module
    names: Sequence[str]
    transform: Callable[[Image.Image], Tensor]
    device: torch.device

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """The model of a folder, on the GPU if there is one.

        Raises:
            UserError: There is none, it does not say how images are prepared, or it has nothing to choose from.
        """
        model = saved.load_model(folder)
        if model.num_classes < 2:
            raise UserError(
                f"{folder}: the model has {model.num_classes} class(es), expected two or more to choose from"
            )
        if "mean" not in model.pretrained_cfg:
            raise UserError(f"{folder}: does not say how images are prepared: expected config.json beside the weights")
        transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        names = model.pretrained_cfg.get("label_names") or [str(number) for number in range(model.num_classes)]
        return cls(model.to(device), names, transform, device)

    def prepared(self, image: Any) -> Tensor:
        """(3, H, W) of an image as `vitas.data.images.decode` takes it; raises one of its `UNREADABLE`."""
        return self.transform(decode(image))

    @torch.inference_mode()
    def guess(self, images: Sequence[Tensor], top: int) -> list[Guesses]:
        """The `top` likeliest classes of each image."""
        logits = self.model(torch.stack(list(images)).to(self.device)).float()
        chances, numbers = logits.softmax(1).topk(min(top, len(self.names)))
        return [
            [(str(self.names[number]), chance) for chance, number in zip(*row, strict=True)]
            for row in zip(chances.tolist(), numbers.tolist(), strict=True)
        ]


def find(words: Iterable[str]) -> list[str]:
    """The image files that files, folders (with all below them) and patterns name, each once.

    Raises:
        UserError: One of them names nothing.
    """
    found: list[str] = []
    for word in words:
        path = str(expanded(word))
        if Path(path).is_dir():
            files = listing.images_below([Path(path)])
            if not files:
                raise UserError(f"{word}: no images in this folder")
        elif Path(path).is_file():
            files = [path]
        else:
            files = [file for file in sorted(glob.glob(path, recursive=True)) if listing.is_image(file)]
            if not files:
                raise UserError(f"{word}: {'no images match' if glob.has_magic(path) else 'No such file or directory'}")
        found += files
    return list(dict.fromkeys(found))


def predict(
    classifier: Classifier, files: Sequence[str], *, top: int = 5, batch_size: int = 64, threads: int = 8
) -> Iterator[tuple[str, Guesses | str]]:
    """Each file with the likeliest classes, or in one line why it cannot be read; in their order."""

    def read(file: str) -> Tensor | str:
        try:
            return classifier.prepared({"bytes": None, "path": file})
        except UNREADABLE as error:
            return one_line(error).replace(f" {file!r}", "")

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            read_ones = list(pool.map(read, batch))
            images = [image for image in read_ones if isinstance(image, Tensor)]
            guesses = iter(classifier.guess(images, top) if images else [])
            for file, image in zip(batch, read_ones, strict=True):
                yield file, image if isinstance(image, str) else next(guesses)
