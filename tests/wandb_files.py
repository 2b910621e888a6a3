"""What wandb has written offline."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32 * 1024


class Segment(NamedTuple):
    """A file of wandb's."""

    group: str
    job_type: str
    config: dict
    rows: list[dict]
    summary: dict
    artifacts: list[str]


def segments(folder: Path) -> list[Segment]:
    """All of a run folder, in the order of their names, which begin with the time."""
    return [_segment(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def _segment(file: Path) -> Segment:
    group = job_type = ""
    config, rows, summary, artifacts = {}, [], {}, []
    for record in map(Record.FromString, _records(file.read_bytes())):
        what = record.WhichOneof("record_type")
        if what == "run":
            group, job_type = record.run.run_group, record.run.job_type
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif what == "history":
            rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif what == "summary":
            summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif what == "artifact":
            artifacts.append(record.artifact.name)
        elif what == "request" and record.request.HasField("log_artifact"):
            artifacts.append(record.request.log_artifact.artifact.name)
    return Segment(group, job_type, config, rows, summary, artifacts)


def _key(item) -> str:
    return item.key or ".".join(item.nested_key)


def _records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format: pieces with a checksum, a length and a kind, none across two blocks."""
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""
