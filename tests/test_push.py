"""What the Hub gets of a model, and a model made of just that in a fresh process."""

import subprocess
import sys

import pytest
import torch
from test_timm import IMAGES, ours

from vitas.cli import main
from vitas.config import UserError
from vitas.models import saved
from vitas.runs.push import push


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    saved.save_model(made := tmp_path_factory.mktemp("model"), ours())
    (made / "settings.yaml").write_text("data: {train: photos}")
    (made / "best.safetensors").write_text("what stays here")
    return made


def test_what_would_be_sent_is_a_model_of_its_own(folder, capsys):
    assert main(["push", str(folder), "me/digits", "--dry-run"]) == 0
    sent = folder / "push"
    names = {file.name for file in sent.iterdir()}
    assert names == {"model.safetensors", "config.json", "architecture.yaml", "README.md", "architecture.png"}
    said = capsys.readouterr().out
    assert all(f"{sent / name}: {(sent / name).stat().st_size:,} bytes" in said for name in names)
    card = (sent / "README.md").read_text()
    assert "hf-hub:me/digits" in card and "photos" in card and "# digits" in card
    program = f"import timm, torch, vitas; model = timm.create_model('local-dir:{sent}', pretrained=True).eval(); "
    program += "images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)); "
    program += "print(model(images).flatten().tolist())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (torch.tensor(eval(done.stdout)) - ours()(IMAGES).flatten()).abs().max() < 1e-5


def test_what_cannot_be_sent_is_said_in_a_line(folder, tmp_path, capsys):
    saved.save_model(tmp_path, ours())
    (tmp_path / "config.json").unlink()
    for arguments, words in (
        ([str(folder), "digits"], "digits: expected USER/NAME"),
        ([str(folder), "me/a b"], "me/a b: expected USER/NAME: Repo id must use"),
        ([str(folder / "gone"), "me/digits"], "gone/config.json: No such file or directory"),
        ([str(tmp_path), "me/digits"], "config.json: No such file or directory: it says classes"),
    ):
        assert main(["push", *arguments, "--dry-run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    with pytest.raises(UserError, match=r"^me/digits: not sent to the Hub: .*offline"):  # as the tests are
        push(folder, "me/digits")
