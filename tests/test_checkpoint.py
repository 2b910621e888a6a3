import os
import shutil
import time

import pytest
import torch

from vitas.config import RankError
from vitas.train import checkpoint
from vitas.train.state import Best, TrainingState


def save(folder, step: int, *, keep: int = 2) -> None:
    writer = checkpoint.Writer(folder, keep)
    writer.save(TrainingState({"weight": torch.full((2, 3), float(step))}), step, {})
    writer.wait()


def step_of(folder) -> int:
    last = checkpoint.latest(folder)
    step = checkpoint.manifest(last)["step"]
    assert (checkpoint.load(last).weights["weight"] == step).all()
    return step


def test_the_newest_whole_checkpoint_is_used_and_a_damaged_one_passed_over(tmp_path, capsys):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000002", "step_00000003"]
    assert step_of(tmp_path) == 3

    weights = tmp_path / "step_00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert step_of(tmp_path) == 2
    assert "step_00000003 is damaged, or of another version, and passed over" in capsys.readouterr().out


def test_what_a_kill_leaves_in_the_middle_of_writing_is_no_checkpoint(tmp_path):
    save(tmp_path, 5)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / "part")
    os.remove(tmp_path / "part" / "manifest.json")
    assert step_of(tmp_path) == 5
    save(tmp_path, 6)
    assert step_of(tmp_path) == 6
    assert not (tmp_path / "part").exists()


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"format": 1, "files": {}}', "\0"])
def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(tmp_path, damage):
    save(tmp_path, 30, keep=1)
    (tmp_path / "step_00000030" / "manifest.json").write_text(damage)
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 10, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]


def test_a_state_comes_back_bit_for_bit(tmp_path):
    names = ("weight", "exp_avg/weight", "weight", "weight")
    weights, moments, average, best = ({name: torch.randn(3, 2)} for name in names)
    state = TrainingState(weights, moments, average, (512.0, 7), Best({"step": 3}, best))
    writer = checkpoint.Writer(tmp_path, 1)
    writer.save(state, 4, {"left_out": 2})
    writer.wait()
    back = checkpoint.load(checkpoint.latest(tmp_path))
    assert back.best and back.best.facts == {"step": 3}
    pairs = ((weights, back.weights), (moments, back.moments), (average, back.average), (best, back.best.weights))
    for given, found in pairs:
        assert given.keys() == found.keys()
        assert all(torch.equal(given[name], found[name]) for name in given)
    assert back.loss_scale == (512.0, 7)
    assert checkpoint.manifest(tmp_path / "step_00000004")["left_out"] == 2


def test_training_goes_on_while_a_checkpoint_is_written_and_waits_only_for_the_one_before(tmp_path, monkeypatch):
    whole = checkpoint._checksum

    def slow(file, *, sync=False):
        time.sleep(0.3)
        return whole(file, sync=sync)

    monkeypatch.setattr(checkpoint, "_checksum", slow)  # two files: 0.6 s
    writer = checkpoint.Writer(tmp_path, 2)
    state = TrainingState({"weight": torch.ones(1)})
    began = time.monotonic()
    writer.save(state, 1, {})
    assert time.monotonic() - began < 0.3
    writer.save(state, 2, {})
    assert time.monotonic() - began > 0.5
    assert not (tmp_path / "step_00000002").exists()
    writer.wait()
    assert (tmp_path / "step_00000002").exists()


def test_what_could_not_be_written_is_told_at_the_next_look(tmp_path):
    save(tmp_path, 1)
    writer = checkpoint.Writer(tmp_path, 2)
    (tmp_path / "step_00000002").write_text("a file in the way")
    writer.save(TrainingState({"weight": torch.ones(1)}), 2, {})
    with pytest.raises(
        RankError, match=r"the checkpoint of step 2 could not be written: .* goes on from step_00000001"
    ):
        writer.wait()
    with pytest.raises(RankError):
        writer.check()
    assert not (tmp_path / "part").exists()
