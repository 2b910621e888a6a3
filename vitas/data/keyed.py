"""What is kept in a run folder, with the key of what made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitas.files import write_atomically
from vitas.report.terminal import say


def read(file: Path, key: dict[str, Any] | None = None) -> Any:
    """What `write` left in the file, if it was made from what `key` says; otherwise None, and a line says why.

    Nothing is said if there is no such file. Without a key it may be made from anything.
    """
    key = json.loads(json.dumps(key))  # as it comes back from a file
    try:
        kept = json.loads(file.read_text())
        made, content = kept["key"], kept["content"]
        changed = [name for name in {**made, **(key or made)} if made.get(name) != (key or made).get(name)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        say(f"{file}: damaged; made anew")
        return None
    if changed:
        say(f"{file}: made with another {' and '.join(changed)}; made anew")
        return None
    return content


def write(file: Path, key: dict[str, Any], content: Any) -> None:
    """Keeps plain JSON for `read`: all of it, or after a kill nothing."""
    write_atomically(file, json.dumps({"key": key, "content": content}))
