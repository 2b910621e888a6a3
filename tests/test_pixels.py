"""The fast way from a file to a crop gives what Pillow and timm give."""

import io
import pickle
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from jpegs import photo, saved
from PIL import Image
from test_data import folder_of_jpegs
from timm.data import Mixup
from timm.data.transforms_factory import create_transform
from torchvision.transforms import functional as tv
from toy import toy_data

from vitas.data import augment, batches, images, sources
from vitas.data.plan import Plan
from vitas.sections import Augment, Data, Training
from vitas.train.feed import Feed, draw

DATA = Data()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    return exif


def by_pillow(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(images.decode({"bytes": content, "path": None}))).permute(2, 0, 1)


PHOTO = photo(91, 62, seed=0)
PLAIN = {
    "JPEG": saved(PHOTO),
    "every colour": saved(PHOTO, quality=95, subsampling=0),
    "half the colours": saved(PHOTO, subsampling=1),
    "progressive": saved(PHOTO, progressive=True),
    "restarts": saved(PHOTO, restart_marker_rows=1),
    "RGB kept": saved(PHOTO, keep_rgb=True),
    "grey": saved(PHOTO.convert("L")),
    "upright": saved(PHOTO, exif=turned(1)),
    "damaged EXIF": saved(PHOTO, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(40))),
    "phone": saved(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(90)]),
    "one pixel": saved(PHOTO.resize((1, 1))),
}
OTHERS = {
    "turned": saved(PHOTO, exif=turned(6)),
    "turned by XMP": saved(PHOTO, xmp=XMP),
    "CMYK": saved(PHOTO.convert("CMYK")),
    "PNG": saved(PHOTO, "PNG"),
    "transparent": saved(Image.new("RGBA", (7, 5), (200, 0, 0, 90)), "PNG"),
    "16 bits": saved(Image.fromarray(np.arange(0, 65000, 1000, np.uint16).reshape(5, 13)), "PNG"),
}


@pytest.mark.parametrize("name", PLAIN | OTHERS)
@pytest.mark.parametrize("from_file", [False, True])
def test_pixels_are_those_of_pillow_and_plain_jpegs_do_without_it(name, from_file, tmp_path, monkeypatch):
    content, image = (PLAIN | OTHERS)[name], {"bytes": None, "path": str(tmp_path / "image")}
    (tmp_path / "image").write_bytes(content)
    seen: list[Image.Image] = []
    whole = images._seen
    monkeypatch.setattr(images, "_seen", lambda opened: seen.append(opened) or whole(opened))
    pixels = images.pixels(image if from_file else {"bytes": content, "path": None})
    needs_pillow = name in OTHERS
    if name == "turned by XMP":  # older versions of Pillow do not see that
        needs_pillow = Image.open(io.BytesIO(content)).getexif().get(0x0112, 1) != 1
    assert len(seen) == needs_pillow
    assert torch.equal(pixels, by_pillow(content))


@pytest.mark.parametrize("name", ["JPEG", "progressive", "restarts", "grey"])
def test_a_damaged_jpeg_is_what_pillow_makes_of_it(name, capfd):
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(150):
        content = bytearray(PLAIN[name])
        if number % 3 == 0:
            content = content[: rng.integers(2, len(content))]
        else:
            content[rng.integers(2, len(content))] = rng.integers(256)
        try:
            expected = by_pillow(bytes(content))
        except images.UNREADABLE as error:
            with pytest.raises(type(error)) as raised:
                images.pixels({"bytes": bytes(content), "path": None})
            assert str(raised.value).partition(" at 0x")[0] == str(error).partition(" at 0x")[0]
        else:
            assert torch.equal(images.pixels({"bytes": bytes(content), "path": None}), expected)
            outcomes.add("read")
            continue
        outcomes.add("unreadable")
    assert outcomes == {"read", "unreadable"}
    assert capfd.readouterr().err == ""  # the libraries say nothing by themselves


def distance(one: torch.Tensor, other: torch.Tensor) -> tuple[int, float]:
    """The largest and the mean difference of two images, in 8-bit levels."""
    difference = (one.int() - other.int()).abs()
    return int(difference.max()), float(difference.float().mean())


@pytest.mark.parametrize("size", [8, 64, 224, 384])
@pytest.mark.parametrize("whole", [(1200, 900), (500, 375), (40, 30)])
def test_a_resized_crop_is_that_of_pillow_to_two_levels(whole, size):
    content = saved(photo(*whole, seed=size), quality=92)
    pillow, pixels = images.decode({"bytes": content}), images.pixels({"bytes": content})
    rng = np.random.default_rng(size)
    for _ in range(20):
        width, height = (int(rng.integers(1, side + 1)) for side in whole)
        left, top = int(rng.integers(whole[0] - width + 1)), int(rng.integers(whole[1] - height + 1))
        expected = pillow.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
        found = augment.resized(pixels[:, top : top + height, left : left + width], size)
        largest, mean = distance(found, tv.pil_to_tensor(expected))
        assert largest <= 2
        assert mean < 0.02


