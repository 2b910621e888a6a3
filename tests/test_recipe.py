import json
import subprocess
import sys

import jsonschema
import pytest
import yaml
from conftest import QUICKSTART, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import FILES, OVERRIDES, VALID

from vitas import recipe
from vitas.cli import main
from vitas.config import UserError, keys

MALFORMED = [pytest.param(given, says, id=given) for kind in OVERRIDES.values() for given, says in kind.items()]
BROKEN = [(given, says) for kind in FILES.values() for given, says in kind.items()]

LARGE = {
    "a deep list": "seed=" + "[" * 10_000,
    "a deep list that is whole": "seed=" + "[" * 300 + "]" * 300,
    "a deep mapping": "data=" + "{a: " * 10_000,
    "a number of 5,000 digits": "seed=" + "9" * 5000,
    "a float of 5,000 digits": "supernet.lr=" + "9" * 5000,
    "a hexadecimal number of 10,000 digits": "seed=0x" + "f" * 10_000,
    "a long name": "name=" + "a" * 300,
    "a long key": "x" * 5000 + "=1",
    "a long list": "space.patch_size=[" + "1," * 5000 + "]",
    "a list of 9 to the 9th": "seed=[&a [x,x,x,x,x,x,x,x,x]"
    + "".join(f", &{here} [{','.join(9 * [f'*{last}'])}]" for last, here in zip("abcdefgh", "bcdefghi", strict=True))
    + "]",
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(VALID)
    return path


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("vitas: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_there_are_three_hundred_malformed_recipes():
    assert len(MALFORMED) + len(BROKEN) >= 300


@pytest.mark.parametrize(("override", "expected"), MALFORMED)
def test_a_malformed_setting_is_one_line_and_exit_code_2(file, capsys, override, expected):
    assert main(["run", str(file), override]) == 2
    assert expected in one_line(capsys)


@pytest.mark.parametrize("override", LARGE.values(), ids=LARGE)
def test_what_is_absurdly_large_is_one_short_line(file, capsys, override):
    assert main(["run", str(file), override]) == 2
    line = one_line(capsys)
    assert override[:30] in line
    assert len(line) < 1000


@pytest.mark.parametrize(("text", "expected"), BROKEN)
def test_a_broken_file_is_one_line_and_exit_code_2(file, capsys, text, expected):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["check", str(file)]) == 2
    line = one_line(capsys)
    assert expected in line
    assert str(file) in line


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=8) | st.dates()
    | st.sampled_from([2**63, -(10**30), 1e400, "~/x", "a/b", "rand-m9", "1e3", "${x", "digits", "best", "supernet"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(key=st.sampled_from(keys(recipe.Recipe)), value=ANYTHING)
def test_any_value_at_any_key_is_loaded_or_refused_in_one_line(tmp_path_factory, key, value):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    *path, last = key.split(".")
    values = yaml.safe_load(VALID)
    section = values
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    file.write_text(yaml.safe_dump(values))
    try:
        loaded = recipe.load(file)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith(f"{file}: ")
    else:
        file.write_text(recipe.dump(loaded))
        assert recipe.load(file) == loaded


@settings(max_examples=400, deadline=None)
@given(text=st.text(max_size=40), key=st.sampled_from([*keys(recipe.Recipe), "x", ""]))
def test_any_text_after_a_key_is_loaded_or_refused_in_one_line(tmp_path_factory, text, key):
    file = tmp_path_factory.getbasetemp() / "valid.yaml"
    file.write_text(VALID)
    try:
        recipe.load(file, [f"{key}={text}"])
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_a_missing_file_is_named(capsys):
    assert main(["run", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: No such file or directory" in one_line(capsys)


def test_an_unknown_key_in_a_section_of_the_file_finds_its_place(file):
    file.write_text(VALID + "data: {batch_size: 3}")
    with pytest.raises(UserError, match=r"unknown key data.batch_size \(did you mean supernet.batch_size\?\)"):
        recipe.load(file)


def test_a_user_error_of_the_real_program_shows_no_traceback(file):
    done = subprocess.run(
        [sys.executable, QUICKSTART, "supernet.epoch=1"], capture_output=True, text=True, cwd=file.parent
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("did you mean supernet.epochs?)")
    assert "Traceback" not in done.stderr


def test_numbers_that_yaml_reads_as_text_are_numbers(file):
    assert recipe.load(file, ["budget.flops=[0.9e9, 1e9]"]).budget.flops == (0.9e9, 1e9)
    assert recipe.load(file, ["supernet.lr=1e-3"]).supernet.lr == 1e-3


def test_extends_merges_sections_key_by_key(file, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\nname: child\nspace: {depth: 3}\nsupernet: {lr: 0.5}")
    merged = recipe.load(child, ["supernet.epochs=9"])
    assert (merged.name, merged.space.depth, merged.space.heads) == ("child", 3, [2])
    assert (merged.supernet.lr, merged.supernet.epochs) == (0.5, 9)


def test_a_resolved_recipe_reads_back_as_itself(quickstart, tmp_path):
    (tmp_path / "again.yaml").write_text(recipe.dump(quickstart))
    assert recipe.load(tmp_path / "again.yaml") == quickstart


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("[a-z]*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_runs_as_python(path):
    assert recipe.load(path)
    compile(path.read_text(), str(path), "exec")


def test_every_setting_is_documented():
    schema = json.dumps(recipe.Recipe.model_json_schema())
    definitions = json.loads(schema)["$defs"].values()
    undocumented = [name for d in definitions for name, field in d["properties"].items() if "description" not in field]
    assert undocumented == []
    assert len(keys(recipe.Recipe)) > 60


def test_the_schema_accepts_the_quickstart_and_refuses_a_typo(capsys):
    assert main(["check", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    values = recipe._read(QUICKSTART, ())
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError, match="typo"):
        jsonschema.validate(values | {"typo": 1}, schema)
    jsonschema.validate({"extends": "search_1G", "space": {"embed_dim": {"max": 192}}}, schema)
