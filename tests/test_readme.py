"""The README's commands, as typed, in a folder that holds nothing but what a clone holds."""

import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHORT
from PIL import Image
from sklearn.datasets import load_digits
from test_data import folder_of_jpegs, picture, write_webdataset

pytestmark = pytest.mark.launch
BLOCKS = re.findall(r"```(bash|python|text)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python"]
TYPED = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
COMMANDS = [line for line in TYPED if not line.startswith("export ")]
EXPORTED = dict(line.split()[1].split("=") for line in TYPED if line.startswith("export "))
PRINTED = {
    command.splitlines()[-1]: text.splitlines()
    for (language, command), (follows, text) in pairwise(BLOCKS)
    if (language, follows) == ("bash", "text")
}
"""The commands under which the README shows what they print."""


WITHIN = {"top-1 %": 3, "top-5 %": 2, "MACs": 0.2e6, "params": 0.05e6, "images/s": math.inf}
"""How far the final figures may be from the README's: rounding differs between machines, and decides what is found."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "launch"):
        (folder / name).symlink_to(ROOT / name)
    folder_of_jpegs(folder / "photos", count=30)
    (folder / "shards").mkdir()
    write_webdataset(folder / "shards", [(picture(label), label) for label in (0, 1, 2) * 4], 4)
    for file in (folder / "shards").iterdir():
        file.rename(file.with_stem(f"train-{file.stem:0>4}"))
    return folder


def run(command: str, cwd: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=cwd, capture_output=True, text=True, env=os.environ | EXPORTED | {"PATH": path}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "values were not passed" not in done.stderr
    return done.stdout


def near(value: float, most: float):
    return pytest.approx(value, abs=most)


def figures(line: str) -> list:
    """The name and the numbers of a line of the final table; of other lines the words, for shapes differ as well."""
    name, *cells = re.split(r"  +", line)
    if cells:
        return [name, *(float(cell.replace(",", "")) for cell in cells)]
    name, colon, shape = line.partition(": ")
    return [name + colon + re.sub(r"\d+( to \d+)?", "N", shape)]


def test_the_first_command_searches_retrains_and_reports(clone):
    install, _, command = COMMANDS[0].partition(" && ")
    assert install == "pip install -e ."
    heading, *shown = PRINTED[COMMANDS[0]]
    lines = run(command, clone).splitlines()
    at = lines.index(heading) + 1
    assert shown.pop() == "..."
    now, rest = lines[at : at + len(shown)], lines[at + len(shown) :]
    assert [line.split()[0] for line in rest] == [
        "time",
        "supernet",
        "evolve",
        "retrain",
        "baseline",
        "evaluate",
        "all",
    ]
    within = [WITHIN[column] for column in re.split(r"  +", heading.strip())]
    for line, like in zip(now, shown, strict=True):
        name, *values = figures(like)
        assert figures(line) == [name, *map(near, values, within)]
    rows = json.loads((clone / "runs" / "quickstart" / "evaluation.json").read_text())
    found, uniform = rows["found"], rows["uniform ViT"]
    assert found["top1"] >= 95
    assert uniform["macs"] >= found["macs"]
    assert 0.8e6 <= found["macs"] <= 1.2e6


def test_another_search_of_the_same_supernet(clone):
    (command,) = [line for line in COMMANDS if "evolve.name=front" in line]
    printed = run(command, clone)
    assert "<- best" in printed and "next: accelerate launch" in printed
    front = json.loads((clone / "runs" / "quickstart" / "front" / "front.json").read_text())
    assert len(front) > 1 and all(0.3e6 <= entry["macs"] <= 1.2e6 for entry in front)


def test_the_command_for_own_images(clone):
    command = next(line for line in COMMANDS if "photos" in line)
    run(" ".join([command, *SHORT, "supernet.batch_size=16", "retrain.batch_size=16"]), clone)
    assert (clone / "runs" / "mine" / "evaluation.json").is_file()


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("vitas ")])
def test_the_vitas_commands(clone, command):
    printed = iter(run(command, clone).splitlines())
    # What is computed without training is the same everywhere. A line of the README may leave lines out before it.
    for line in PRINTED.get(command, []):
        assert line == "..." or line in printed, line


def test_a_recipe_by_its_name(clone):
    (command,) = [line for line in COMMANDS if "-m vitas" in line]
    run(" ".join([command, *SHORT]), clone)
    assert (clone / "runs" / "again" / "supernet" / "model.safetensors").is_file()


def python(word: str) -> str:
    """The one block of Python with this word in it."""
    (block,) = [block for block in PYTHON if word in block]
    return block


def test_a_search_in_python(clone):
    short = python("vitas.search").replace("epochs=24", "epochs=1, evolve={'population': 4, 'generations': 2}")
    done = subprocess.run([sys.executable, "-c", short], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0 and "on 360 test images" in done.stdout, done.stderr


def test_the_networks_in_python():
    subprocess.run([sys.executable, "-c", python("vitas_b")], check=True)


def test_the_prediction_of_an_image(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    digits = load_digits()
    for image in (digits.images[:10] / 16 * 255).round().astype(np.uint8):
        Image.fromarray(image).save("digit.png")
        exec(python("digit.png"), {})
    answers = capsys.readouterr().out.split()
    assert sum(answer == str(label) for answer, label in zip(answers, digits.target[:10], strict=True)) >= 9


def test_the_recipes_and_config_files_it_names_are_there():
    for name in re.findall(r"(?:recipes|launch)/[\w./]+\.\w+", (ROOT / "README.md").read_text()):
        assert (ROOT / name).is_file(), name


def test_the_test_command():
    assert COMMANDS[-1] == 'pip install -e ".[dev]" && pytest'
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert steps.index('pip install -q -e ".[dev]"') < steps.index("pytest")
