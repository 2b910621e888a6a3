"""A training on a stream: the same on any backend and from any server, and nothing lost when one fails."""

import io
import tarfile

import pytest
import ranks
from conftest import first_of
from ranks import config
from test_backends import BACKENDS, STEPS, assert_same_weights, losses, train
from test_stream import Server

from vitas.data.sources import open_splits
from vitas.sections import Data

pytestmark = pytest.mark.launch
SHARDS = 7  # neither the ranks nor the workers divide them
STREAM = ["data.streaming=true", "data.test=digits:test", "data.classes=10", "data.readers=4", "data.shuffle_buffer=64"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The training images of the digits as tar files."""
    folder = tmp_path_factory.mktemp("shards")
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
