import os
import shutil

import torch
from accelerate import Accelerator

from vitas.train import checkpoint


def prepared():
    accelerator = Accelerator()
    model = torch.nn.Linear(3, 2)
    return accelerator, *accelerator.prepare(model, torch.optim.AdamW(model.parameters()))


def step_of(accelerator, folder) -> int:
    last = checkpoint.latest(folder)
    accelerator.load_state(str(last))
    return checkpoint.manifest(last)["step"]


def test_the_newest_whole_checkpoint_is_used_and_a_damaged_one_passed_over(tmp_path, capsys):
    accelerator, model, _ = prepared()
    for step in (1, 2, 3):
        torch.nn.init.constant_(model.weight, step)
        checkpoint.save(accelerator, model, tmp_path, step, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000002", "step_00000003"]
    assert step_of(accelerator, tmp_path) == 3
    assert (model.weight == 3).all()

    weights = tmp_path / "step_00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert step_of(accelerator, tmp_path) == 2
    assert (model.weight == 2).all()
    assert "step_00000003 is damaged, and passed over" in capsys.readouterr().out


def test_what_a_kill_leaves_in_the_middle_of_writing_is_no_checkpoint(tmp_path):
    accelerator, model, _ = prepared()
    checkpoint.save(accelerator, model, tmp_path, 5, keep=2)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / "part")
    os.remove(tmp_path / "part" / "manifest.json")
    assert checkpoint.latest(tmp_path).name == "step_00000005"
    checkpoint.save(accelerator, model, tmp_path, 6, keep=2)
    assert checkpoint.latest(tmp_path).name == "step_00000006"
    assert not (tmp_path / "part").exists()


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(tmp_path):
    accelerator, model, _ = prepared()
    checkpoint.save(accelerator, model, tmp_path, 30, keep=1)
    (tmp_path / "step_00000030" / "manifest.json").write_text("")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(accelerator, model, tmp_path, 10, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]
