"""Files anywhere, read by byte ranges: what fails is asked for again, at the same byte."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec import asyn

from vitas.config import SourceLost, UserError, one_line

STALL = 30.0
"""Seconds without a byte after which an answer is not waited for any more."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between two tries: the first, then twice as many each time, up to so many."""

TAGS = ("ETag", "etag", "sha256", "LastModified", "last_modified", "mtime", "updated")
"""What file systems call that which changes with a file."""

_failing_since: float | None = None

# A loader's worker must not wait for a thread that only its parent has; newer versions see to it themselves.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=asyn.reset_lock)

T = TypeVar("T")


def is_remote(name: str) -> bool:
    """Whether a name is a URL, such as https://, hf:// or s3://."""
    return "://" in name


def opened(name: str, patience: float, *, buffer: int = 1 << 20) -> BinaryIO:
    """A file for reading from any place in it; one that is not local is fetched in parts of `buffer` bytes."""
    if not is_remote(name):
        return patiently(name, patience, lambda: open(name, "rb"))
    return io.BufferedReader(_Remote(name, patience), buffer)


def fetch(name: str, start: int, stop: int, patience: float) -> bytes:
    """The bytes [start, stop) of a file.

    Raises:
        SourceLost: They could not be had for `patience` seconds.
        UserError: The server knows no byte ranges.
    """

    def read() -> bytes:
        if is_remote(name):
            files, path = _files(name, patience)
            found = files.cat_file(path, start, stop)
        else:
            with open(name, "rb") as file:
                file.seek(start)
                found = file.read(stop - start)
        if len(found) > stop - start:
            raise UserError(f"{name}: its server answers with the whole file where a part was asked for")
        if len(found) < stop - start:
            raise EOFError(f"{len(found)} bytes in place of {stop - start} from byte {start} on: cut short")
        return found

    return patiently(name, patience, read)


def size(name: str, patience: float) -> int:
    """The size of a file, in bytes."""
    found = stamp(name, patience)[0]
    if found is None:
        raise UserError(f"{name}: its server does not say its size, and so cannot be read from any place")
    return found


def exists(name: str, patience: float) -> bool:
    """Whether there is such a file that is not empty; a server that does not answer is asked again."""
    if not is_remote(name):
        return os.path.isfile(name)

    def ask() -> bool:
        files, path = _files(name, patience)
        try:  # `exists` of some file systems takes any failure for a no
            return bool(files.cat_file(path, 0, 1))
        except FileNotFoundError:
            return False

    return patiently(name, patience, ask)


def stamp(name: str, patience: float) -> list[Any]:
    """The size of a file, and what else changes with it: its time, or a tag of the server."""
    if not is_remote(name):
        found = patiently(name, patience, lambda: os.stat(name))
        return [found.st_size, found.st_mtime_ns]

    def ask() -> list[Any]:
        files, path = _files(name, patience)
        info = files.info(path)
        return [info["size"], *(str(info[tag]) for tag in TAGS if info.get(tag))]

    return patiently(name, patience, ask)


def patiently(name: str, patience: float, work: Callable[[], T]) -> T:
    """What `work` returns, tried again with longer and longer waits in between while it fails.

    Raises:
        SourceLost: It failed for `patience` seconds; the line has the name and the last reason.
    """
    global _failing_since
    began, wait = time.monotonic(), FIRST_WAIT
    while True:
        try:
            found = work()
            _failing_since = None
            return found
        except UserError:
            raise
        except (ImportError, ValueError) as error:  # a package that is missing, a name that is none: the user's
            raise UserError(f"{name}: {one_line(error)}") from None
        except Exception as error:  # the clients of servers raise dozens of kinds
            # One time for all that fail side by side, or one after the other.
            _failing_since = min(began, _failing_since or began)
            passed = time.monotonic() - _failing_since
            if passed + wait > patience:
                what = one_line(error) or type(error).__name__
                raise SourceLost(f"{name}: not readable, tried for {passed:.0f} s: {what}") from None
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _files(name: str, patience: float) -> tuple[Any, str]:
    """The file system of a name, of this process and thread, and the path in it."""
    options: dict[str, Any] = {}
    if name.startswith(("http://", "https://")):
        import aiohttp  # comes with fsspec[http]; most runs read no such files

        stall = min(STALL, max(1.0, patience / 3))
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
            "headers": {"Accept-Encoding": "identity"},  # a part of a compressed file is of no use
        }
    return fsspec.core.url_to_fs(name, **options)


class _Remote(io.RawIOBase):
    """A file that is not local, as Python's files are."""

    def __init__(self, name: str, patience: float) -> None:
        super().__init__()
        self.name, self.patience, self.position = name, patience, 0

    @cached_property
    def size(self) -> int:
        return size(self.name, self.patience)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        stop = min(self.position + len(buffer), self.size)
        if stop <= self.position:
            return 0
        found = fetch(self.name, self.position, stop, self.patience)
        buffer[: len(found)] = found
        self.position += len(found)
        return len(found)
