"""A stream: the same images in the same steps whatever the ranks and workers, each once an epoch, read once."""

import functools
import io
import json
import re
import socket
import tarfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_data import write_parquet, write_webdataset

from vitas.config import SourceLost, UserError
from vitas.data import batches, indexing, remote, sources
from vitas.data.plan import Plan
from vitas.data.splits import Split
from vitas.sections import Data

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

IMAGES, BATCH, BUFFER = 96, 16, 32
WRITE = {"parquet": write_parquet, "tar": write_webdataset}


def numbered(number: int) -> Image.Image:
    """A picture that says its number."""
    return Image.fromarray(np.full((2, 2, 3), number, np.uint8))


def number_of(pixels: torch.Tensor) -> torch.Tensor:
    """The transform: nothing but the number, and a draw that the picture's seed decides."""
    return torch.tensor([int(pixels[0, 0, 0]), *np.random.randint(0, 10**6, 1)]).view(2, 1, 1)


def written(folder: Path, kind: str, shards: int = 5) -> Path:
    """Shards of unequal length, in row groups of 4, without an index beside them."""
    folder.mkdir(exist_ok=True)
    WRITE[kind](folder, [(numbered(number), number % 3) for number in range(IMAGES)], shards)
    for file in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(file), file, row_group_size=4)
    return folder


def opened(spec: str | Path, **settings) -> Split:
    data = Data(train=str(spec), test="digits", streaming=True, **{"classes": 3, "patience": 5.0} | settings)
    return sources._open(data, data.train, "data.train", streaming=True)


def steps_of(split: Split, start: int, stop: int, *, world: int = 1, workers: int = 0, accumulation: int = 1,
             readers: int = 4) -> list[list[tuple[int, int]]]:  # fmt: skip
    """(number, draw) of the images of each step, over all ranks, sorted."""
    steps: list[list[tuple[int, int]]] = [[] for _ in range(start, stop)]
    for rank in range(world):
        plan = Plan(BATCH, accumulation, start, stop, rank, world)
        how = {"seed": 3, "workers": workers, "readers": readers, "shuffle_buffer": BUFFER, "pin_memory": False}
        for place, batch in enumerate(batches.loader(split, number_of, plan, **how)):
            told = batch.images.flatten(1)
            assert len(told) == plan.micro_batch
            assert (told[:, 0] % 3 == batch.labels).all()
            steps[place // accumulation] += map(tuple, told.tolist())
    return [sorted(step) for step in steps]


def numbers(steps: list[list[tuple[int, int]]]) -> Counter:
    return Counter(number for step in steps for number, _ in step)


@pytest.fixture(autouse=True)
def many_cores_and_short_waits(monkeypatch):
    monkeypatch.setattr(batches, "allowed_cores", lambda: 8)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.1)


@pytest.mark.parametrize("kind", WRITE)
def test_the_same_images_are_in_the_same_steps_whatever_the_ranks_and_workers(tmp_path, kind):
    split, epoch = opened(written(tmp_path, kind)), IMAGES // BATCH
    plain = steps_of(split, 0, 2 * epoch)
    assert numbers(plain[:epoch]) == numbers(plain[epoch:]) == Counter(range(IMAGES))  # each once an epoch
    assert plain[:epoch] != plain[epoch:]
    for world in (1, 2, 4):
        for workers in (0, 1, 2, 4):
            assert steps_of(split, 0, 2 * epoch, world=world, workers=workers) == plain, (world, workers)
    assert steps_of(split, 0, 2 * epoch, world=8, accumulation=2) == plain  # more ranks than readers


@pytest.mark.parametrize("kind", WRITE)
def test_order_and_draws_are_those_of_the_seed_not_of_the_shards_form(tmp_path, kind):
    """The same shards give the same steps as parquet and as tar: draws are of (seed, epoch, reader, place)."""
    found = steps_of(opened(written(tmp_path / kind, kind)), 0, 6)
    assert found == steps_of(opened(written(tmp_path / "parquet", "parquet")), 0, 6)


