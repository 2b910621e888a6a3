"""From images anywhere, through Hugging Face `datasets`, to batches.

Every draw comes from (seed, epoch, image), so that batches depend neither on the number of ranks or
workers nor on where a run was resumed. (A stream is read by shards, so its order does depend on both counts.)
"""

from __future__ import annotations

import glob
import io
import json
import os
import random
import re
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from tqdm import tqdm

from vitas.config import UserError, one_line
from vitas.recipe import Augment, Data

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "cls", "class", "target", "fine_label")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or is cut short."""


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


def decode(image: Any) -> Image.Image:
    """The RGB image in a `datasets.Image(decode=False)` value. Raises one of `UNREADABLE` if it is damaged."""
    if image is None:
        raise ValueError("no image")
    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
        return opened.convert("RGB")


def train_transform(image_size: int, augment: Augment, data: Data) -> Callable[[Image.Image], torch.Tensor]:
    """Timm's training transform: a random crop, flip, jitter or policy, normalised, erased; (3, H, W) float."""
    transform: Any = create_transform(
        (3, image_size, image_size),
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,  # pyright: ignore[reportArgumentType]
        auto_augment=augment.auto_augment,
        interpolation="bicubic",
        mean=tuple(data.mean),
        std=tuple(data.std),
        re_prob=augment.erasing,
        re_mode="pixel",
    )
    return transform


class Batch(NamedTuple):
    """One micro-batch: images (B, 3, H, W) normalised float, labels (B,), and what was replaced as unreadable."""

    images: torch.Tensor
    labels: torch.Tensor
    unreadable: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """Which images each rank reads, from where to where."""

    batch_size: int
    """Images of an optimizer step, over all ranks and micro-batches."""
    accumulation: int
    """Micro-batches of a rank in an optimizer step."""
    start: int
    """First optimizer step."""
    stop: int
    """One past the last optimizer step."""
    rank: int = 0
    world: int = 1

    @property
    def micro_batch(self) -> int:
        """Images of one micro-batch on one rank."""
        return self.batch_size // (self.accumulation * self.world)


