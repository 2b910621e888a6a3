"""Images are found in many forms; what is wrong with them is one line."""

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Value
from test_data import encoded, picture

from vitas import recipe
from vitas.config import UserError
from vitas.data import decoded, listing, sources
from vitas.data.listing import Listed
from vitas.sections import Data

NAMES = ["apple", "banana", "cherry"]


def photos(root: Path, names=NAMES, count: int = 4) -> Path:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(label).save(root / name / f"{number}.png")
    return root


def table(file: Path, rows: list[tuple], delimiter: str = ",", images: int = 3) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    for label in range(images):
        picture(label).save(file.parent / f"{label}.png")
    with file.open("w", newline="") as text:
        csv.writer(text, delimiter=delimiter).writerows(rows)
    return file


def columns(labels, feature=None) -> datasets.Dataset:
    """Images of the colour that the number of their label in sorted order says."""
    known = sorted({label for label in labels if label is not None})
    images = [encoded(picture(known.index(label) if label is not None else 0)) for label in labels]
    features = feature and datasets.Features(image=datasets.Image(), label=feature)
    found = datasets.Dataset.from_dict({"image": images, "label": list(labels)}, features=features)
    return found if features else found.cast_column("image", datasets.Image())


def parquet(folder: Path, labels, feature=None, name: str = "0.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    columns(labels, feature).to_parquet(folder / name)
    return folder


def opened(train, test=None, **settings) -> sources.Split:
    return sources.open_splits(Data(train=str(train), test=str(test or train), **settings))[0]


def check(split: sources.Split, cache: Path, classes=NAMES, count: int = 12) -> None:
    """All images are there, of the classes that their colours tell."""
    assert list(split.classes) == list(classes)
    found = decoded.decoded(split, cache, 16, Data(workers=0, crop_pct=1.0), write=True)
    assert found is not None
    assert len(found.labels) == count
    assert (found.images.mean((2, 3)).argmax(1) == found.labels).all()


def saved(root: Path) -> str:
    columns(NAMES * 4).save_to_disk(str(root / "saved"))
    return str(root / "saved")


def saved_parts(root: Path) -> str:
    parts = {"test": columns(["apple", "banana"]), "train": columns(NAMES * 4)}
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    return str(root / "saved")


def one_of_its_parts(root: Path) -> str:
    parts = {"a": columns(["apple", "banana"]), "b": columns(NAMES * 4)}
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    return f"{root}/saved:b"


def train_beside_test(root: Path) -> str:
    photos(root / "both" / "test", NAMES[:2])
    return str(photos(root / "both" / "train").parent)


def shards_of_train_beside_test(root: Path) -> str:
    parquet(root / "both", ["apple", "banana"], name="test-00000-of-00001.parquet")
    for shard in range(2):
        parquet(root / "both", NAMES * 2, name=f"train-0000{shard}-of-00002.parquet")
    return str(root / "both")


def json_labels(root: Path) -> str:
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number, name in enumerate(NAMES * 2):
                record = json.dumps({"id": number, "label": name}).encode()
                for suffix, content in (("png", encoded(picture(NAMES.index(name)))), ("json", record)):
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(root)


ROWS = [(f"{label}.png", NAMES[label]) for label in (0, 1, 2) * 4]


def folders(root: Path, pattern: str) -> str:
    for name in "ab":
        photos(root / name, count=2)
    return f"{root}/{pattern}"


def shards(root: Path, pattern: str) -> str:
    for number in range(8, 12):
        parquet(root, NAMES, name=f"{number:03d}.parquet")
    return f"{root}/{pattern}"


def tables(root: Path, pattern: str) -> str:
    for number in (0, 1):
        table(root / f"{number}.csv", [("path", "label"), *ROWS[number::2]])
    return f"{root}/{pattern}"


FORMS = {
    "class folders": photos,
    "folder with [brackets]": lambda root: photos(root / "[photos] {1,2} *"),
    "glob of class folders": lambda root: f"{photos(root)}/*",
    "glob of images": lambda root: f"{photos(root)}/*/*.png",
    "glob of folders of class folders": lambda root: folders(root, "?"),
    "braces of folders": lambda root: folders(root, "{a,b}"),
    "glob of parquet": lambda root: shards(root, "*.parquet"),
    "range of parquet": lambda root: shards(root, "{008..011}.parquet"),
    "folder of parquet": lambda root: shards(root, ""),
    "CSV": lambda root: table(root / "of" / "labels.csv", [("path", "label"), *ROWS]),
    "CSV with semicolons": lambda root: table(root / "labels.csv", [("file", "class"), *ROWS], ";"),
    "TSV": lambda root: table(root / "labels.tsv", [("label", "filename"), *(row[::-1] for row in ROWS)], "\t"),
    "glob of CSV": lambda root: tables(root, "*.csv"),
    "save_to_disk": saved,
    "save_to_disk, of parts": saved_parts,
    "save_to_disk, a named part": one_of_its_parts,
    "folder of train and test": train_beside_test,
    "named part of it": lambda root: train_beside_test(root) + ":train",
    "shards of train and test": shards_of_train_beside_test,
    "WebDataset with json": json_labels,
}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_images_are_found_in_this_form(tmp_path, form, streaming):
    spec = form(tmp_path)
    split = opened(spec, streaming=streaming, classes=NAMES if streaming else None)
    assert split.streamed == streaming
    check(split, tmp_path / "cache")
    if streaming:
        rest, holdout = (decoded.decoded(part, tmp_path / name, 8, Data(workers=0), write=True)
                         for part, name in zip(split.hold_out(0.5, 0), ("rest", "holdout"), strict=True))  # fmt: skip
        assert len(rest.labels) + len(holdout.labels) == 12


def test_home_and_variables_are_filled_in(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    (tmp_path / "names").write_text("\n".join(NAMES))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path))
    split = opened("~/photos", "$WHERE/photos", classes="${WHERE}/names")
    check(split, tmp_path / "cache")


