"""The command line: finds the command that is meant, does it, and says what a user did wrong in one line."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from vitas import shipped
from vitas.commands import data, models, recipes, reports, runs
from vitas.config import RankError, UserError, did_you_mean, one_line
from vitas.version import __version__

DONE, USER_ERROR, INTERRUPTED, CLOSED = 0, 2, 130, 141

REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""What a file system says of paths that are the user's to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 2 the user's input, 130 Ctrl-C, 141 nobody reads any more.

    Our own failures raise, and so exit with 1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work() -> None:
        options = _parse(words)
        options.work(options)

    return _guarded(work)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vitas",
        description="Finds Vision Transformers inside a budget.",
        epilog="On several devices or nodes: accelerate launch -m vitas RECIPE [key=value ...]",
    )
    parser.add_argument("--version", action="version", version=f"vitas {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, work: Callable[[argparse.Namespace], None], text: str, more: str = "") -> Any:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
        added.set_defaults(work=work)
        return added

    for kind in (runs, recipes, reports, models, data):
        kind.add(add_command)
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        if shipped.find(words[0]) is None:
            near = did_you_mean(words[0], [*commands.choices, *shipped.recipes()])
            raise UserError(f"{one_line(words[0])}: neither a command nor a recipe{near}")
        words = ["run", *words]
    options, rest = parser.parse_known_args(words)
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # key=value after an option: argparse takes positional arguments only in one go
        options.overrides += rest
    return options


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # who read has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0" or isinstance(error, RankError):
            _complain(f"vitas{'' if rank == '0' else f', rank {rank}'}: {error}")
        return error.exit_code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and (error.filename is None or error.errno not in REFUSED):
            raise
        where = f"{error.filename}: " if error.filename else ""
        advice = "; make room, and the same command goes on" if full else ""
        _complain(f"vitas: {where}{error.strerror}{advice}")
        return USER_ERROR
    except KeyboardInterrupt:  # before there is anything to save
        _complain("vitas: interrupted")
        return INTERRUPTED
    return DONE


def _complain(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # on a line of its own, not behind a progress bar