def loader(split: Split, transform: Callable[..., Any], plan: Plan, *, seed: int, workers: int, shuffle_buffer: int,
           pin_memory: bool) -> DataLoader[Batch]:  # fmt: skip
    """An endless stream of this rank's micro-batches, from step `plan.start` to `plan.stop`."""
    if split.streamed:  # no more workers than this rank has shards
        workers = min(workers, max(1, split.dataset.num_shards // plan.world))
    options: dict[str, Any] = {"num_workers": min(workers, os.cpu_count() or 1), "pin_memory": pin_memory}
    options["worker_init_fn"] = _outlive_a_stop
    if split.streamed:
        stream = _Stream(split, transform, plan, seed, shuffle_buffer)
        return DataLoader(stream, batch_size=plan.micro_batch, collate_fn=_collate, **options)
    rows = _Rows(split, transform, seed)
    batches = _micro_batches(len(rows), plan, seed)
    return DataLoader(rows, batch_sampler=batches, collate_fn=_collate, **options)  # pyright: ignore[reportArgumentType]


def _outlive_a_stop(_: int) -> None:
    """A worker that is told to end, with its rank, gives it a minute to take its last step and save."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


def _micro_batches(size: int, plan: Plan, seed: int) -> Iterator[list[tuple[int, int]]]:
    """(epoch, row) of each image of each of this rank's micro-batches.

    A step's images are the same whatever the ranks. Each micro-batch is laid out so that image i and image -1-i,
    which timm's Mixup mixes, are neighbours in the step's order: so are the pairs, then, whatever the ranks.
    """
    per_epoch = size // plan.batch_size
    order, order_of = np.empty(0), -1
    for step in range(plan.start, plan.stop):
        epoch, position = divmod(step, per_epoch)
        if epoch != order_of:
            order, order_of = np.random.default_rng([seed, epoch]).permutation(size), epoch
        images = order[position * plan.batch_size : (position + 1) * plan.batch_size]
        for turn in range(plan.accumulation):
            first = (turn * plan.world + plan.rank) * plan.micro_batch
            rows = images[first : first + plan.micro_batch]
            yield [(epoch, int(row)) for row in (*rows[0::2], *rows[1::2][::-1])]


class _Rows(Dataset[Any]):
    """An indexed split as a torch dataset over (epoch, row)."""

    def __init__(self, split: Split, transform: Callable[..., Any], seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self) -> int:
        assert self.split.indices is not None
        return len(self.split.indices)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, dict[str, str]]:
        epoch, row = key
        others = ((row + step) % len(self) for step in range(len(self)))
        return _first_readable(map(self.split.example, others), self.transform, [self.seed, epoch, row], self.split)


class _Stream(IterableDataset[Any]):
    """A streamed split: shards in an order drawn for each epoch, dealt to ranks and workers, shuffled in a buffer."""

    def __init__(self, split: Split, transform: Callable[..., Any], plan: Plan, seed: int, buffer: int) -> None:
        self.split, self.transform, self.plan, self.seed, self.buffer = split, transform, plan, seed, buffer

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int, dict[str, str]]]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        # torch's loader takes batches from the workers in turn: after a resume, from the one whose turn it was.
        taken, left = (step * self.plan.accumulation for step in (self.plan.start, self.plan.stop - self.plan.start))
        worker = (number + taken) % workers
        first = -(-(taken - worker) // workers) * self.plan.micro_batch
        last = first + -(-(left - number) // workers) * self.plan.micro_batch
        parts = (self.plan.rank * workers + worker, self.plan.world * workers)
        rng = np.random.default_rng([self.seed, *parts])
        examples = self._raw(*parts)
        held = list(islice(examples, self.buffer))
        for position, example in enumerate(islice(examples, last)):
            chosen = int(rng.integers(len(held)))
            picked, held[chosen] = held[chosen], example
            if position >= first:  # what comes before is drawn, but not decoded
                key = [self.seed, *parts, position]
                yield _first_readable((picked, *held), self.transform, key, self.split)

    def _raw(self, part: int, parts: int) -> Iterator[tuple[str, Any, int]]:
        shards = self.split.dataset.num_shards
        for epoch in range(2**31):
            order = np.random.default_rng([self.seed, epoch]).permutation(shards)
            if shards % parts == 0:  # whole shards: nothing is read in vain
                mine: Iterator[Any] = (
                    example for shard in order[part::parts] for example in self.split.examples(shard)
                )
            else:
                every = (example for shard in order for example in self.split.examples(shard))
                mine = (example for number, example in enumerate(every) if number % parts == part)
            yield from mine


def _first_readable(examples: Any, transform: Callable[..., Any], key: list[int],
                    split: Split) -> tuple[torch.Tensor, int, dict[str, str]]:  # fmt: skip
    """The first image that can be decoded, transformed with draws from `key`, and the reasons of those before it."""
    unreadable: dict[str, str] = {}
    for name, undecoded, label in examples:
        try:
            image = decode(undecoded)
        except UNREADABLE as error:
            unreadable[name] = one_line(error)
            continue
        draw = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)
        torch.default_generator.manual_seed(draw)  # the CPU's alone: torch.manual_seed costs 1 ms without a GPU
        return transform(image), label, unreadable
    raise UserError(f"{split.unreadable.source}: no image can be read; {one_line(unreadable)}")


def _collate(samples: list[tuple[torch.Tensor, int, dict[str, str]]]) -> Batch:
    images, labels, unreadable = zip(*samples, strict=True)
    merged = {name: reason for reasons in unreadable for name, reason in reasons.items()}
    return Batch(torch.stack(images), torch.tensor(labels), merged)


class Cached(NamedTuple):
    """Decoded images for scoring: (N, 3, H, W) uint8, memory-mapped, and labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def decoded(split: Split, folder: Path, image_size: int, data: Data, *, write: bool) -> Cached | None:
    """The images of `split`, resized and centre-cropped, decoded once into `folder`; unreadable ones are left out.

    With `write` they are decoded if they are not there yet; without, they are None until somebody has.
    """
    if not (folder / "labels.npy").is_file():
        if not write:
            return None
        _decode_all(split, folder, image_size, data)
    split.unreadable.reasons.update(json.loads((folder / "unreadable.json").read_text()))
    return Cached(np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy"))


def _decode_all(split: Split, folder: Path, image_size: int, data: Data) -> None:
    transform: Any = create_transform(
        (3, image_size, image_size), interpolation="bicubic", crop_pct=data.crop_pct, use_prefetcher=True
    )
    parts = _Parts(split, transform)
    folder.mkdir(parents=True, exist_ok=True)
    labels: list[int] = []
    reasons: dict[str, str] = {}
    bar = tqdm(desc=f"decode {folder.name}", unit=" images", leave=False, total=parts.images)
    with open(folder / "images.tmp", "wb") as raw:
        for images, numbers, unreadable in DataLoader(
            parts, batch_size=None, num_workers=min(data.workers, len(parts), os.cpu_count() or 1)
        ):
            raw.write(images.numpy().tobytes())
            labels += numbers
            reasons |= unreadable
            bar.update(len(numbers))
    bar.close()
    if not labels:
        raise UserError(f"{split.unreadable.source}: no image can be read; {one_line(reasons)}")
    shape = (len(labels), 3, image_size, image_size)
    np.save(folder / "images.npy", np.memmap(folder / "images.tmp", np.uint8, "r", shape=shape))
    (folder / "images.tmp").unlink()
    (folder / "unreadable.json").write_text(json.dumps(reasons))
    # The labels come last, by a rename: a folder that holds them is whole.
    np.save(folder / "labels.tmp.npy", np.array(labels))
    (folder / "labels.tmp.npy").rename(folder / "labels.npy")


class _Parts(Dataset[Any]):
    """A split in parts for decoding: 256 rows each, or the shards of a stream."""

    def __init__(self, split: Split, transform: Callable[..., Any]) -> None:
        self.split, self.transform = split, transform
        self.images = None if split.indices is None else len(split.indices)

    def __len__(self) -> int:
        return self.split.dataset.num_shards if self.images is None else -(-self.images // 256)

    def __getitem__(self, part: int) -> tuple[np.ndarray, list[int], dict[str, str]]:
        images, labels, unreadable = [], [], {}
        if self.images is None:
            examples = self.split.examples(part)
        else:
            examples = map(self.split.example, range(part * 256, min((part + 1) * 256, self.images)))
        for name, undecoded, label in examples:
            try:
                images.append(self.transform(decode(undecoded)))
            except UNREADABLE as error:
                unreadable[name] = one_line(error)
            else:
                labels.append(label)
        return np.stack(images) if images else np.empty(0, np.uint8), labels, unreadable


def count_images(split: Split, known: int | None, cache: Path) -> int:
    """The number of images, unreadable ones included.

    Of a stream it follows from the `known` number of all training images; if that is not known, the stream is read
    through once, and the number remembered in `cache`.
    """
    if split.indices is not None:
        return len(split.indices)
    if known is not None:
        return known - known // split.stride if split.stride else known
    if not cache.is_file():
        shards = range(split.dataset.num_shards)
        counts = [sum(1 for _ in split.examples(shard)) for shard in tqdm(shards, desc="count images", leave=False)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(str(sum(counts)))
    return int(cache.read_text())
