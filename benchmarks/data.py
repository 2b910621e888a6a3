"""How many training images a second one core reads: here, as it was before, and as torchvision's own classes do.

    python benchmarks/data.py [--images 64] [--rounds 21] [--node 20000] [--json FILE]

JPEGs of 500 x 375 pixels and about 100 kB are made, and the same prepared: shorter side 320, quality 92. Each round
reads them all once by each way, in turn: what a worker of a loader does, in this process and in one thread, from files
to batches of 32 crops of 224 pixels in shared memory. Counted is the processor's time, so that other work on the
machine does not count as ours; ratios are taken within a round.

    before       Pillow decodes, timm's transform on Pillow's images, floats normalised and erased by the worker
    vitas        8-bit crops, by the loader of the trainings; a device normalises them
    dali         the same by DALI's CPU backend, where the extra is installed; it has no policies
    torchvision  ImageFolder and DataLoader, torchvision's transforms on Pillow's images (the policy is timm's)

The pipelines are those of `recipes/search_1G.yaml`: its supernet's, the same without erasing, and its retraining's.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vitas import recipe
from vitas.data import augment, batches, images, sources
from vitas.data.plan import Plan
from vitas.data.splits import Split
from vitas.sections import Augment, Data

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from jpegs import photo, saved

SIZE, BATCH = 224, 32
WAYS = ("before", "vitas", "dali", "torchvision")
DALI = bool(find_spec("nvidia") and find_spec("nvidia.dali"))


class Before(Dataset[Any]):
    """What the rows of an indexed split were until workers gave 8-bit crops."""

    def __init__(self, split: Split, settings: Augment, data: Data) -> None:
        self.split, self.read = split, 0
        self.transform: Any = create_transform(
            (3, SIZE, SIZE),
            is_training=True,
            scale=settings.scale,
            ratio=settings.ratio,
            hflip=settings.hflip,
            color_jitter=settings.color_jitter or None,  # pyright: ignore[reportArgumentType]
            auto_augment=settings.auto_augment,
            interpolation="bicubic",
            mean=data.mean,
            std=data.std,
            re_prob=settings.erasing,
            re_mode="pixel",
        )

    def __len__(self) -> int:
        return len(self.split.indices)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        _, undecoded, label = self.split.example(row)
        image = images.decode(undecoded)
        self.read += 1
        draw = int(np.random.SeedSequence([0, self.read, row]).generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)
        torch.default_generator.manual_seed(draw)
        return self.transform(image), label


def by_torchvision(settings: Augment, data: Data) -> Any:
    """torchvision's transforms, with timm's policy where there is one."""
    middle = int(SIZE * 0.45), tuple(round(255 * value) for value in data.mean)
    options = {"translate_const": middle[0], "img_mean": middle[1], "interpolation": Image.Resampling.BICUBIC}
    policy = [rand_augment_transform(settings.auto_augment, options)] if settings.auto_augment else []
    return transforms.Compose([
        transforms.RandomResizedCrop(SIZE, settings.scale, settings.ratio, transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(settings.hflip),
        *policy,
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
        *([transforms.RandomErasing(settings.erasing, value="random")] if settings.erasing else []),
    ])  # fmt: skip


def ways(folder: Path, settings: Augment, rounds: int) -> dict[str, Callable[[], Iterator[Any]]]:
    """Each way's batches of one round."""
    data = Data(train=str(folder), test=str(folder))
    split, _ = sources.open_splits(data)
    steps = len(split.indices) // BATCH
    plan = Plan(BATCH, 1, 0, steps * (rounds + 2))  # one to warm up, one to read ahead

    def loader(**how: Any) -> Iterator[Any]:
        return iter(
            batches.loader(
                split, augment.TrainTransform(SIZE, settings, data), plan,
                seed=0, workers=0, readers=1, shuffle_buffer=1, pin_memory=False, **how,
            )
        )  # fmt: skip

    ours, dalis = loader(), loader(dali_on=torch.device("cpu"))

    def by_dali() -> Iterator[Any]:
        yield from (next(dalis) for _ in range(steps))
        time.sleep(1)  # its thread reads ahead: in our time, not in that of the next way

    before = DataLoader(Before(split, settings, data), BATCH, shuffle=True)
    theirs = DataLoader(ImageFolder(str(folder), by_torchvision(settings, data)), BATCH, shuffle=True)
    return {
        "before": lambda: iter(before),
        "vitas": lambda: (next(ours) for _ in range(steps)),
        **({"dali": by_dali} if DALI and not settings.auto_augment else {}),
        "torchvision": lambda: iter(theirs),
    }


