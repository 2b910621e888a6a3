"""The index of a stream: made once, and found again beside the run or beside the shards."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitas.config import UserError
from vitas.data import keyed, remote
from vitas.data.shards import SCANNERS, Index, Shards
from vitas.files import write_atomically
from vitas.report.terminal import say

FILE = "vitas_index.json"
"""What `vitas index` writes beside the shards: of each, by its name, what an index holds of it."""


def known(
    shards: Shards, what: str, of: str, *, cache: Path | None = None, main: bool = True, scan: bool = True
) -> Index:
    """The index of some shards: the one that lies in `cache` or beside them, or a new one.

    Args:
        shards: With their columns chosen.
        what: The key of the recipe that names them.
        of: A name of where they come from.
        cache: A folder, where it is kept.
        main: Whether it is seen to that the shards are still the same; else what is in the cache is trusted.
        scan: Whether shards may be read through, and the cache be written.

    Raises:
        UserError: There is none, and it must not be made.
    """
    file = cache / f"{what.replace('.', '_')}_index.json" if cache else None
    key = _made_from(shards, of) if main or not file else None
    stamp = json.dumps(key) if key else ""
    if file and (kept := keyed.read(file, key)):
        try:
            return Index.from_json(kept)._replace(stamp=stamp)
        except (ValueError, KeyError, TypeError):
            say(f"{file}: damaged; made anew")
    index = _beside(shards, key) if key else None
    if index is None:
        if not (scan or shards.cheap):
            raise UserError(
                f"{what}: these shards are read through when a run starts, for there is no index of them yet "
                "(`vitas index` makes one): to check without, say data.classes and data.examples"
            )
        index = shards.index(what)
    if file and key and scan:
        keyed.write(file, key, index.as_json())
    return index._replace(stamp=stamp)


def write(shards: Shards, what: str, file: Path) -> Index:
    """Makes the index of some shards for all who read them; what `file` says of other shards stays."""
    key, index = _made_from(shards, what), shards.index(what)
    there = _read(file.read_text()) if file.is_file() else {}
    columns = [shards.image, shards.label]
    entries = there["shards"] if there.get("columns") == columns else {}
    stops = np.cumsum(index.counts).tolist()
    for shard, stop in enumerate(stops):
        rows = slice(stop - int(index.counts[shard]), stop)
        places = None if index.places is None else index.places[rows].tolist()
        entry = {"size": key["stamps"][shard][0], "labels": index.labels[rows], "places": places}
        entries[_name(shards.name(shard))] = entry
    write_atomically(file, json.dumps({"columns": columns, "shards": entries}))
    return index


def _made_from(shards: Shards, of: str) -> dict[str, Any]:
    """What decides an index: where the shards come from, each file's size and time, and which columns are meant."""
    key: dict[str, Any] = {"source": of, "shards": shards.files, "columns": [shards.image, shards.label]}
    if not shards.are_files:
        return key | {"features": str(shards.features)}
    with ThreadPoolExecutor(SCANNERS) as several:
        stamps = list(several.map(lambda name: remote.stamp(name, shards.patience), shards.files))
    return json.loads(json.dumps(key | {"stamps": stamps}))


def _beside(shards: Shards, key: dict[str, Any]) -> Index | None:
    """The index that lies beside the shards, if it knows all of them as they are."""
    name = shards.files[0].rpartition("/")[0] + f"/{FILE}"
    if not shards.are_files or not remote.exists(name, shards.patience):
        return None
    with remote.opened(name, shards.patience) as file:
        found = _read(file.read().decode(errors="replace"))
    entries = found["shards"] if found.get("columns") == [shards.image, shards.label] else {}
    labels: list[Any] = []
    places: list[Any] = []
    counts = []
    for shard, (size, *when) in zip(shards.files, key["stamps"], strict=True):
        entry = entries.get(_name(shard), {})
        newer = not remote.is_remote(shard) and when[0] > os.stat(name).st_mtime_ns
        if entry.get("size") != size or newer:
            say(f"{name}: does not know {_name(shard)} as it is now; the shards are read through")
            return None
        counts.append(len(entry["labels"]))
        labels += entry["labels"]
        places += entry["places"] or []
    return Index(np.array(counts), labels, np.array(places).reshape(-1, 2) if places else None)


def _read(text: str) -> dict[str, Any]:
    """What `write` wrote; nothing of what is no such file."""
    try:
        found = json.loads(text)
        return found if isinstance(found["shards"], dict) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _name(shard: str) -> str:
    return shard.partition("?")[0].rpartition("/")[2]