class Server(ThreadingHTTPServer):
    """Serves a folder in byte ranges, counts what it sends, and fails when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent, self.faults = folder, Counter(), {}
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, name: str) -> str | None:
        """What goes wrong with this answer, if anything: each fault does so many times."""
        for what, left in self.faults.get(name, {}).items():
            if left > 0:
                self.faults[name][what] -= 1
                return what
        return None

    def handle_error(self, *_):
        """A client that went away is no matter of the test's."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): ...

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, head: bool = False) -> None:
        name = self.path.lstrip("/")
        fault = None if head else self.server.fault(name)
        if fault in ("404", "503") or not (self.server.folder / name).is_file():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = (self.server.folder / name).read_bytes()
        first, last = 0, len(content) - 1
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2]), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if head:
            return
        part = content[first : last + 1]
        if fault == "stall":
            time.sleep(3)
        if fault in ("stall", "reset"):
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.server.sent[name] += len(part)
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path):
    found = Server(tmp_path)
    yield found
    found.shutdown()
    found.server_close()


def urls(server: Server, kind: str) -> str:
    return f"{server.url}/{{0..4}}.{kind}"


@pytest.mark.parametrize("kind", WRITE)
def test_an_epoch_reads_the_data_once_and_a_resume_one_block_a_reader_more(tmp_path, server, kind):
    written(tmp_path, kind)
    split, epoch, readers = opened(urls(server, kind)), IMAGES // BATCH, 4
    plain = steps_of(opened(tmp_path), 0, 9 * epoch)

    def read(start: int, stop: int) -> int:
        server.sent.clear()
        assert steps_of(split, start, stop) == plain[start:stop]
        return sum(server.sent.values())

    if kind == "tar":
        pictures = sum(size for _, size in split.index.places.tolist())
        headers = 1024 * (IMAGES + 5)  # a header and padding before each, and the labels that lie between
    else:
        pictures = sum((tmp_path / f"{shard}.parquet").stat().st_size for shard in range(5))
        headers = (5 + readers) * 1500 * 16  # the footers, once a reader and shard; row groups at the cuts twice
    whole = read(0, epoch)
    assert whole <= pictures + 2 * headers
    block = BUFFER // readers
    for at in (1, epoch + 2, 7 * epoch + 3):  # killed in epoch 0, 1 and 7
        rest = read(at, (at // epoch + 1) * epoch)
        left = epoch - at % epoch
        assert rest <= whole * (left * BATCH + readers * block) / IMAGES + 2 * headers, at


FAULTS = {"stall": 1, "reset": 2, "503": 2, "404": 1}


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_is_asked_for_again_and_nothing_is_lost(tmp_path, server, kind, fault):
    written(tmp_path, kind)
    split = opened(urls(server, kind))
    for shard in range(5):
        server.faults[f"{shard}.{kind}"] = {fault: FAULTS[fault]}
    found = steps_of(split, 0, IMAGES // BATCH, world=2)
    assert numbers(found) == Counter(range(IMAGES))
    assert not any(left for faults in server.faults.values() for left in faults.values())


@pytest.mark.parametrize(("workers", "fault"), [(0, "503"), (0, "404"), (1, "404")])
def test_a_shard_that_stays_away_is_one_line_with_its_name(tmp_path, server, fault, workers):
    written(tmp_path, "tar")
    split = opened(urls(server, "tar"), patience=0.5)
    server.faults["3.tar"] = {fault: 10**6}
    with pytest.raises(SourceLost) as caught:
        steps_of(split, 0, IMAGES // BATCH, workers=workers)
    last = str(caught.value).strip().rpartition("SourceLost: ")[2]
    assert re.fullmatch(rf"{server.url}/3\.tar: not readable, tried for \d s: [^\n]+", last), last


def test_a_shard_that_was_cut_short_is_one_line_with_its_name(tmp_path, server):
    written(tmp_path, "tar")
    split = opened(urls(server, "tar"), patience=0.5)
    file = tmp_path / "3.tar"
    file.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(SourceLost, match=r"/3\.tar: not readable"):
        steps_of(split, 0, IMAGES // BATCH)


def test_the_hold_out_is_a_share_of_each_class_whatever_reads_it(tmp_path):
    split = opened(written(tmp_path, "tar"))
    rest, held = split.hold_out(0.25, 0)
    again = opened(tmp_path).hold_out(0.25, 0)[1]
    assert (held.indices == again.indices).all()
    assert not (held.indices == split.hold_out(0.25, 1)[1].indices).all()
    assert sorted([*rest.indices, *held.indices]) == list(range(IMAGES))
    assert Counter(label for shard in range(5) for _, _, label in held.examples(shard)) == {0: 8, 1: 8, 2: 8}
    kept = set(split.numbers[rest.indices].tolist())
    assert kept == {0, 1, 2}
    seen = numbers(steps_of(rest, 0, len(rest.indices) // BATCH))
    assert set(seen.values()) == {1}
    held_numbers = {number for shard in range(5) for number in number_in(held, shard)}
    assert not held_numbers & set(seen)


def number_in(split: Split, shard: int) -> list[int]:
    return [int(np.asarray(Image.open(io.BytesIO(image["bytes"])))[0, 0, 0]) for _, image, _ in split.examples(shard)]


@pytest.mark.parametrize("kind", WRITE)
def test_an_index_is_made_once_and_anew_for_other_shards(tmp_path, capsys, kind):
    written(tmp_path / "shards", kind)
    how = functools.partial(indexing.known, what="data.train", of="here", cache=tmp_path / "cache")
    shards = opened(tmp_path / "shards").dataset
    made = how(shards)
    file = tmp_path / "cache" / "data_train_index.json"
    stamp = file.stat().st_mtime_ns
    assert how(shards).labels == made.labels
    assert file.stat().st_mtime_ns == stamp
    file.write_text("{}")
    assert how(shards).labels == made.labels
    assert "damaged; made anew" in capsys.readouterr().out
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"content": values["content"] | {"labels": [0]}}))
    assert how(shards).labels == made.labels
    assert "damaged; made anew" in capsys.readouterr().out
    WRITE[kind](tmp_path / "shards", [(numbered(0), 1), (numbered(1), 2)], 1)
    assert how(opened(tmp_path / "shards").dataset).counts[0] == 2
    assert "made anew" in capsys.readouterr().out


def test_an_index_beside_the_shards_spares_reading_them_if_it_is_of_them(tmp_path, server, capsys):
    written(tmp_path, "tar")
    local, beside = opened(tmp_path), tmp_path / indexing.FILE
    indexing.write(local.dataset, "data.train", beside)
    server.sent.clear()
    split = opened(urls(server, "tar"))
    assert set(server.sent) == {"0.tar", indexing.FILE}  # the first, for the names of its columns
    assert steps_of(split, 0, 6) == steps_of(local, 0, 6)
    # What main found beside the shards is what the other ranks find in the cache, also after a change of labels.
    how = functools.partial(indexing.known, what="data.train", of="here", cache=tmp_path / "cache")
    how(local.dataset)
    WRITE["tar"](tmp_path, [(numbered(number), (number + 1) % 3) for number in range(IMAGES)], 5)
    assert how(local.dataset).labels[:3] == [1, 0, 2]  # older than the shards, it does not count
    assert "does not know 0.tar as it is now" in capsys.readouterr().out
    indexing.write(local.dataset, "data.train", beside)
    assert how(local.dataset).labels == how(local.dataset, main=False).labels
    # One of other shards, or no index at all, is in nobody's way.
    (tmp_path / "more").mkdir()
    WRITE["tar"](tmp_path / "more", [(numbered(0), 0), (numbered(1), 1)], 1)
    (tmp_path / "more" / "0.tar").rename(tmp_path / "val.tar")
    assert len(opened(tmp_path / "val.tar").indices) == 2
    beside.write_text('["a shard list of another tool"]')
    assert len(opened(tmp_path / "val.tar").indices) == 2


def test_a_source_that_is_lost_is_told_once_for_all_that_wait_for_it(tmp_path, server, monkeypatch):
    """Many readers in one process do not each try for the whole time, one after the other."""
    written(tmp_path, "tar", 16)
    split = opened(f"{server.url}/{{0..15}}.tar", patience=1.5)
    server.faults |= {f"{shard}.tar": {"503": 10**6} for shard in range(16)}
    began = time.monotonic()
    with pytest.raises(SourceLost):
        steps_of(split, 0, 6, readers=16)
    assert time.monotonic() - began < 4


def test_the_last_image_of_a_block_has_stand_ins_too(tmp_path):
    pictures = [(numbered(number), number % 3) for number in range(IMAGES)]
    WRITE["tar"](tmp_path, pictures, 4)
    file = tmp_path / "0.tar"
    content = bytearray(file.read_bytes())
    (offset, size), *_ = opened(file).index.places.tolist()
    content[offset : offset + size] = bytes(size)
    file.write_bytes(content)
    how = {"seed": 3, "workers": 0, "readers": 4, "shuffle_buffer": 4, "pin_memory": False}  # blocks of one image
    found = list(batches.loader(opened(tmp_path), number_of, Plan(BATCH, 1, 0, 6), **how))
    assert [list(batch.unreadable) for batch in found if batch.unreadable] == [[f"{file} image 0"]]


@pytest.mark.parametrize("cut", [3, 4])
def test_a_tar_that_ends_early_or_is_damaged_inside_is_one_line(tmp_path, cut):
    written(tmp_path, "tar")
    file = tmp_path / "1.tar"
    (offset, _) = opened(file).index.places.tolist()[cut]
    header = offset - 512
    whole = file.read_bytes()
    for content in (whole[:header], whole[:header] + b"x" * 512 + whole[offset:]):
        file.write_bytes(content)
        told = rf"^data\.train: {file}: not readable: damaged, or cut short, at byte {header}$"
        with pytest.raises(UserError, match=told):
            opened(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("png", b"x", "cls", b"one")], "not readable: invalid literal for int"),
        ([("png", b"x", "json", b"{")], "not readable: "),
        ([("png", b"x", "json", b'{"label": 1}'), ("png", b"x", "json", b'{"label": "a"}')], "not readable: |int and"),
        ([], "holds no files, nor do the others"),
    ],
    ids=["text as a number", "broken JSON", "two kinds of labels", "nothing"],
)  # fmt: skip
def test_odd_tars_are_one_line(tmp_path, rows, message):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, row in enumerate(rows):
            for suffix, content in zip(row[0::2], row[1::2], strict=True):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "0.tar", classes=None)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", WRITE)
def test_memory_and_open_files_of_rank_and_workers_stay_as_they_are_over_100_000_images(tmp_path, kind):
    written(tmp_path, kind)
    split, me = opened(tmp_path), psutil.Process()
    plan = Plan(batch_size=96, accumulation=1, start=0, stop=1050)
    how = {"seed": 3, "workers": 2, "readers": 4, "shuffle_buffer": BUFFER, "pin_memory": False}
    used, files = [], []
    for step, batch in enumerate(batches.loader(split, number_of, plan, **how)):
        assert len(batch.labels) == 96
        if step % 50 == 49:
            processes = [me, *sorted(me.children(), key=lambda worker: worker.pid)]
            used.append([process.memory_info().rss for process in processes])
            files.append([process.num_fds() for process in processes])
    assert {len(now) for now in used} == {3}
    for memory, descriptors in zip(np.array(used).T, np.array(files).T, strict=True):
        print((memory / 1e6).round(), descriptors)
        assert memory[4:].max() < 1.05 * memory[3]  # from 19,200 images on
        assert descriptors[4:].max() <= descriptors[3] + 4