def seconds(batches_of: Callable[[], Iterator[Any]]) -> float:
    """Processor time of one image."""
    began, count = time.process_time(), 0
    for batch in batches_of():
        assert batch[0].shape == (BATCH, 3, SIZE, SIZE)
        batch[0].share_memory_()
        count += BATCH
    return (time.process_time() - began) / count


def measure(folders: dict[str, Path], settings: Augment, rounds: int) -> dict[str, list[float]]:
    """The seconds of an image by each way, from each folder, in each round."""
    arms = {
        f"{way}, {name}": arm for name, folder in folders.items() for way, arm in ways(folder, settings, rounds).items()
    }
    order, found = list(arms), {name: [] for name in arms}
    for number in range(-1, rounds):  # the first warms up
        for turn in range(len(order)):
            name = order[(number + turn) % len(order)]
            spent = seconds(arms[name])
            if number >= 0:
                found[name].append(spent)
    return found


def write_images(folder: Path, count: int) -> tuple[dict[str, Path], dict[str, float]]:
    """Folders of JPEGs, as they come and prepared, and the mean kB of a file."""
    folders = {name: folder / name for name in ("500 x 375", "prepared 320")}
    for number in range(count):
        content = saved(photo(500, 375, seed=number), quality=92)
        smaller = images.decode({"bytes": content}).resize((427, 320), Image.Resampling.BICUBIC)
        for name, file in zip(folders, (content, saved(smaller, quality=92)), strict=True):
            place = folders[name] / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.jpg").write_bytes(file)
    return folders, {name: sum(file.stat().st_size for file in path.rglob("*.jpg")) / count / 1000
                     for name, path in folders.items()}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=64, help=f"how many, a multiple of {BATCH}")
    arguments.add_argument("--rounds", type=int, default=21)
    arguments.add_argument("--node", type=float, default=20000, help="images/s that a node of 8 GPUs takes")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    if options.images % BATCH or options.images < BATCH:
        arguments.error(f"--images: expected a multiple of {BATCH}, got {options.images}")
    torch.set_num_threads(1)
    shipped = recipe.load("search_1G")
    supernet = shipped.supernet.augment
    pipelines = {
        "crop and flip": supernet.model_copy(update={"erasing": 0.0}),
        "supernet": supernet,
        "retraining": shipped.retrain.augment,
    }
    result: dict[str, Any] = {"images": options.images, "rounds": options.rounds, "node": options.node}
    with tempfile.TemporaryDirectory() as folder:
        folders, sizes = write_images(Path(folder), options.images)
        result["kB"] = sizes
        print(", ".join(f"{name}: {size:.0f} kB a file" for name, size in sizes.items()))
        print(f"\n{'one core':<14}{'images':<14}{'way':<13}{'images/s':>9}{'x before':>10}{'10 to 90 %':>15}"
              f"{'cores for ' + format(options.node, ',.0f'):>18}")  # fmt: skip
        for pipeline, settings in pipelines.items():
            found = measure(folders, settings, options.rounds)
            rows = result[pipeline] = {"augment": settings.model_dump()}
            for name in folders:
                for way in (way for way in WAYS if f"{way}, {name}" in found):
                    times = found[f"{way}, {name}"]
                    ratios = sorted(a / b for a, b in zip(found[f"before, {name}"], times, strict=True))
                    rate, tenth = 1 / statistics.median(times), len(ratios) // 10
                    row = {
                        "images/s": rate,
                        "ratio": statistics.median(ratios),
                        "from": ratios[tenth],
                        "to": ratios[-1 - tenth],
                        "cores": options.node / rate,
                    }
                    rows[f"{way}, {name}"] = row
                    print(f"{pipeline:<14}{name:<14}{way:<13}{rate:>9.0f}{row['ratio']:>10.2f}"
                          f"{row['from']:>8.2f} to {row['to']:.2f}{row['cores']:>17.1f}")  # fmt: skip
            whole, prepared = (found[f"vitas, {name}"] for name in folders)
            rows["prepared"] = statistics.median(a / b for a, b in zip(whole, prepared, strict=True))
            print(f"{pipeline:<14}prepared images, by vitas: x {rows['prepared']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