def seeded(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def by_timm(settings: Augment, size: int = 64):
    """The same transform by timm and Pillow alone, of Pillow's images to normalised floats."""
    return create_transform(
        (3, size, size),
        is_training=True,
        scale=settings.scale,
        ratio=settings.ratio,
        hflip=settings.hflip,
        color_jitter=settings.color_jitter or None,
        auto_augment=settings.auto_augment,
        interpolation="bicubic",
        mean=DATA.mean,
        std=DATA.std,
        re_prob=settings.erasing,
        re_mode="pixel",
    )


def as_pixels(normalised: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATA.mean, DATA.std))
    return (255 * (normalised * std + mean)).round().clamp(0, 255).byte()


@pytest.mark.parametrize("settings", [Augment(), Augment(hflip=0.0, erasing=1.0), Augment(erasing=0.25)], ids=str)
def test_crops_flips_and_erasing_are_those_of_timm_from_the_same_draws(settings):
    plain, fast = by_timm(settings), augment.TrainTransform(64, settings, DATA)
    for number in range(40):
        content = saved(photo(160, 120, seed=number % 4), quality=90)
        seeded(number)
        expected = as_pixels(plain(images.decode({"bytes": content})))
        drawn = random.random(), torch.rand(())
        seeded(number)
        largest, mean = distance(fast(images.pixels({"bytes": content})), expected)
        assert largest <= 2
        assert mean < 0.02
        assert drawn == (random.random(), torch.rand(()))  # not a draw more or less


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original-mstd0.5", "augmix-m5-w4-d2", None])
def test_policies_and_jitter_are_those_of_timm_bit_for_bit(policy):
    """On crops that need no resizing, in which all is the same."""
    settings = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), auto_augment=policy, color_jitter=0.4, erasing=0.5)
    plain, fast = by_timm(settings), augment.TrainTransform(64, settings, DATA)
    content = saved(photo(64, 64, seed=7), quality=95)
    for number in range(60):
        seeded(number)
        expected = as_pixels(plain(images.decode({"bytes": content})))
        seeded(number)
        assert torch.equal(fast(images.pixels({"bytes": content})), expected)


def test_erased_pixels_are_noise_of_the_given_mean_and_spread():
    data, area, erased = Data(mean=[0.5] * 3, std=[0.1] * 3), [], []
    transform = augment.TrainTransform(32, Augment(erasing=0.25), data)
    seeded(0)
    for _ in range(2000):
        found = transform(torch.full((3, 32, 32), 255, dtype=torch.uint8))  # five deviations from the mean
        inside = found[0] != 255
        if inside.any():
            area.append(inside.float().mean())
            erased.append(found[:, inside].flatten())
    noise = torch.cat(erased).float()
    assert len(area) / 2000 == pytest.approx(0.25, abs=0.03)
    assert float(torch.stack(area).mean()) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert float(noise.mean()) == pytest.approx(127.5, abs=0.2)
    assert float(noise.std()) == pytest.approx(25.5, abs=0.2)


ALL = Augment(auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5)


def test_an_image_has_the_same_pixels_in_any_worker_and_any_batch(tmp_path):
    root = folder_of_jpegs(tmp_path)
    train, _ = sources.open_splits(Data(train=str(root / "train"), test=str(root / "test")))
    transform = pickle.loads(pickle.dumps(augment.TrainTransform(16, ALL, DATA)))  # as a spawned worker gets it

    def read(workers: int, *plan: int) -> torch.Tensor:
        loader = batches.loader(
            train, transform, Plan(*plan), seed=5, workers=workers, readers=8, shuffle_buffer=64, pin_memory=False
        )
        found = torch.cat([batch.images for batch in loader])
        assert found.dtype == torch.uint8
        return found

    whole = read(0, 12, 1, 0, 6)
    assert torch.equal(whole, read(2, 12, 1, 0, 6))
    assert torch.equal(whole[24:], read(1, 12, 1, 2, 6))
    parts = {image.numpy().tobytes() for rank in range(2) for image in read(0, 12, 3, 0, 6, rank, 2)}
    assert parts == {image.numpy().tobytes() for image in whole}


@pytest.mark.parametrize("mixes", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_what_is_fed_is_normalised_and_mixed_as_plain_timm_does(mixes):
    content = saved(photo(40, 40, seed=3))
    pixels = torch.stack([images.pixels({"bytes": content}).roll(shift, 1) for shift in range(4)])
    labels = torch.tensor([0, 1, 1, 0])
    settings = Training(epochs=4, warmup_epochs=1, batch_size=4, augment=Augment(**mixes), label_smoothing=0.1)
    data = toy_data(None)
    data.mean, data.std = DATA.mean, DATA.std
    found, found_labels = Feed(Accelerator(cpu=True), data, settings).take(
        iter([batches.Batch(pixels, labels, {})]), step=6
    )
    expected, expected_labels = tv.normalize(pixels.float() / 255, DATA.mean, DATA.std), labels
    if mixes:
        np.random.seed(draw(data.seed, 6))
        mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=2)
        expected, expected_labels = mixup(expected.contiguous(), labels)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert torch.equal(found_labels, expected_labels)