def test_each_key_takes_its_part_of_a_folder(tmp_path):
    train, test = sources.open_splits(Data(train=train_beside_test(tmp_path), test=str(tmp_path / "both")))
    assert (len(train.indices), len(test.indices)) == (12, 8)


def test_names_order_the_classes_whatever_the_labels_are(tmp_path):
    names = ["z", "a", "m"]
    for number, (labels, feature) in enumerate([
        ([0, 1, 2, 0], Value("int64")),
        (["z", "a", "m", "z"], Value("string")),
        ([2, 0, 1, 2], ClassLabel(names=["a", "m", "z"])),
    ]):  # fmt: skip
        for streaming in (False, True):
            folder = parquet(tmp_path / str(number), labels, feature)
            split = opened(folder, classes=names, streaming=streaming)
            assert split.classes == ("z", "a", "m")
            found = (
                [label for _, _, label in split.examples(0)] if streaming else [split.example(i)[2] for i in range(4)]
            )
            assert found == [0, 1, 2, 0]


def test_numbers_name_classes_alike_in_every_type(tmp_path):
    train, test = sources.open_splits(
        Data(
            train=str(parquet(tmp_path / "train", [0, 1, 2], Value("int64"))),
            test=str(parquet(tmp_path / "test", [2.0, 1.0], Value("float32"))),
        )
    )
    assert train.classes == test.classes == ("0", "1", "2")
    assert [test.example(row)[2] for row in range(2)] == [2, 1]


def test_cells_of_a_table_are_taken_as_they_are_written(tmp_path):
    rows = [("path", "label"), ("0.png", "NA"), ("1.png", "null"), ("2.png", "01"), ("0.png", " 1 ")]
    assert opened(table(tmp_path / "labels.csv", rows)).classes == ("01", "1", "NA", "null")
    rows = [("path", "label"), ("0.png", "10"), ("1.png", "9"), ("2.png", "9")]
    assert opened(table(tmp_path / "numbers.csv", rows)).classes == ("9", "10")


