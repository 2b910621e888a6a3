"""The index of a stream: made once, and found again beside the run or beside the shards."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vitas.config import UserError, one_line
from vitas.data import keyed, remote
from vitas.data.shards import SCANNERS, Index, Shards
from vitas.report.terminal import say

FILE = "index.json"
"""What `vitas index` writes beside the shards."""


def known(shards: Shards, what: str, *, cache: Path | None = None, main: bool = True, scan: bool = True) -> Index:
    """The index of some shards: the one that lies in `cache` or beside them, or a new one.

    Args:
        shards: With their columns chosen.
        what: The key of the recipe that names them.
        cache: A folder, where a new one is kept.
        main: Whether it is seen to that the shards are still the same; else what is in the cache is trusted.
        scan: Whether shards may be read through.

    Raises:
        UserError: There is none, and it must not be made.
    """
    file = cache / f"{what.replace('.', '_')}_index.json" if cache else None
    key = made_from(shards) if main or not file else None
    if file and (kept := keyed.read(file, key)):
        try:
            return Index.from_json(kept)
        except (ValueError, KeyError, TypeError):
            say(f"{file}: damaged; made anew")
    if (beside := _beside(shards)) is not None:
        return beside
    if not (scan or shards.cheap):
        raise UserError(
            f"{what}: {len(shards.files)} shards have no index yet, and are read through for it when a run starts"
        )
    index = shards.index(what)
    if file and key and scan:
        keyed.write(file, key, index.as_json())
    return index


def write(shards: Shards, what: str, file: Path) -> Index:
    """Makes the index of some shards, for all who read them."""
    index = shards.index(what)
    keyed.write(file, _names_alone(made_from(shards)), index.as_json())
    return index


def made_from(shards: Shards) -> dict[str, Any]:
    """What decides an index: the shards and their sizes, and which columns are the images and the labels."""
    key: dict[str, Any] = {"shards": shards.files, "columns": [shards.image, shards.label]}
    if shards.are_files:
        with ThreadPoolExecutor(SCANNERS) as several:
            key["sizes"] = list(several.map(lambda name: remote.size(name, shards.patience), shards.files))
        key["times"] = [None if remote.is_remote(name) else os.stat(name).st_mtime_ns for name in shards.files]
    return key


def _beside(shards: Shards) -> Index | None:
    """The index that lies beside the shards, if it is one of them."""
    name = shards.files[0].rpartition("/")[0] + f"/{FILE}"
    if not shards.are_files or not remote.exists(name, shards.patience):
        return None
    with remote.opened(name, shards.patience) as file:
        try:
            found = json.load(file)
            if found["key"] == json.loads(json.dumps(_names_alone(made_from(shards)))):
                return Index.from_json(found["content"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{name}: not an index of shards: {one_line(error)}") from None
    raise UserError(f"{name}: is the index of other shards: make it anew with `vitas index`, or delete it")


def _names_alone(key: dict[str, Any]) -> dict[str, Any]:
    """A key that stays when shards are copied to another folder or server."""
    names = [name.partition("?")[0].rpartition("/")[2] for name in key["shards"]]
    return key | {"shards": names, "times": None}
