import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from vitas import recipe
from vitas.config import UserError
from vitas.data import augment, batches, decoded, images, sources
from vitas.data.plan import Plan
from vitas.sections import Augment, Data

RNG = np.random.default_rng(0)


def picture(label: int, mode: str = "RGB") -> Image.Image:
    pixels = RNG.integers(0, 60, (30, 40, 3), dtype=np.uint8)
    pixels[:, :, label] += 150
    return Image.fromarray(pixels).convert(mode)


def folder_of_jpegs(root, count: int = 12):
    """train/<class>/*.jpg and test/<class>/*.jpg, 40x30 pixels, three classes; one truncated, one CMYK, one grey."""
    for split in ("train", "test"):
        for label, name in enumerate(("apple", "banana", "cherry")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(label).save(root / split / name / f"{number}.jpg")
    whole = (root / "train" / "apple" / "0.jpg").read_bytes()
    (root / "train" / "apple" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    picture(1, "CMYK").save(root / "train" / "banana" / "0.jpg")
    picture(2, "L").save(root / "train" / "cherry" / "0.jpg")
    return root


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_parquet(path, examples, shards=4):
    for shard in range(shards):
        part = examples[shard::shards]
        columns = {
            "img": [{"bytes": encoded(image), "path": None} for image, _ in part],
            "target": [y for _, y in part],
        }
        features = datasets.Features(img=datasets.Image(), target=datasets.ClassLabel(names=["a", "b", "c"]))
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path / f"{shard}.parquet")


def write_webdataset(path, examples, shards=4):
    for shard in range(shards):
        with tarfile.open(path / f"{shard}.tar", "w") as tar:
            for number, (image, label) in enumerate(examples[shard::shards]):
                for suffix, content in (("png", encoded(image)), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def read(split, plan=None, workers=0, image_size=16, **options):
    plan = plan or Plan(batch_size=8, accumulation=1, start=0, stop=4)
    transform = augment.TrainTransform(image_size, Augment(), Data())
    found = batches.loader(
        split, transform, plan, seed=5, workers=workers, readers=8, shuffle_buffer=64, pin_memory=False, **options
    )
    return list(found)


def test_digits_are_split_by_class_without_overlap():
    train, test = sources.open_splits(Data())
    assert (len(train.indices), len(test.indices), len(train.classes)) == (1437, 360, 10)
    seen = {train.dataset[row]["image"]["bytes"] for row in range(1437)}
    assert not seen & {test.dataset[row]["image"]["bytes"] for row in range(360)}


def test_a_folder_of_jpegs_is_found_decoded_and_its_unreadable_image_told_once(tmp_path):
    root = folder_of_jpegs(tmp_path)
    source = Data(train=str(root / "train"), test=str(root / "test"))
    train, test = sources.open_splits(source)
    assert train.classes == test.classes == ("apple", "banana", "cherry")
    assert (len(train.indices), len(test.indices)) == (36, 36)
    batches = read(train, Plan(batch_size=36, accumulation=1, start=0, stop=2))
    assert batches[0].images.shape == (36, 3, 16, 16)
    for batch in batches:
        train.unreadable.reasons.update(batch.unreadable)
    lines: list[str] = []
    train.unreadable.tell(lines.append)
    train.unreadable.tell(lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("data.train: 1 image(s) could not be read")
    assert "apple/0.jpg" in lines[0]
    cached = decoded.decoded(train, tmp_path / "cache", 16, source, write=True)
    assert cached.images.shape == (35, 3, 16, 16)
    # colours tell the classes, and so does the CMYK picture; the grey one has three equal channels
    means = cached.images.mean((2, 3))
    assert (means.argmax(1)[:23] == cached.labels[:23]).all()


@pytest.mark.parametrize("write", [write_parquet, write_webdataset])
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_and_webdataset_give_the_same_images_whole_and_streamed(tmp_path, write, streaming):
    examples = [(picture(label), label) for label in (0, 1, 2) * 10]
    write(tmp_path, examples)
    source = Data(train=str(tmp_path), test=str(tmp_path), streaming=streaming, classes=3, crop_pct=1.0)
    train, _ = sources.open_splits(source)
    assert len(train.classes) == 3
    assert len(train.indices) == 30
    cached = decoded.decoded(train, tmp_path / "cache", 16, source, write=True)
    assert sorted(cached.labels) == sorted(label for _, label in examples)
    assert (cached.images.mean((2, 3)).argmax(1) == cached.labels).all()
    whole, _ = sources.open_splits(source.model_copy(update={"streaming": False}))
    again = decoded.decoded(whole, tmp_path / "whole", 16, source, write=True)
    assert {image.tobytes() for image in cached.images} == {image.tobytes() for image in again.images}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_holdout_and_the_rest_are_all_images_once(tmp_path, streaming):
    train, _ = sources.open_splits(Data(streaming=streaming))
    rest, holdout = train.hold_out(0.1, seed=0)
    parts = [decoded.decoded(part, tmp_path / name, 8, Data(workers=0), write=True)
             for part, name in ((rest, "rest"), (holdout, "holdout"), (train, "all"))]  # fmt: skip
    assert len(parts[0].labels) + len(parts[1].labels) == len(parts[2].labels) == 1437
    assert abs(len(parts[1].labels) / 1437 - 0.1) < 0.01
    together = sorted(image.tobytes() for part in parts[:2] for image in part.images)
    assert together == sorted(image.tobytes() for image in parts[2].images)


def images_of(batches) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_a_step_holds_the_same_images_and_pairs_whatever_the_ranks(world, accumulation, streaming):
    train, _ = sources.open_splits(Data(streaming=streaming))
    whole = read(train, Plan(batch_size=16, accumulation=1, start=3, stop=5))
    parts = [read(train, Plan(16, accumulation, 3, 5, rank, world)) for rank in range(world)]

    def pairs(batches):
        found = set()
        for batch in batches:
            for image, partner in zip(batch.images, batch.images.flip(0), strict=True):
                found.add(frozenset((image.numpy().tobytes(), partner.numpy().tobytes())))
        return found

    assert pairs(whole) == set.union(*map(pairs, parts))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_loader_goes_on_with_the_same_batches(workers, streaming):
    train, _ = sources.open_splits(Data(streaming=streaming))
    uninterrupted = read(train, Plan(batch_size=16, accumulation=1, start=0, stop=7), workers=workers)
    resumed = read(train, Plan(batch_size=16, accumulation=1, start=3, stop=7), workers=workers)
    assert len(resumed) == 4
    torch.testing.assert_close(images_of(uninterrupted[3:]), images_of(resumed), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "nowhere", "test": "digits"}, "data.train: nowhere: No such file or directory"),
        ({"train": "no/where/*.parquet", "test": "digits"}, r"data.train: no/where/\*.parquet: No such file"),
        ({"train": "digits:test", "test": None}, "data.test: required"),
        ({"image_column": "pixels"}, "data.image_column: data.train has no column pixels; it has image, label"),
        ({"train": "some-one/some-set:train", "test": "digits"}, "data.train: some-one/some-set:train: no such folder"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(settings, message):
    with pytest.raises(UserError, match=message):
        sources.open_splits(Data(**settings))


def test_test_classes_are_matched_to_train_classes_by_name(tmp_path):
    for split, names in (("train", "abc"), ("test", "bc")):
        for label, name in enumerate(names):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                picture(label).save(tmp_path / split / name / f"{number}.png")
    _, test = sources.open_splits(Data(train=str(tmp_path / "train"), test=str(tmp_path / "test")))
    assert {test.example(row)[2] for row in range(6)} == {1, 2}


@pytest.mark.parametrize("name", ["retrain_vitas_a", "retrain_vitas_f", "search_1G"])
def test_the_augmentation_of_the_shipped_recipes_survives_every_draw(name):
    settings = recipe.load(ROOT / "recipes" / f"{name}.yaml")
    for settled in (settings.supernet.augment, settings.retrain.augment):
        transform = augment.TrainTransform(32, settled, settings.data)
        undecoded = {"bytes": encoded(picture(0)), "path": None}
        for _ in range(200):
            assert transform(images.pixels(undecoded)).shape == (3, 32, 32)
