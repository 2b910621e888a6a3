import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from ranks import Ranks
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from toy import toy_data, toy_training

from vitas.config import RankError, UserError
from vitas.data.plan import make_plan
from vitas.sections import Augment, Training
from vitas.train.feed import Feed

SETTINGS = Training(epochs=4, warmup_epochs=1, batch_size=96, micro_batch_size=16)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_micro_batch_and_accumulation_follow_from_the_ranks(ranks):
    plan, steps_per_epoch = make_plan(SETTINGS, 1000, "supernet", ranks)
    assert plan.micro_batch * plan.accumulation * ranks == 96
    assert plan.micro_batch <= 16
    assert (steps_per_epoch, plan.stop) == (10, 40)


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({}, 5, "supernet.batch_size: expected a multiple of the 5 ranks, got 96"),
        (
            {"batch_size": 1002},
            1,
            "supernet.batch_size: expected at most 1000, the number of training images, got 1002",
        ),
        ({"batch_size": 6, "augment": Augment(mixup=0.8)}, 2, "expected an even number of images on each of 2 ranks"),
    ],
)
def test_a_batch_that_cannot_be_dealt_out_is_refused(changes, ranks, message):
    with pytest.raises(UserError, match=message):
        make_plan(SETTINGS.model_copy(update=changes), 1000, "supernet", ranks)


@pytest.mark.launch
def test_the_average_moves_a_part_of_the_way_at_each_step(tmp_path):
    changes = {"ema": 0.75, "checkpoint_every": 1, "keep_checkpoints": 12}
    Ranks(toy_training, str(tmp_path), changes, [11], options=[], cwd=tmp_path).wait(60)  # ends at the last step
    steps = sorted((tmp_path / "retrain").glob("step_*"))
    assert len(steps) == 11
    weights, averages = ([load_file(step / name)["head.weight"] for step in steps]
                         for name in ("model.safetensors", "average.safetensors"))  # fmt: skip
    for before, average, weight in zip(
        averages[1:], averages[2:], weights[2:], strict=False
    ):  # timm starts at the third
        assert not torch.equal(average, weight)
        torch.testing.assert_close(average, 0.75 * before + 0.25 * weight)


class Unknown:
    """Images of which one has a label that is none of the classes."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise UserError("data.train: label 7 is none of the classes")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_images_of_one_rank_is_one_line_of_that_rank(workers):
    feed = Feed(Accelerator(), toy_data(None), SETTINGS)
    with pytest.raises(RankError, match=r"^data\.train: label 7 is none of the classes$"):
        feed.take(iter(DataLoader(Unknown(), num_workers=workers)), 0)


def test_a_signal_is_noted_where_work_must_be_saved_and_ends_all_else():
    code = """
import os, signal
from vitas.train.stop import StopRequest
stop = StopRequest()
with stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop
print("saved")
os.kill(os.getpid(), signal.SIGTERM)
print("goes on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "saved\n")
