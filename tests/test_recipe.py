import json
import subprocess
import sys

import jsonschema
import pytest
from conftest import QUICKSTART, ROOT

from vitas import recipe
from vitas.cli import main
from vitas.config import UserError, keys

VALID = """
name: x
space:
  image_size: 16
  patch_size: [4]
  embed_dim: {max: 32}
  depth: 2
  heads: [2]
  qkv_dim: {max: 60}
  mlp_dim: {max: 40}
"""

# (what is appended to or overrides a valid recipe, what the one line must say)
MALFORMED = [
    # unknown keys, and the nearest valid one
    ("nme=y", "unknown key nme (did you mean name?)"),
    ("supernett.lr=1", "did you mean supernet.lr?"),
    ("supernet.epoch=1", "did you mean supernet.epochs?"),
    ("supernet.learning_rate=1", "unknown key supernet.learning_rate"),
    ("batch_size=5", "did you mean supernet.batch_size?"),
    ("space.embed_dim.maximum=1", "did you mean space.embed_dim.max?"),
    ("space.dept=1", "did you mean space.depth?"),
    ("space.head=[1]", "did you mean space.heads?"),
    ("data.trian=x", "did you mean data.train?"),
    ("data.worker=1", "did you mean data.workers?"),
    ("data.hold_out=0.1", "did you mean data.holdout?"),
    ("budget.flop=[1,2]", "did you mean budget.flops?"),
    ("budget.mac=[1,2]", "did you mean budget.macs?"),
    ("budget.parameters=[1,2]", "did you mean budget.params?"),
    ("evolve.populations=3", "did you mean evolve.population?"),
    ("evolve.generation=3", "did you mean evolve.generations?"),
    ("retrain.droppath=0.1", "did you mean retrain.drop_path?"),
    ("retrain.augment.mix_up=0.1", "did you mean retrain.augment.mixup?"),
    ("tracking.wandbb=auto", "did you mean tracking.wandb?"),
    ("stage=[evolve]", "did you mean stages?"),
    ("foo=1", "unknown key foo"),
    ("name.x=1", "unknown key name.x"),
    ("zzz.yyy.xxx=1", "unknown key zzz.yyy.xxx"),
    # no key=value at all
    ("supernet.epochs", "expected key=value"),
    ("=3", "expected key=value"),
    ("supernet.epochs:3", "expected key=value"),
    ("supernet.epochs=[1", "not YAML"),
    ("name='x", "not YAML"),
    # a wrong type
    ("seed=a", "seed: expected a valid integer"),
    ("seed=1.5", "seed: expected a valid integer"),
    ("seed=true", "seed: expected"),
    ("seed=null", "seed: expected a valid integer"),
    ("name=5", "name: expected a valid string"),
    ("name=", "name: expected a valid string"),
    ("name=[x]", "name: expected a valid string"),
    ("stages=evolve", "stages: expected a valid list"),
    ("stages=[evolv]", "stages.0: expected 'supernet', 'evolve'"),
    ("supernet=3", "supernet: "),
    ("supernet.epochs=many", "supernet.epochs: expected a valid number"),
    ("supernet.epochs=true", "supernet.epochs: expected"),
    ("supernet.epochs=[3]", "supernet.epochs: expected a valid number"),
    ("supernet.batch_size=64.5", "supernet.batch_size: expected a valid integer"),
    ("supernet.batch_size=1e3x", "supernet.batch_size: expected a valid integer"),
    ("supernet.lr=fast", "supernet.lr: expected a valid number"),
    ("supernet.lr=yes", "supernet.lr: expected"),
    ("supernet.augment=strong", "supernet.augment: "),
    ("supernet.augment.scale=0.5", "supernet.augment.scale: expected a valid tuple"),
    ("supernet.augment.scale=[0.5]", "supernet.augment.scale"),
    ("supernet.augment.scale=[0.5,0.6,0.7]", "supernet.augment.scale"),
    ("supernet.augment.auto_augment=strong", "supernet.augment.auto_augment: expected a timm policy"),
    ("supernet.sharing=cyclical", "supernet.sharing: expected 'ordinal', 'bilateral' or 'cyclic'"),
    ("supernet.attention=own", "supernet.attention: expected 'private_qk'"),
    ("data=digits", "data: "),
    ("data.train=3", "data.train: expected a valid string"),
    ("data.train=[a]", "data.train: expected a valid string"),
    ("data.streaming=maybe", "data.streaming: expected a valid boolean"),
    ("data.workers=-1", "data.workers: expected greater than or equal to 0"),
    ("data.workers=two", "data.workers: expected a valid integer"),
    ("data.mean=[0.5]", "data.mean"),
    ("data.mean=0.5", "data.mean: expected a valid list"),
    ("data.std=[a,b,c]", "data.std.0: expected a valid number"),
    ("space=big", "space: "),
    ("space.image_size=16px", "space.image_size: expected a valid integer"),
    ("space.patch_size=4", "space.patch_size: expected a valid list"),
    ("space.patch_size=[four]", "space.patch_size.0: expected a valid integer"),
    ("space.embed_dim=32", "space.embed_dim: "),
    ("space.identity=some", "space.identity: expected 'none', 'free' or 'tail'"),
    ("space.tied_blocks=perhaps", "space.tied_blocks: expected a valid boolean"),
    ("budget.flops=1e9", "budget.flops: expected a valid tuple"),
    ("budget.flops=[low,high]", "budget.flops.0: expected a valid number"),
    ("budget.params={min: 1}", "budget.params: expected a valid tuple"),
    ("evolve.objectives=top1", "evolve.objectives: expected a valid list"),
    ("evolve.objectives=[speed]", "evolve.objectives.0: expected 'top1'"),
    ("evolve.score_on=train", "evolve.score_on: expected 'holdout' or 'test'"),
    ("retrain.init=best", "retrain.init: expected 'scratch' or 'supernet'"),
    ("tracking.wandb=sometimes", "tracking.wandb: expected 'never'"),
    # out of range
    ("seed=-1", "seed: expected greater than or equal to 0, got -1"),
    ("name=../x", "name: "),
    ("name=.hidden", "name: "),
    ("stages=[]", "stages: expected some of"),
    ("stages=[evolve,supernet]", "stages: expected some of"),
    ("stages=[evolve,evolve]", "stages: expected some of"),
    ("supernet.epochs=0", "supernet.epochs: expected greater than 0"),
    ("supernet.epochs=3", "warmup_epochs 5 must be fewer than epochs 3"),
    ("supernet.batch_size=0", "supernet.batch_size: expected greater than 0"),
    ("supernet.lr=-1e-3", "supernet.lr: expected greater than 0"),
    ("supernet.label_smoothing=1", "supernet.label_smoothing: expected less than 1"),
    ("supernet.skip=1.5", "supernet.skip: expected less than or equal to 1"),
    ("supernet.augment.hflip=2", "supernet.augment.hflip: expected less than or equal to 1"),
    ("retrain.drop_path=1", "retrain.drop_path: expected less than 1"),
    ("data.holdout=0", "data.holdout: expected greater than 0"),
    ("data.holdout=1", "data.holdout: expected less than 1"),
    ("data.crop_pct=2", "data.crop_pct: expected less than or equal to 1"),
    ("space.depth=0", "space.depth: expected greater than 0"),
    ("space.patch_size=[]", "space.patch_size: expected one or more different numbers"),
    ("space.patch_size=[4,4]", "space.patch_size: expected one or more different numbers"),
    ("space.patch_size=[5]", "patch_size 5 does not divide image_size 16"),
    ("space.heads=[7]", "heads 7 does not divide qkv_dim 6"),
    ("space.embed_dim.ratios=[2]", "space.embed_dim.ratios.0: expected less than or equal to 1"),
    ("space.embed_dim.ratios=[]", "space.embed_dim: ratios must rise"),
    ("space.embed_dim.ratios=[0.5,0.25]", "space.embed_dim: ratios must rise"),
    ("space.embed_dim.ratios=[0.5,0.501]", "space.embed_dim: ratios must rise"),
    ("budget.flops=[2,1]", "budget.flops: expected [lowest, highest], got [2, 1]"),
    ("budget.flops=[-1,1]", "budget.flops.0: expected greater than or equal to 0"),
    ("evolve.population=1", "evolve.population: expected greater than or equal to 2"),
    ("evolve.generations=0", "evolve.generations: expected greater than 0"),
    ("evolve.objectives=[macs]", "evolve.objectives: expected different objectives, top1 among them"),
    ("evolve.mutation=0", "evolve.mutation: expected greater than 0"),
]

