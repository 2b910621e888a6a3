"""The README's commands, as typed, in a folder that holds nothing but what a clone holds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHORT
from test_data import folder_of_jpegs

pytestmark = pytest.mark.launch
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "launch"):
        (folder / name).symlink_to(ROOT / name)
    folder_of_jpegs(folder / "photos", count=30)
    return folder


def run(command: str, cwd: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_first_command_searches_retrains_and_reports(clone):
    install, _, command = COMMANDS[0].partition(" && ")
    assert install == "pip install -e ."
    assert "top-1 %" in run(command, clone)
    rows = json.loads((clone / "runs" / "quickstart" / "evaluation.json").read_text())
    found, uniform = rows["found"], rows["uniform ViT"]
    assert found["top1"] >= 95
    assert uniform["macs"] >= found["macs"]
    assert 0.8e6 <= found["macs"] <= 1.2e6


def test_the_command_for_own_images(clone):
    command = next(line for line in COMMANDS if "photos" in line)
    run(" ".join([command, *SHORT, "supernet.batch_size=16", "retrain.batch_size=16"]), clone)
    assert (clone / "runs" / "mine" / "evaluation.json").is_file()


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("vitas ")])
def test_the_vitas_commands(clone, command):
    assert run(command, clone)


def test_the_python(clone):
    for language, block in BLOCKS:
        if language == "python":
            subprocess.run([sys.executable, "-c", block], cwd=clone, check=True)


def test_the_recipes_and_config_files_it_names_are_there():
    for name in re.findall(r"(?:recipes|launch)/[\w./]+\.\w+", (ROOT / "README.md").read_text()):
        assert (ROOT / name).is_file(), name


def test_the_test_command():
    assert COMMANDS[-1] == 'pip install -e ".[dev]" && pytest'
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert steps.index('pip install -q -e ".[dev]"') < steps.index("pytest")
