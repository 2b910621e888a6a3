"""What a model says of images, by the command."""

import csv
import json
import sys

import pytest
import timm
import torch
from PIL import Image
from test_data import picture
from test_evaluate import trained

from vitas import load_model
from vitas.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a folder of images of which one is damaged."""
    folder = tmp_path_factory.mktemp("predict")
    trained(folder / "model", ("apple", "kiwi", "lime"))
    (folder / "photos" / "below").mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / "photos" / "below" / f"{number}.png")
    whole = (folder / "photos" / "below" / "0.png").read_bytes()
    (folder / "photos" / "cut.png").write_bytes(whole[:300])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    return folder


def test_a_folder_a_pattern_and_a_file_are_classified_as_timm_would(folder, capsys):
    model, photos = str(folder / "model"), folder / "photos"
    files = [str(photos / "below" / f"{number}.png") for number in range(3)]
    words = [str(photos), f"{photos}/below/*.png", files[2]]  # each image once
    assert main(["predict", model, *words, "--json", "--top", "2", "--batch_size", "2"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert list(said["unreadable"]) == [str(photos / "cut.png")] and list(said["images"]) == files
    assert f"{photos}/cut.png: passed over: " in captured.err

    loaded = load_model(model)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded), is_training=False)
    for file in files:
        chances = loaded(transform(Image.open(file).convert("RGB"))[None]).softmax(1)[0]
        guesses = said["images"][file]
        order = chances.argsort(descending=True)[:2].tolist()
        assert [guess["class"] for guess in guesses] == [["apple", "kiwi", "lime"][number] for number in order]
        assert torch.allclose(torch.tensor([guess["probability"] for guess in guesses]), chances[order], atol=1e-6)

    assert main(["predict", model, str(photos / "below"), "--csv", str(folder / "out.csv")]) == 0
    rows = list(csv.DictReader((folder / "out.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == files and rows[0]["class_1"] == said["images"][files[0]][0]["class"]
    assert list(rows[0]) == ["file", *(f"{what}_{rank}" for rank in (1, 2, 3) for what in ("class", "probability"))]
    assert main(["predict", model, files[0], "--top", "1"]) == 0
    first = said["images"][files[0]][0]
    assert capsys.readouterr().out.strip() == f"{files[0]}  {first['class']} {100 * first['probability']:.1f} %"


def test_the_page_asks_for_gradio_and_for_a_model(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for model, words in (
        ("model", "vitas demo needs gradio: pip install 'vitas[demo]'"),
        ("gone", "gone: No such file"),
    ):
        assert main(["demo", str(folder / model)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_what_cannot_be_classified_is_said_in_a_line(folder, tmp_path, capsys):
    trained(tmp_path / "one", ("apple",))
    trained(tmp_path / "bare", ("apple", "kiwi"))
    (tmp_path / "bare" / "config.json").unlink()
    model, photo = str(folder / "model"), str(folder / "photos" / "below" / "0.png")
    for arguments, words in (
        ([model, f"{folder}/photos/cut.png"], "cut.png: cannot be read: "),
        ([model, f"{folder}/notes.txt"], "notes.txt: cannot be read: cannot identify image file"),
        ([model, f"{folder}/empty"], "empty: no images in this folder"),
        ([model, f"{folder}/*.jpg"], "*.jpg: no images match"),
        ([model, f"{folder}/gone.jpg"], "gone.jpg: No such file or directory"),
        ([str(tmp_path / "one"), photo], "one: the model has 1 class(es), expected two or more"),
        ([str(tmp_path / "bare"), photo], "bare: does not say how images are prepared: expected config.json"),
        ([f"{folder}/gone", photo], "gone: No such file or directory"),
        ([model, photo, "--top", "0"], "--top: expected 1 or more, got 0"),
    ):
        assert main(["predict", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
