"""What is made from a trained supernet is made from the supernet that the recipe describes."""

import re
import shutil

import pytest
from conftest import QUICKSTART, SHORT
from test_data import folder_of_jpegs

from vitas import recipe
from vitas.config import UserError
from vitas.runs import stages
from vitas.runs.claims import differences


def run(folder, *overrides: str) -> None:
    settings = [*SHORT, "data.workers=0", "supernet.batch_size=8", "retrain.batch_size=8", f"output={folder}"]
    settings += [f"data.{split}={folder}/images/{split}" for split in ("train", "test")]
    given = {override.partition("=")[0] for override in overrides}
    settings = [setting for setting in settings if setting.partition("=")[0] not in given]
    stages.run(recipe.load(QUICKSTART, [*settings, *overrides]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a supernet that was trained on apples, bananas and cherries."""
    folder = tmp_path_factory.mktemp("searched")
    folder_of_jpegs(folder / "images", count=8)
    run(folder, "stages=[supernet]")
    return folder


@pytest.mark.parametrize("stage", ["stages=[evolve]", "stages=[retrain] retrain.init=supernet"])
def test_a_supernet_of_other_meaning_is_refused(folder, stage):
    folder_of_it = folder / "quickstart"
    stage += f" retrain.architecture={folder}/shape.yaml"
    settings = recipe.load(QUICKSTART)
    (folder / "shape.yaml").write_text(settings.space.corner(-1, 4).to_yaml())
    for changes, words in (
        ("supernet.sharing=ordinal", "supernet.sharing: bilateral, and the recipe now says ordinal"),
        ("supernet.attention=shared", "supernet.attention: private_qk, and the recipe now says shared"),
        ("data.std=[0.5,0.5,0.4]", r"data.std: \[0.5, 0.5, 0.5\], and the recipe now says \[0.5, 0.5, 0.4\]"),
        ("data.holdout=0.5", "holdout: 0.15, and the recipe now says 0.5"),
    ):
        with pytest.raises(UserError, match=f"^{folder_of_it}/supernet: trained with {words}"):
            run(folder, *stage.split(), *changes.split())
    with pytest.raises(UserError, match=r"other/supernet/model.safetensors: No such file .* needs a supernet"):
        run(folder, *stage.split(), "name=other")
    assert not (folder_of_it / "evolution").exists() and not (folder_of_it / "retrain").exists()


def test_scores_on_other_test_images_are_not_reused_and_a_refused_run_leaves_the_recipe_as_it_is(folder):
    shutil.copytree(folder / "quickstart", folder / "on_test")
    search = ["name=on_test", "stages=[evolve]", "evolve.score_on=test"]
    run(folder, *search)
    made_with = (folder / "on_test" / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"on_test/evolution: made with images\.\w+: .*, and the recipe now says"):
        run(folder, *search, f"data.test={folder}/images/train")
    assert (folder / "on_test" / "recipe.yaml").read_text() == made_with


def test_other_classes_in_the_same_place_are_refused(folder):
    shutil.copytree(folder / "quickstart", folder / "again")
    file = folder / "again" / "supernet" / "settings.yaml"
    file.write_text(file.read_text().replace("cherry", "citron"))
    for stage, words in (("supernet", "made"), ("evolve", "trained")):
        words = rf"again/supernet: {words} with classes.2: citron, and the recipe now says cherry"
        with pytest.raises(UserError, match=words):
            run(folder, "name=again", f"stages=[{stage}]")
    file.write_text(re.sub(r"classes:\n(  '\d'.*\n)+", "", file.read_text()))  # as earlier versions wrote it
    assert "citron" not in file.read_text()
    run(folder, "name=again", "stages=[supernet]")


def test_a_retraining_from_another_supernet_is_not_taken_for_this_one(folder):
    shutil.copytree(folder / "quickstart", folder / "twice")
    (folder / "shape.yaml").write_text(recipe.load(QUICKSTART).space.corner(-1, 4).to_yaml())
    of_it = ["name=twice", "retrain.init=supernet", f"retrain.architecture={folder}/shape.yaml"]
    run(folder, *of_it, "stages=[retrain]")
    shutil.rmtree(folder / "twice" / "supernet")
    run(folder, *of_it, "stages=[supernet]", "supernet.lr=0.001")
    with pytest.raises(UserError, match=r"twice/retrain: made with supernet: \w+, and the recipe now says \w+"):
        run(folder, *of_it, "stages=[retrain]", "supernet.lr=0.001")


def test_how_a_training_runs_may_change_and_how_costs_are_measured_may_not():
    before = {"retrain": {"compile": False, "lr": 1.0}, "measured": {"compile": False}}
    assert differences(before, {"retrain": {"compile": True, "lr": 1.0}, "measured": {"compile": False}}) == []
    (found,) = differences(before, {"retrain": {"lr": 1.0}, "measured": {"compile": True}})
    assert found == ("measured.compile", False, True)


def test_a_setting_that_an_earlier_version_did_not_have_counts_as_its_default(folder):
    shutil.copytree(folder / "quickstart", folder / "earlier")
    file = folder / "earlier" / "supernet" / "settings.yaml"
    new = r"^ +(sandwich|distill|in_budget|erasing|identity|tied_blocks|image_column): .*\n"
    text, count = re.subn(new, "", file.read_text(), flags=re.MULTILINE)
    assert count == 7
    file.write_text(text)
    with pytest.raises(UserError, match=r"made with space.identity: none, and the recipe now says free"):
        run(folder, "name=earlier", "stages=[supernet]")
    file.write_text(text := text.replace("space:\n", "space:\n  identity: free\n"))
    run(folder, "name=earlier", "stages=[supernet]")
    file.write_text(text)  # it was signed anew
    with pytest.raises(UserError, match=r"made with supernet.sandwich: 0, and the recipe now says 1"):
        run(folder, "name=earlier", "stages=[supernet]", "supernet.sandwich=1")