BROKEN_FILES = [
    ("", "expected keys and values"),
    ("- a\n- b", "expected keys and values, got list"),
    ("name: [", "not YAML"),
    ("name: x\nname: y", "line 2: key name is given twice"),
    ("name: x", "space: required, and missing"),
    (VALID + "typo: 1", "unknown key typo"),
    ("extends: nowhere.yaml", "nowhere.yaml: No such file or directory"),
    ("extends: 3", "extends: expected a file"),
    ("extends: recipe.yaml", "extends itself"),
    ("!!python/object:os.system {}", "not YAML"),
    (b"\xff\xfe\x00", "not"),
]


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


def test_there_are_a_hundred_malformed_recipes():
    assert len({override for override, _ in MALFORMED}) + len(BROKEN_FILES) >= 100


@pytest.mark.parametrize(("override", "expected"), MALFORMED)
def test_a_malformed_setting_is_one_line_and_exit_code_2(file, capsys, override, expected):
    assert main(["run", str(file), override]) == 2
    assert expected in one_line(capsys)


@pytest.mark.parametrize(("text", "expected"), BROKEN_FILES)
def test_a_broken_file_is_one_line_and_exit_code_2(file, capsys, text, expected):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["check", str(file)]) == 2
    line = one_line(capsys)
    assert expected in line
    assert str(file) in line


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
