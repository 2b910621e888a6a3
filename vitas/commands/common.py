"""What commands share: how one is added, options that several have, how facts are printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, Protocol

A_RECIPE = "a recipe file, or a name that `vitas recipes` lists"


class AddCommand(Protocol):
    """Adds a command: its word, what it does, a line for the list of commands, what its own help says besides."""

    def __call__(
        self, name: str, work: Callable[[argparse.Namespace], None], text: str, more: str = "", /
    ) -> argparse.ArgumentParser:
        """The parser for its options."""
        ...


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Lets settings follow, as `key=value`; they are positional, so this comes last."""
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings in place of the recipe's: supernet.epochs=10"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Lets facts be printed for programs."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def number(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number of an option."""

    def read(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most:,}, got {text}")
        return int(text)

    return read


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """Prints facts, a line each, or as one JSON object."""
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{name.replace('_', ' '):<24}{text}")