def test_what_lies_beside_the_images_is_left_out_and_images_are_counted(tmp_path):
    root = photos(tmp_path / "photos", NAMES[:2])
    for name in (".hidden", "empty"):
        (root / name).mkdir()
    picture(0).save(root / ".hidden" / "0.png")
    picture(0).save(root / "loose.png")
    for name in (".DS_Store", "._0.png", "Thumbs.db", "notes.txt"):
        (root / "apple" / name).write_text("none of them an image")
    split = opened(root)
    assert (split.classes, len(split.indices)) == (("apple", "banana"), 8)
    lines: list[str] = []
    split.unreadable.tell(lines.append)
    assert len(lines) == 1
    assert "1 image(s)" in lines[0]
    assert "loose.png: lies beside the class folders" in lines[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("[b,a]", ["b", "a"]), ("[0,1.5]", ["0", "1.5"]), ("null", None), ("{names}", ["cat", "big dog"])],
)
def test_classes_are_a_number_or_names_or_a_file_of_names(tmp_path, text, value):
    (tmp_path / "names.txt").write_text("\ufeffcat\n\n big dog \n", encoding="utf-8")
    quickstart = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    settings = recipe.load(quickstart, [f"data.classes={text.format(names=tmp_path / 'names.txt')}"])
    assert settings.data.classes == value
    assert settings.data.num_classes == (len(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("text", ["*.tar", "{a,b}/*.tar", "x-{000..127}.tar", "[ab]/*.parquet", "~/x", "'*.tar'"])
def test_patterns_are_no_yaml(text):
    quickstart = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    assert recipe.load(quickstart, [f"data.train={text}"]).data.train == text.strip("'")


def test_braces_that_the_shell_took_apart_are_not_the_last_one_alone():
    quickstart = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    with pytest.raises(UserError, match=r"^data.train=1\.tar: data.train is given twice; quote braces"):
        recipe.load(quickstart, ["data.train=0.tar", "data.train=1.tar"])


def test_a_folder_is_listed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    folder = Path(photos(tmp_path / "photos"))
    listed = Listed(tmp_path / "cache" / "listing.feather", main=True)
    first, _ = listed.class_folders(folder, "here")
    looked = []
    monkeypatch.setattr(listing, "class_folders", lambda root, *more: looked.append(root) or first_again(root, *more))
    kept, loose = listed.class_folders(folder, "here")
    assert (looked, loose, kept.features) == ([], {}, first.features)
    assert kept.to_dict() == first.to_dict()
    picture(0).save(folder / "apple" / "new.png")
    assert len(Listed(listed.file, main=False).class_folders(folder, "here")[0]) == len(first)
    assert len(listed.class_folders(folder, "here")[0]) == len(first) + 1
    assert looked == [folder]
    listed.file.write_bytes(listed.file.read_bytes()[:100])
    assert len(listed.class_folders(folder, "here")[0]) == len(first) + 1


first_again = listing.class_folders


def test_more_unreadable_images_than_allowed_end_the_run_and_are_all_named(tmp_path):
    folder = Path(photos(tmp_path / "photos", count=20))
    for number in range(12):
        (folder / "apple" / f"bad{number}.png").write_bytes(b"no image")
    how = {"cache": tmp_path / "cache"}
    data = Data(train=str(folder), test=str(folder), workers=0, max_unreadable=0.2)
    split, _ = sources.open_splits(data, **how)
    decoded.decoded(split, tmp_path / "decoded", 8, data, write=True)
    split, _ = sources.open_splits(data.model_copy(update={"max_unreadable": 0.1}), **how)
    named = tmp_path / "cache" / "data_train_unreadable.json"
    told = rf"^data\.train: 12 image.*more than data\.max_unreadable.*{re.escape(str(named))}"
    with pytest.raises(UserError, match=told):
        decoded.decoded(split, tmp_path / "decoded", 8, data, write=True)
    assert len(json.loads(named.read_text())["content"]) == 12
    # The next start knows them: at once too many, unless they are mended, gone, or of other images.
    with pytest.raises(UserError, match=told):
        sources.open_splits(data.model_copy(update={"max_unreadable": 0.1}), **how)
    picture(0).save(folder / "apple" / "bad0.png")
    (folder / "apple" / "bad1.png").unlink()
    split, _ = sources.open_splits(data, **how)
    assert sorted(split.unreadable.reasons) == sorted(str(folder / "apple" / f"bad{n}.png") for n in range(2, 12))
    assert sources.open_splits(data, cache=how["cache"], main=False)[0].unreadable.reasons == split.unreadable.reasons
    photos(tmp_path / "others")
    others = data.model_copy(update={"train": str(tmp_path / "others")})
    assert not sources.open_splits(others, **how)[0].unreadable.reasons
