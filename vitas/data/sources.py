"""From images anywhere, through Hugging Face `datasets`, to labelled splits."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from vitas.config import UserError, one_line
from vitas.recipe import Data

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")

LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")


@dataclass
class Unreadable:
    """The images of one source that could not be decoded, and why; told once."""

    source: str
    reasons: dict[str, str] = field(default_factory=dict)
    told: bool = False

    def tell(self, say: Callable[[str], None]) -> None:
        """Says, the first time, how many images could not be read; does nothing if all could."""
        if self.reasons and not self.told:
            self.told = True
            name, reason = min(self.reasons.items())
            say(f"{self.source}: {len(self.reasons)} image(s) could not be read and were left out; {name}: {reason}")


@dataclass(frozen=True)
class Split:
    """Labelled images that are not decoded yet: a part of a dataset, indexed or streamed."""

    dataset: Any
    """A `datasets.Dataset`, or an `IterableDataset`, with the columns `image` (bytes or path) and `label`."""
    classes: tuple[str, ...]
    labels: dict[Any, int]
    """Class index of each raw label."""
    unreadable: Unreadable
    indices: np.ndarray | None = None
    """Of an indexed dataset: the rows of this part."""
    stride: int = 0
    """Of a stream: the hold-out is every stride-th image of a shard; 0 for no hold-out."""
    held_out: bool = False
    """Of a stream: whether this part is the hold-out, or all the rest."""

    @property
    def streamed(self) -> bool:
        """Whether the images come in shards, without an index."""
        return self.indices is None

    def hold_out(self, part: float, seed: int) -> tuple[Split, Split]:
        """The training images without the hold-out, and the hold-out: `part` of them."""
        if self.indices is None:
            stride = max(2, round(1 / part))
            return replace(self, stride=stride), replace(self, stride=stride, held_out=True)
        order = np.random.default_rng([seed, len(self.indices)]).permutation(self.indices)
        count = min(max(1, round(part * len(order))), len(order) - 1)
        return replace(self, indices=np.sort(order[count:])), replace(self, indices=np.sort(order[:count]))

    def example(self, row: int) -> tuple[str, Any, int]:
        """Name, undecoded image and class index of the row-th image of an indexed split."""
        assert self.indices is not None
        return self._example(str(self.indices[row]), *map(self.dataset[int(self.indices[row])].get, ("image", "label")))

    def examples(self, shard: int) -> Iterator[tuple[str, Any, int]]:
        """Name, undecoded image and class index of the images of one shard of a stream."""
        # `iter`, because plain iteration would deal this one shard out to the loader's workers once more.
        batches = self.dataset.shard(self.dataset.num_shards, shard).iter(batch_size=32)
        pairs = (pair for batch in batches for pair in zip(batch["image"], batch["label"], strict=True))
        for number, (image, label) in enumerate(pairs):
            if not self.stride or (number % self.stride == self.stride - 1) == self.held_out:
                yield self._example(f"shard {shard} image {number}", image, label)

    def _example(self, name: str, image: Any, label: Any) -> tuple[str, Any, int]:
        if label not in self.labels:
            raise UserError(f"{self.unreadable.source}: image {name} has label {label!r}, which is none of the classes")
        return (image or {}).get("path") or name, image, self.labels[label]


def open_splits(data: Data, *, train: bool = True) -> tuple[Split, Split]:
    """The training and the test images of a recipe, with classes in one common order.

    Without `train` the test images stand for both: evaluation alone then does not fetch what it does not read.

    Raises:
        UserError: Nothing is there, or columns or classes cannot be told.
    """
    if data.test is None and data.train != "digits":
        raise UserError("data.test: required, and missing: images for the final figures, in the forms of data.train")
    source = _open(data, data.train, "data.train", streaming=data.streaming) if train else None
    test = _open(data, data.test or "digits:test", "data.test", streaming=False)
    if source is None:
        return test, test
    if test.classes != source.classes:
        unknown = sorted(set(test.classes) - set(source.classes))
        if unknown:
            raise UserError(f"data.test: class {unknown[0]} is none of data.train's {len(source.classes)} classes")
        order = [source.classes.index(name) for name in test.classes]
        test = replace(test, classes=source.classes, labels={raw: order[i] for raw, i in test.labels.items()})
    return source, test


def _open(data: Data, spec: str, key: str, *, streaming: bool) -> Split:
    dataset = _load(spec, key, streaming)
    features = dataset.features
    image = data.image_column or _find(key, features, datasets.Image, IMAGE_NAMES, "image")
    label = data.label_column or _find(key, features, datasets.ClassLabel, LABEL_NAMES, "label")
    for name, option in ((image, "image_column"), (label, "label_column")):
        if name not in features:
            raise UserError(f"data.{option}: {key} has no column {name}; it has {', '.join(features)}")
    dataset = dataset.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    dataset = dataset.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})
    kind = features[label]
    if isinstance(kind, datasets.ClassLabel):
        classes, labels = tuple(kind.names), {index: index for index in range(len(kind.names))}
    elif data.classes:
        classes, labels = tuple(map(str, range(data.classes))), {index: index for index in range(data.classes)}
    elif streaming:
        raise UserError(f"{key}: column {label} holds plain values: say how many classes there are with data.classes")
    else:
        raw = sorted(dataset.unique("label"))
        classes, labels = tuple(map(str, raw)), {value: index for index, value in enumerate(raw)}
    if not streaming and len(dataset) < 2:
        raise UserError(f"{key}: {spec} holds {len(dataset)} images")
    return Split(dataset, classes, labels, Unreadable(key), indices=None if streaming else np.arange(len(dataset)))


def _load(spec: str, key: str, streaming: bool) -> Any:
    if spec in ("digits", "digits:train", "digits:test"):
        dataset = _digits(test=spec.endswith("test"))
        return dataset.to_iterable_dataset(num_shards=4) if streaming else dataset
    path = Path(spec).expanduser()
    kind = "imagefolder"
    if path.is_dir():
        files = [str(path / "**")]
        for suffix, builder in ((".parquet", "parquet"), (".tar", "webdataset")):
            if found := sorted(map(str, path.glob(f"*{suffix}"))):
                files, kind = found, builder
    elif path.suffix in (".parquet", ".tar"):
        files, kind = sorted(glob.glob(str(path))), "parquet" if path.suffix == ".parquet" else "webdataset"
        if not files:
            raise UserError(f"{key}: {spec}: No such file or directory")
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:\w+)?", spec):
        name, _, split = spec.partition(":")
        try:
            return datasets.load_dataset(name, split=split or "train", streaming=streaming)
        except Exception as error:  # the Hub's client raises dozens of kinds: network, access, names
            raise UserError(
                f"{key}: {spec}: no such folder here, and not loaded from the Hub: {one_line(error)}"
            ) from None
    else:
        raise UserError(f"{key}: {spec}: No such file or directory")
    options: dict[str, Any] = {"drop_labels": False} if kind == "imagefolder" else {}
    try:
        return datasets.load_dataset(kind, data_files={"train": files}, split="train", streaming=streaming, **options)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(f"{key}: {spec}: not readable as {kind}: {one_line(error.__cause__ or error)}") from None


@lru_cache(maxsize=2)
def _digits(*, test: bool) -> datasets.Dataset:
    """scikit-learn's 1,797 handwritten digits (8x8, grey); every fifth, drawn by class, is for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images, labels = digits.data, digits.target
    rows = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)[int(test)]
    pixels = (images.reshape(-1, 8, 8) / 16 * 255).round().astype(np.uint8)
    names = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features(image=datasets.Image(), label=names)
    columns = {"image": [Image.fromarray(pixels[row]) for row in rows], "label": [int(labels[row]) for row in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def _find(key: str, features: Any, kind: type, names: Sequence[str], what: str) -> str:
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    candidates = of_kind if len(of_kind) == 1 else [name for name in names if name in (of_kind or features)][:1]
    if not candidates:
        raise UserError(f"{key}: cannot tell the {what} column among {', '.join(features)}: set data.{what}_column")
    return candidates[0]
