"""What is damaged or in the way in a run: one line and nothing lost, or a warning and the run goes on."""

import json
import shutil

import pytest
from conftest import QUICKSTART
from safetensors.torch import load_file

from vitas.cli import main
from vitas.files import read_lines

SHORTEST = [
    "supernet.epochs=0.05", "supernet.warmup_epochs=0.02", "supernet.batch_size=32", "retrain.epochs=0.05",
    "retrain.warmup_epochs=0.02", "retrain.batch_size=32", "evolve.population=3", "evolve.generations=2",
    "data.workers=0",
]  # fmt: skip


def run(folder, *overrides: str) -> int:
    return main(["run", str(QUICKSTART), *SHORTEST, f"output={folder}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder) == 0
    return folder / "quickstart"


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / "quickstart")


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("vitas")]
    assert "Traceback" not in error
    return line


def spoil(file, content: bytes | None = None) -> None:
    """Cuts a file in half, or replaces its content."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)


SPOILED = [
    # (what is damaged, its new content or None for half of the old one, what is deleted to be made again, overrides)
    ("supernet/settings.yaml", b"\x00\xff", "", []),
    ("supernet/settings.yaml", b"[" * 10_000, "", []),
    ("supernet/settings.yaml", b"- a", "", []),
    ("evolution/settings.yaml", b"space: {[a]: 1}", "", []),
    ("retrain/settings.yaml", b"5", "", []),
    ("baseline/settings.yaml", b"2024-13-45", "", []),
    ("supernet/model.safetensors", None, "evolution", []),
    ("supernet/model.safetensors", b"", "evolution", []),
    ("supernet/model.safetensors", b"\xff" * 1000, "evolution", []),
    ("supernet/model.safetensors", None, "retrain", ["retrain.init=supernet", "stages=[retrain]"]),
    ("retrain/model.safetensors", None, "", []),
    ("baseline/model.safetensors", b"\x00" * 9, "", []),
    ("retrain/model.safetensors", None, "", ["evaluate.weights={}/retrain", "stages=[evaluate]"]),
    ("retrain/config.json", b"[" * 100_000, "", []),
    ("retrain/config.json", b"[]", "", []),
    ("retrain/architecture.yaml", b"\x00", "", []),
    ("retrain/architecture.yaml", b"[" * 10_000, "", []),
    ("retrain/architecture.yaml", b"embed_dim: 3", "", []),
    ("evolution/best.yaml", None, "retrain", []),
    ("evolution/best.yaml", b"? [a]\n: b", "retrain", []),
    ("evolution/best.yaml", b"", "retrain", []),
]

OF_EACH_START = ("lock", "recipe.yaml", "times.json", "progress.json", "report.html")


@pytest.mark.parametrize(("name", "content", "made_again", "overrides"), SPOILED, ids=range(len(SPOILED)))
def test_a_damaged_file_is_named_in_one_line_and_nothing_is_lost(copy, capsys, name, content, made_again, overrides):
    spoil(copy / name, content)
    if made_again:
        shutil.rmtree(copy / made_again)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file() and file.parent.name != "cache"}
    assert run(copy.parent, *[override.format(copy) for override in overrides]) == 2
    assert f"{copy / name}" in one_line(capsys)
    kept = {file: content for file, content in before.items() if file.name not in OF_EACH_START}
    assert all(file.read_bytes() == content for file, content in kept.items())


@pytest.mark.parametrize("name", ["evaluation.json", "recipe.yaml", "evolution/front.json"])
def test_what_is_only_written_may_be_damaged(copy, finished, name):
    spoil(copy / name, b"\x00")
    (copy / "evolution" / "best.yaml").unlink()
    assert run(copy.parent) == 0
    expected = (finished / name).read_text().replace(str(finished.parent), str(copy.parent))
    assert (copy / name).read_text() == expected


def test_damaged_lines_of_the_scores_are_passed_over_and_their_candidates_scored_again(copy, finished, capsys):
    (file,) = copy.glob("supernet/scores/*/*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    entry = json.loads(lines[1])
    damaged = [
        "[]\n", "5\n", "{}\n", "{\n", "\0\n", "[" * 100_000 + "\n",
        json.dumps(entry | {"hits": "many"}) + "\n", json.dumps(entry | {"loss": {"left": [float("nan")]}}) + "\n",
        json.dumps(entry | {"key": ["a"]}) + "\n", json.dumps(entry | {"batch_size": None}) + "\n",
        json.dumps(entry | {"first": -1}) + "\n", json.dumps({"key": entry["key"]}) + "\n",
    ]  # fmt: skip
    file.write_text("".join([lines[0], *damaged, *lines[2:]]) + '{"key": "cut sh')
    before = {name: (copy / "evolution" / name).read_text() for name in ("best.yaml", "front.json", "candidates.jsonl")}
    for name in ("best.yaml", "front.json"):
        (copy / "evolution" / name).unlink()
    capsys.readouterr()
    assert run(copy.parent) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    numbers = range(2, 2 + len(damaged))
    assert told == [f"warning: {file}: line {number} is damaged, and passed over" for number in numbers]
    assert {name: (copy / "evolution" / name).read_text() for name in before} == before
    (new,) = set(copy.glob("supernet/scores/*/*.jsonl")) - {file}  # the copy of a run writes its own
    again = read_lines(new)
    assert {line["key"] for line in again} == {entry["key"]}
    for name in ("hits", "loss"):
        assert [value for line in again for value in line[name]["left"]] == entry[name]["left"]


def test_damaged_metrics_are_passed_over(copy, finished, capsys):
    metrics = copy / "metrics.jsonl"
    metrics.write_text('[]\n{"stage": 1, "step": 2}\n' + metrics.read_text())
    capsys.readouterr()
    assert run(copy.parent) == 0
    assert "metrics.jsonl: line 2 is damaged, and passed over" in capsys.readouterr().out
    shutil.rmtree(copy / "retrain")
    assert run(copy.parent) == 0
    lines = read_lines(metrics)
    assert [line["stage"] for line in lines].count("retrain") == 1
    assert all(isinstance(line, dict) and isinstance(line["stage"], str) for line in lines)
    weights = [load_file(run / "retrain" / "model.safetensors") for run in (copy, finished)]
    assert all(weights[0][name].equal(weight) for name, weight in weights[1].items())


@pytest.mark.parametrize(
    "name", ["supernet", "retrain", "evolution", "cache", "recipe.yaml", "metrics.jsonl", "evaluation.json", "lock"]
)
def test_what_is_in_the_way_in_a_run_folder_is_one_line(finished, tmp_path, capsys, name):
    """A file where a folder should be, or a folder in place of a file."""
    folder = shutil.copytree(finished, tmp_path / "quickstart")
    found = folder / name
    if found.is_dir():
        shutil.rmtree(found)
        found.write_text("")
    else:
        found.unlink(missing_ok=True)
        found.mkdir()
        (found / "x").write_text("")
    if name == "recipe.yaml":
        shutil.rmtree(folder / "retrain")
    if name == "evaluation.json":
        (folder / "metrics.jsonl").unlink()
    assert run(tmp_path) == 2
    assert str(found) in one_line(capsys)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("{}/file", "Not a directory"),
        ("{}/file/deeper", "Not a directory"),
        ("/proc/runs", "No such file or directory"),
        ("{}/" + "a" * 300, "File name too long"),
        ("{}/loop", "Too many levels of symbolic links"),
        ("$NOT_THERE_AT_ALL/file/../../../proc/x", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch, command, output, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    if output.startswith("$"):
        monkeypatch.setenv("NOT_THERE_AT_ALL", "/proc")
        output = "$NOT_THERE_AT_ALL/runs"
    before = sorted(tmp_path.rglob("*"))
    assert main([command, str(QUICKSTART), *SHORTEST, f"output={output.format(tmp_path)}"]) == 2
    line = one_line(capsys)
    assert "cannot be made or written in" in line
    assert why in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_check_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(QUICKSTART), "output=deep/er"]) == 0
    assert list(tmp_path.iterdir()) == []
