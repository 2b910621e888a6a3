"""From images anywhere, through Hugging Face `datasets`, to labelled splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from vitas.config import UserError, one_line
from vitas.data import indexing
from vitas.data.formats import open_any
from vitas.data.listing import Listed
from vitas.data.remote import is_remote
from vitas.data.shards import Index, Rows, Shards
from vitas.data.splits import Split, Unreadable
from vitas.sections import Data

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")

LEAST_UNREADABLE = 10
"""So many unreadable images are always left out, however few images there are."""

LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")


def open_splits(
    data: Data, *, train: bool = True, cache: Path | None = None, main: bool = True, scan: bool = True
) -> tuple[Split, Split]:
    """The training and the test images of a recipe, with classes in one common order.

    Args:
        data: What the recipe says.
        train: Without, the test images stand for both: evaluation alone then does not fetch what it does not read.
        cache: Where the index of a stream is kept.
        main: Whether what is kept there is looked at, and made anew if the shards are others now; else it is trusted.
        scan: Whether shards may be read through for their index; without, that is an error.

    Raises:
        UserError: Nothing is there, or columns or classes cannot be told, or labels are missing or of no class.
    """
    if data.test is None and data.test_part is None and data.train != "digits":
        raise UserError(
            "data.test: required, and missing: images for the final figures, in the forms of data.train; "
            "or data.test_part: how many of these are kept for it, such as 0.2"
        )
    how: dict[str, Any] = {"cache": cache, "main": main, "scan": scan}
    if data.test_part is not None:
        whole = _open(data, data.train, "data.train", streaming=data.streaming, **how)
        source, test = whole.take_of_each_class(data.test_part, seed=0)  # the same for runs of all seeds
        if len(source.indices) < 2:
            raise UserError(f"data.test_part: {data.test_part:g} leaves {len(source.indices)} images for the training")
        return (source if train else test), test
    source = _open(data, data.train, "data.train", streaming=data.streaming, **how) if train else None
    test = _open(data, data.test or "digits:test", "data.test", streaming=data.streaming, **how)
    if source is None:
        return test, test
    if test.classes != source.classes:
        unknown = sorted(set(test.classes) - set(source.classes))
        if unknown:
            raise UserError(f"data.test: class {unknown[0]} is none of data.train's {len(source.classes)} classes")
        order = [source.classes.index(name) for name in test.classes]
        test = replace(test, classes=source.classes, labels={raw: order[i] for raw, i in test.labels.items()})
        if test.numbers is not None:
            test = replace(test, numbers=np.array(order, np.int32)[test.numbers])
    return source, test


def _open(data: Data, spec: str, key: str, *, streaming: bool, **how: Any) -> Split:
    cache, name = how.get("cache"), key.replace(".", "_")
    listed = Listed(cache / f"{name}_listing.feather", how["main"]) if cache and how["scan"] else None
    patience = data.patience if streaming else None
    found = open_any(spec, key, patience=patience, image_column=data.image_column, listed=listed)
    image, label = _columns(found.dataset.features, data, key)
    where, dataset, index = f"{key}: column {label}", found.dataset, None
    if isinstance(dataset, Shards):
        dataset.image, dataset.label = image, label
        index = indexing.known(dataset, key, found.origin.name, **how)
        raws, kind = index.labels, _kind(dataset.features, label)
    else:
        dataset = _chosen(dataset, image, label)
        raws, kind = dataset.data.column("label").to_pylist(), dataset.features["label"]
    column = [None if raw != raw else raw for raw in raws]  # NaN is no label
    kinds = {type(raw) for raw in column if raw is not None}
    if not kinds <= {int, float, bool} and kinds != {str}:
        raise UserError(f"{where}: holds {' and '.join(sorted(kind.__name__ for kind in kinds))}, not class labels")
    counts = Counter(column)
    classes, labels = _classes(data, where, kind, [raw for raw in counts if raw is not None])
    _check_labels(where, column, counts, labels)
    if len(column) < 2:
        raise UserError(f"{key}: {spec} holds {len(column)} images")
    if key == "data.train" and len(counts) < 2:
        name = classes[labels[next(iter(counts))]]
        raise UserError(f"{key}: {spec}: all {len(column)} images are of one class, {name}; expected two or more")
    if len(classes) < 2:
        raise UserError(f"{where}: has one class, {', '.join(classes)}; expected two or more")
    origin = found.origin
    if streaming and index is None and isinstance(dataset, datasets.Dataset):
        origin, dataset = replace(origin, images=dataset), Rows(dataset)
        index = dataset.index(key)
    most = len(found.left_out) + max(LEAST_UNREADABLE, round(data.max_unreadable * len(column)))
    unreadable = Unreadable(key, dict(found.left_out), most, cache and cache / f"{name}_unreadable.json")
    split = Split(dataset, classes, labels, unreadable, origin, np.arange(len(column)))
    if index is not None:
        numbers = np.array([labels[raw] for raw in index.labels], np.int32)
        split = replace(split, index=index._replace(labels=[]), numbers=numbers)
    if how.get("main"):
        unreadable.key = {"images": spec} | split.made_of()
    if how.get("scan"):
        unreadable.recall(files=index is None)
    return split


def open_one(spec: str, key: str, **how: Any) -> Split:
    """The images that `data.train` or `data.test` (the `key`) would name, indexed; with other settings of `Data`.

    Raises:
        UserError: As `open_splits`.
    """
    data = Data(train=spec, test=spec, **how)
    return _open(data, spec, key, streaming=data.streaming)


def write_index(data: Data, file: Path | None) -> tuple[Path, Index]:
    """Makes the index of the shards that `data.train` names: in `file`, or beside them, where every run finds it.

    Raises:
        UserError: It names no shards; or they are not here, and `file` is not said.
    """
    shards = open_any(data.train, "data.train", patience=data.patience).dataset
    if not isinstance(shards, Shards) or not shards.are_files:
        raise UserError(f"{data.train}: expected .tar or .parquet files")
    if file is None and is_remote(shards.files[0]):
        raise UserError(f"{data.train}: is not here: say where its index goes with -o, and copy it beside the shards")
    shards.image, shards.label = _columns(shards.features, data, data.train)
    file = file or Path(shards.files[0]).parent / indexing.FILE
    return file, indexing.write(shards, data.train, file)


def _columns(features: datasets.Features | None, data: Data, key: str) -> tuple[str, str]:
    """The columns of images and of labels; to a label inside a column leads a path, as in `json.label`."""
    if features is None:
        raise UserError(f"{key}: the columns of this stream cannot be told: set data.streaming=false")
    image = data.image_column or _find(key, features, datasets.Image, IMAGE_NAMES, "image")
    label = data.label_column or _find(key, features, datasets.ClassLabel, LABEL_NAMES, "label")
    outer = label if label in features else label.partition(".")[0]
    for name, option in ((image, "image_column"), (outer, "label_column")):
        if name not in features:
            raise UserError(f"data.{option}: {key} has no column {name}; it has {', '.join(features)}")
    if image == label:
        raise UserError(f"{key}: column {label} is both images and labels: set data.image_column and data.label_column")
    kind = _kind(features, label)
    if kind is None:
        raise UserError(f"data.label_column: {key} has no {label}; column {outer} holds {_described(features[outer])}")
    if not _holds_images(features[image]):
        raise UserError(f"data.image_column: column {image} of {key} holds {_described(features[image])}, not images")
    if not _holds_labels(kind):
        raise UserError(f"data.label_column: column {label} of {key} holds {_described(kind)}, not class labels")
    return image, label


def _kind(features: datasets.Features, label: str) -> Any:
    """The feature of a label; none if there is no such field."""
    kind: Any = features
    for name in [label] if label in features else label.split("."):
        if not isinstance(kind, dict) or name not in kind:
            return None
        kind = kind[name]
    return kind


def _chosen(dataset: datasets.Dataset, image: str, label: str) -> datasets.Dataset:
    """The dataset with nothing but the columns `image` and `label`."""
    if label not in dataset.features:
        dataset = dataset.select_columns([image, label.partition(".")[0]]).flatten()
    dataset = dataset.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    # By way of names that none of them has: one may have the other's.
    renamed = dataset.rename_columns({image: "image of it", label: "label of it"})
    return renamed.rename_columns({"image of it": "image", "label of it": "label"})


def _classes(data: Data, where: str, kind: Any, raw: Sequence[Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The names of the classes, and the index of each label, from what the column says, the recipe, or the labels.

    Args:
        data: What the recipe says.
        where: Key and column, for messages.
        kind: The feature of the column.
        raw: The different labels that occur.
    """
    given = data.classes if isinstance(data.classes, list) else None
    texts = getattr(kind, "dtype", "") in ("string", "large_string")
    if isinstance(kind, datasets.ClassLabel):
        as_texts = any(isinstance(value, str) for value in raw)
        named = {name: name for name in kind.names} if as_texts else dict(enumerate(kind.names))
    elif data.classes and not texts:
        named = dict(enumerate(given or map(str, range(data.num_classes or 0))))
    elif given:
        named = {name: name for name in given}
    else:
        named = {value: _name(where, value) for value in sorted(raw)}
    classes = tuple(given or named.values())
    if unknown := sorted(set(named.values()) - set(classes)):
        raise UserError(f"{where}: class {unknown[0]} is none of the {len(classes)} of data.classes")
    number = {name: index for index, name in enumerate(classes)}
    return classes, {value: number[name] for value, name in named.items()}


