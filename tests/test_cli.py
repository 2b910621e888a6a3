"""The command as a shell sees it: real processes."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from vitas import __version__, recipe, shipped
from vitas.cli import main

BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | path | environment)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "usage: vitas"),
        (["--version"], 0, f"vitas {__version__}"),
        (["recipes"], 0, "search_1G "),
        (["check", "--schema"], 0, "supernet"),
        (["chek", "quickstart"], 2, "vitas: chek: neither a command nor a recipe (did you mean check?)"),
        (["serch_1G"], 2, "vitas: serch_1G: neither a command nor a recipe (did you mean search_1G?)"),
        (["run", "serch_1G"], 2, "vitas: serch_1G: No such file or directory (did you mean search_1G?)"),
        (["check", "quickstart", "supernet.epoch=1"], 2, "did you mean supernet.epochs?"),
        (["quickstart", "supernet.epoch=1"], 2, "did you mean supernet.epochs?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("program", [[BIN / "vitas"], [sys.executable, "-m", "vitas"]], ids=["vitas", "-m vitas"])
def test_help_and_typing_errors_cost_no_import_of_torch(tmp_path, program, words, code, says):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(*program, *words, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert code == 0 or done.stderr.count("\n") == 1
    # A third is usual; others may be at work on this machine, and their share of a core counts here, too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    imported = run(*program, *words, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1").stderr
    assert "vitas.cli" in imported
    assert "torch" not in imported


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    done = run("sh", "-c", "vitas check --schema | head -n 1", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_recipe_that_runs_as_a_program_finds_its_typing_errors_before_it_imports_torch(tmp_path):
    recipe = ROOT / "recipes" / "quickstart.yaml"
    done = run(sys.executable, recipe, "supernet.epoch=1", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert "did you mean supernet.epochs?" in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize("imports", ["import vitas, timm", "import timm, vitas", "import vitas.recipe, timm"])
def test_the_networks_are_in_timm_whatever_is_imported_first(tmp_path, imports):
    text = f"{imports}; print(timm.create_model('vitas_c', num_classes=10).num_classes)"
    (tmp_path / "program.py").write_text(text)
    done = run(sys.executable, *(["-c", text] if "recipe" in imports else ["program.py"]), cwd=tmp_path)
    assert done.stdout == "10\n", done.stderr


def test_a_module_of_others_that_imports_vitas_finds_the_networks(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import vitas")
    (tmp_path / "mine" / "vitas.py").write_text("import timm; print(timm.is_model('vitas_b'))")
    assert run(sys.executable, "-m", "mine.vitas", "vitas", cwd=tmp_path).stdout == "True\n"


def test_the_public_names_are_there_and_no_others():
    import vitas

    for name in vitas.__all__:
        assert name in dir(vitas)
        assert (
            name == "__version__" or getattr(vitas, name).__name__.rpartition(".")[2] == name
        )  # search is a module, too
    with pytest.raises(AttributeError, match="module 'vitas' has no attribute 'load_modle'"):
        vitas.load_modle  # noqa: B018


def test_the_recipes_are_listed_by_name_with_a_sentence_each(capsys):
    assert main(["recipes"]) == 0
    lines, spaces = (
        part.splitlines() for part in capsys.readouterr().out.split("\n\nSearch spaces, for space.extends:\n")
    )
    assert [line.split()[0] for line in spaces] == ["tiny", "small", "384", "768"]
    assert [line.split()[0] for line in lines] == [
        file.name.removesuffix(".yaml") for file in sorted((ROOT / "recipes").glob("[a-z]*.yaml"))
    ]
    assert all(line.endswith(".") and len(line.split()) > 5 for line in lines)
    assert "search_1G           ViTAS-B: search and retrain a network of 1 G FLOPs" in "\n".join(lines)


def test_a_printed_recipe_works_from_any_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in shipped.recipes().items():
        if name.startswith("_"):
            continue
        assert main(["recipes", name]) == 0
        Path("mine.yaml").write_text(capsys.readouterr().out)
        assert recipe.load("mine.yaml") == recipe.load(name) == recipe.load(file)
    assert main(["recipes", "serch_1G"]) == 2
    assert capsys.readouterr().err == "vitas: unknown recipe serch_1G (did you mean search_1G?)\n"


def test_a_recipe_extends_a_file_beside_it_or_else_one_of_ours(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: quickstart\nname: mine")
    assert recipe.load(mine).space == recipe.load("quickstart").space
    (tmp_path / "_base.yaml").write_text("extends: quickstart\nseed: 7")
    mine.write_text("extends: _base.yaml\nname: mine")
    assert recipe.load(mine).seed == 7
    mine.write_text("extends: quikstart")
    with pytest.raises(recipe.UserError, match=r"quikstart: No such file or directory \(did you mean quickstart\?\)"):
        recipe.load(mine)


def test_a_file_comes_before_one_of_our_names_and_a_folder_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("search_1G").mkdir()
    assert recipe.load("search_1G").name == "search_1G"
    Path("quickstart").write_text("extends: search_1G\nname: mine")
    assert recipe.load("quickstart").name == "mine"
    with pytest.raises(
        recipe.UserError, match=r"search_1G.yaml: No such file or directory \(did you mean search_1G\?\)"
    ):
        recipe.load("search_1G.yaml")  # a file is meant, and perhaps another folder
