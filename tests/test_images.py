"""Images are decoded as a person sees them."""

import io

import numpy as np
import pytest
from PIL import Image

from vitas.data.images import UNREADABLE, decode


def through(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    """The pixels of an image that was saved and decoded."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    decoded = decode({"bytes": out.getvalue(), "path": None})
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


def row(*values, kind) -> Image.Image:
    return Image.fromarray(np.array([values], kind))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (row(0, 257, 32768, 65535, kind=np.uint16), "PNG"),
        (row(0, 257, 32768, 65535, kind=np.uint16), "TIFF"),
        (row(0, 257, 32768, 65535, kind=np.int32), "TIFF"),
        (row(0, 1 / 255, 0.5, 1, kind=np.float32), "TIFF"),
        (row(0, 1, 128, 255, kind=np.float32), "TIFF"),
        (row(0, 1, 128, 255, kind=np.uint8), "PNG"),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "mode I", "floats to 1", "floats to 255", "8 bits"],
)
def test_deep_images_are_scaled_to_8_bits(image, kind):
    assert through(image, kind)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("values", [(0, 256), (-1, 1), (0, float("nan"))])
def test_floats_of_no_known_range_are_unreadable(values):
    with pytest.raises(UNREADABLE, match="pixels of mode F"):
        through(row(*values, kind=np.float32), "TIFF")


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.new("P", (len(colours), 1))
    image.putpalette([part for colour in colours for part in colour])
    image.putdata(range(len(colours)))
    return image


@pytest.mark.parametrize(
    ("image", "options", "colour"),
    [
        (Image.new("RGBA", (1, 1), (200, 0, 0, 0)), {}, [255, 255, 255]),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 128)), {}, [127, 127, 127]),
        (Image.new("RGBA", (1, 1), (9, 8, 7, 255)), {}, [9, 8, 7]),
        (Image.new("LA", (1, 1), (0, 0)), {}, [255, 255, 255]),
        (palette((9, 8, 7), (0, 0, 0)), {"transparency": 0}, [255, 255, 255]),
        (palette((9, 8, 7), (0, 0, 0)), {"transparency": 1}, [9, 8, 7]),
        (palette((9, 8, 7), (0, 0, 0)), {}, [9, 8, 7]),
        (Image.new("RGB", (1, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, [255, 255, 255]),
        (Image.new("1", (1, 1), 1), {}, [255, 255, 255]),
        (Image.new("1", (1, 1), 0), {}, [0, 0, 0]),
        (Image.new("L", (1, 1), 77), {}, [77, 77, 77]),
    ],
)
def test_what_is_transparent_shows_white(image, options, colour):
    assert through(image, **options)[0, 0].tolist() == colour


def test_cmyk_is_ink():
    assert through(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF")[0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0)), (2, (0, -1))]
)
def test_a_photo_is_turned_as_its_exif_says(orientation, corner):
    image = Image.new("RGB", (16, 8))
    image.paste("white", (0, 0, 8, 4))  # the upper left quarter, as it is stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = through(image, "JPEG", exif=exif)
    assert pixels.shape[:2] == ((16, 8) if orientation in (6, 8) else (8, 16))
    assert pixels[corner].min() > 240
    assert sum(int(pixels[y, x].min() > 240) for y in (0, -1) for x in (0, -1)) == 1


def test_a_damaged_exif_does_not_cost_the_image():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(40))
    assert through(Image.new("RGB", (8, 8), (99, 99, 99)), "JPEG", exif=exif)[0, 0].tolist() == [99, 99, 99]
