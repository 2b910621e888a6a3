"""Data sets on the Hugging Face Hub, by its own clients, from a Hub on this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hub import Hub
from test_data import picture, write_parquet, write_webdataset

from vitas.config import SourceLost
from vitas.data import formats, remote

pytestmark = pytest.mark.filterwarnings("ignore:unclosed")
CARD = """---
dataset_info:
  features:
  - name: png
    dtype: image
  - name: cls
    dtype:
      class_label:
        names: {'0': apple, '1': banana, '2': cherry}
---
"""
OPEN = """
import json, sys
from vitas.config import UserError
from vitas.data import sources
from vitas.sections import Data
for spec, patience in json.loads(sys.argv[1]):
    try:
        data = Data(train=spec, test=spec, streaming=True, patience=patience, classes=None if "tars" in spec else 3)
        split = sources._open(data, spec, "data.train", streaming=True)
        read = sum(1 for shard in range(split.dataset.count) for _ in split.examples(shard))
        told = [type(split.dataset).__name__, split.dataset.count, read, list(split.classes)]
    except UserError as error:
        told = [type(error).__name__, str(error)]
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    """Named as those of ImageNet are: parquet with parts, and tars with a card."""
    root = tmp_path_factory.mktemp("hub")
    for name, write, suffix in (("ours/parquet", write_parquet, "parquet"), ("ours/tars", write_webdataset, "tar")):
        (root / name / "data").mkdir(parents=True)
        write(root / name, [(picture(number % 3), number % 3) for number in range(24)], 4)
        for shard in range(4):
            of_tar = f"imagenet1k-{'validation' if shard == 3 else 'train'}-{shard:04}.tar"
            of_parquet = f"data/{'validation' if shard == 3 else 'train'}-{shard:05}-of-00003.parquet"
            (root / name / f"{shard}.{suffix}").rename(root / name / (of_tar if suffix == "tar" else of_parquet))
    (root / "ours" / "tars" / "README.md").write_text(CARD)
    return root


def opened(hub: Hub, home: Path, *specs: tuple[str, float]) -> list[list]:
    """What each names, opened and read as a stream by a process that asks this Hub."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    command = [sys.executable, "-c", OPEN, json.dumps(specs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    hub.shutdown()
    hub.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_repositories_are_found_by_name_and_by_pattern_though_the_hub_fails_at_first(repositories, tmp_path):
    hub = Hub(repositories, tree=2, revision=2, info=2, resolve=2)
    found = opened(
        hub,
        tmp_path,
        ("hf://datasets/ours/tars/*-train-*.tar", 60),
        ("hf://datasets/ours/tars/imagenet1k-train-{0000..0001}.tar", 60),
        ("ours/tars", 60),
        ("ours/parquet", 60),
        ("ours/parquet:validation", 60),
        ("ours/nothing", 60),
        ("hf://datasets/ours/nothing/*.tar", 60),
    )
    names, numbers = ["apple", "banana", "cherry"], ["0", "1", "2"]
    assert found[:5] == [
        ["Tar", 3, 18, numbers],
        ["Tar", 2, 12, numbers],
        ["Tar", 3, 18, names],
        ["Parquet", 3, 18, ["a", "b", "c"]],
        ["Parquet", 1, 6, ["a", "b", "c"]],
    ]
    assert hub.failing["tree"] <= 0 and hub.failing["resolve"] <= 0
    for kind, words in found[5:]:
        assert kind == "UserError"  # what is not there is not asked for again
        assert re.match(r"data\.train: \S*nothing", words)


@pytest.mark.parametrize("failures", [2, 10**6])
def test_a_hub_that_does_not_answer_is_asked_again_for_a_while(repositories, monkeypatch, failures):
    """Also where its client has given up asking, and says that it has found nothing."""
    asked, local = [], datasets.load_dataset_builder

    def builder(name):
        asked.append(name)
        if len(asked) <= failures:
            raise FileNotFoundError("Couldn't find it on the Hub either: LocalEntryNotFoundError")
        return local("parquet", data_files={"train": str(repositories / "ours" / "parquet" / "data" / "train-*")})

    monkeypatch.setattr(formats.datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(formats, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.1)
    if failures == 2:
        assert formats.open_any("ours/lost", "data.train", patience=5.0).dataset.count == len(asked) == 3
    else:
        with pytest.raises(SourceLost, match=r"^ours/lost: not readable, tried for \d s: Couldn't find it[^\n]+$"):
            formats.open_any("ours/lost", "data.train", patience=1.0)
        assert len(asked) > 1
