"""The package without its repository: a wheel, installed where nothing else is, used from an empty folder."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from conftest import ROOT, SHORT
from test_cli import BIN, run

from vitas import __version__
from vitas.files import read_lines

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a command with the installed package, which comes before the one under development on every path."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    path = os.pathsep.join([str(site / "bin"), str(BIN), os.environ["PATH"]])

    def command(*words: str | Path, cwd: Path) -> str:
        done = run(*words, cwd=cwd, PATH=path, PYTHONPATH=str(site))
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    command.site = site
    return command


def test_recipes_and_launch_files_are_in_the_wheel(installed, tmp_path):
    listed = installed("vitas", "recipes", cwd=tmp_path)
    assert {line.split()[0] for line in listed.partition("\n\n")[0].splitlines()} == {
        file.name.removesuffix(".yaml") for file in (ROOT / "recipes").glob("[a-z]*.yaml")
    }
    folder = Path(installed("vitas", "recipes", "--folder", cwd=tmp_path).strip())
    assert installed.site in folder.parents
    for name in ("recipes", "launch"):
        files = {file.relative_to(ROOT) for file in (ROOT / name).rglob("*.*") if file.is_file()}
        assert files == {file.relative_to(folder) for file in (folder / name).rglob("*.*") if file.is_file()}
    zero2 = folder / "launch" / "accelerate" / "zero2.yaml"
    facts = installed("vitas", "check", "search_1G", "--config_file", zero2, "--ranks", "8", "--json", cwd=tmp_path)
    assert json.loads(facts)["supernet_batch"] == "8 ranks x 1 times x 128 images"


def test_every_dependency_has_a_lower_bound(installed):
    (found,) = distributions(name="vitas", path=[str(installed.site)])
    assert [name for name in found.requires if ">=" not in name] == []
    assert found.version == __version__


def test_a_shipped_recipe_is_run_by_its_name(installed, tmp_path):
    assert "on 360 test images" in installed("vitas", "run", "quickstart", *SHORT, cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "ranks"), [(["quickstart"], 1), (["run", "mine.yaml"], 2)], ids=["1 rank", "2 ranks"]
)
def test_accelerate_starts_the_module_with_a_name_or_a_plain_yaml_file(installed, tmp_path, words, ranks):
    (tmp_path / "mine.yaml").write_text("extends: quickstart")
    many = ["--cpu", "--num_processes", "2"] if ranks == 2 else []
    command = ["accelerate", "launch", *many, "-m", "vitas", *words, *SHORT, "stages=[supernet]"]
    assert ("2 x cpu (MULTI_CPU)" in installed(*command, cwd=tmp_path)) == (ranks == 2)
    assert len(read_lines(tmp_path / "runs" / "quickstart" / "metrics.jsonl")) > 0
