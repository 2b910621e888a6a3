"""A training on a stream: the same on any backend and from any server, and nothing lost when one fails."""

import io
import tarfile
from pathlib import Path

import pytest
import ranks
from conftest import QUICKSTART, first_of
from ranks import config
from test_backends import BACKENDS, STEPS, assert_same_weights, losses, train
from test_stream import Server

from vitas.cli import main
from vitas.data.sources import open_splits
from vitas.sections import Data

pytestmark = pytest.mark.launch
SHARDS = 7  # neither the ranks nor the workers divide them
STREAM = ["data.streaming=true", "data.test=digits:test", "data.classes=10", "data.readers=4", "data.shuffle_buffer=64"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("shards"))


def write_digits(folder: Path) -> Path:
    """The training images of the digits as tar files."""
    digits = open_splits(Data())[0]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in range(shard, len(digits.indices), SHARDS):
                _, image, label = digits.example(row)
                for suffix, content in (("png", image["bytes"]), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{row}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def one_process(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train(folder, [], *STREAM, f"data.train={shards}")
    return folder


@pytest.mark.parametrize("backend", first_of(["zero3", "workers", "ddp", "zero2", "accumulation", "four_ranks"], 2))
def test_every_backend_trains_the_weights_of_one_process_on_a_stream(one_process, shards, tmp_path, backend):
    others = {"workers": (config("ddp"), ["data.workers=2"]), "four_ranks": (config("ddp", 4), [])}
    options, changes = (BACKENDS | others)[backend]
    train(tmp_path, options, *STREAM, f"data.train={shards}", *changes)
    for stage in ("supernet", "retrain"):
        assert list(losses(tmp_path, stage)) == [10, 20]
        assert_same_weights(tmp_path, one_process, stage, tolerance=5e-5)


@pytest.mark.parametrize("backend", first_of(["ddp", "zero3"], 1))
def test_a_server_that_fails_ends_the_run_with_one_line_and_nothing_is_lost(one_process, shards, tmp_path, backend):
    server = Server(shards)
    source = f"data.train={server.url}/{{0..{SHARDS - 1}}}.tar"
    arguments = [*STREAM, "data.patience=3", "stages=[supernet]", source]
    (tmp_path / "architecture.yaml").write_text((one_process / "architecture.yaml").read_text())
    (tmp_path / "metrics").symlink_to(tmp_path / "runs" / "quickstart" / "metrics.jsonl")
    running = ranks.Ranks(
        ranks.recipe, str(ranks.ROOT / "recipes" / "quickstart.yaml"), *STEPS, *arguments, options=config(backend),
        cwd=tmp_path,
    )  # fmt: skip
    ranks.wait_for((tmp_path / "metrics").exists)  # ten steps are done
    server.faults |= {f"{shard}.tar": {"503": 10**6} for shard in range(SHARDS)}
    assert set(running.wait()) == {75}, running.text()
    lines = [line for line in running.text().splitlines() if "not readable" in line]
    assert len(lines) == 1, running.text()
    assert f"{server.url}/" in lines[0]
    assert "supernet: saved after step 1" in lines[0]
    assert "Traceback" not in running.text()
    server.faults.clear()
    assert "supernet: goes on from step 1" in train(tmp_path, config("ddp"), *arguments).text()
    assert_same_weights(tmp_path, one_process, "supernet", tolerance=5e-5)
    server.shutdown()
    server.server_close()


def test_only_a_run_that_has_read_its_images_before_asks_for_another_start_when_they_do_not_answer(
    tmp_path, monkeypatch, capsys
):
    asked, run = tmp_path / "stop", tmp_path / "runs" / "quickstart"
    monkeypatch.setenv("VITAS_STOP_FILE", str(asked))
    command = ["run", str(QUICKSTART), f"output={run.parent}", "data.test=digits:test", "data.streaming=true"]
    command += ["data.train=http://127.0.0.1:1/0.tar", "data.patience=0.1"]
    for begun in (False, True):
        assert main(command) == 75
        assert "http://127.0.0.1:1/0.tar: not readable, tried for " in capsys.readouterr().err
        assert asked.exists() == begun
        (run / "recipe.yaml").touch()