def _name(where: str, value: Any) -> str:
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(f"{where}: holds {value}: expected whole numbers or texts as class labels")
        return str(int(value))
    return str(value)


def _check_labels(where: str, column: list[Any], counts: Counter[Any], labels: dict[Any, int]) -> None:
    """Every image has a label, and it is one of the classes."""
    for value, count in counts.items():
        if value not in labels:
            what = "no label" if value is None else f"label {one_line(repr(value))}, which is none of the classes"
            first = column.index(value)
            raise UserError(f"{where}: {count} of {len(column)} images have {what}; the first is image {first}")


def _find(key: str, features: Any, kind: type, names: Sequence[str], what: str) -> str:
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    candidates = of_kind if len(of_kind) == 1 else [name for name in names if name in (of_kind or features)][:1]
    if not candidates and what == "label":  # a field of one column: WebDataset's json
        inside = [(outer, feature) for outer, feature in features.items() if isinstance(feature, dict)]
        candidates = [f"{outer}.{name}" for outer, fields in inside for name in names if name in fields][:1]
    if not candidates:
        raise UserError(f"{key}: cannot tell the {what} column among {', '.join(features)}: set data.{what}_column")
    return candidates[0]


def _holds_images(kind: Any) -> bool:
    if isinstance(kind, dict):
        return set(kind) == {"bytes", "path"}
    return isinstance(kind, datasets.Image) or getattr(kind, "dtype", "").removeprefix("large_") in ("string", "binary")


def _holds_labels(kind: Any) -> bool:
    plain = ("int", "uint", "float", "bool", "string", "large_string")
    return isinstance(kind, (datasets.ClassLabel, datasets.Value)) and kind.dtype.startswith(plain)


def _described(kind: Any) -> str:
    if isinstance(kind, datasets.Image):
        return "images"
    if isinstance(kind, dict):
        return f"the fields {', '.join(kind)}"
    return str(getattr(kind, "dtype", "")) if isinstance(kind, datasets.Value) else one_line(repr(kind))
