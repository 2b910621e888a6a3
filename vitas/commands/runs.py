"""The commands that run a recipe, or look at a run: vitas run | watch | rank."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vitas.commands.common import A_RECIPE, AddCommand, add_overrides
from vitas.files import expanded

if TYPE_CHECKING:
    from vitas.recipe import Recipe


def add(add_command: AddCommand) -> None:
    """Adds the commands."""
    run = add_command(
        "run", _run, "do the stages of a recipe, or go on where they stopped", "The word run may be left out."
    )
    run.add_argument("recipe", metavar="RECIPE", help=A_RECIPE)

    watching = add_command(
        "watch",
        _watch,
        "show how far a run is, live, from its folder alone",
        "From any machine that sees the folder; ends when the run does, or by Ctrl-C.",
    )
    watching.add_argument("folder", metavar="RUN", help="the folder of a run")
    watching.add_argument("--once", action="store_true", help="print it once, for scripts")

    rank = add_command(
        "rank", _rank, "find out whether a supernet ranks architectures as training each of them alone does"
    )
    rank.add_argument("recipe", metavar="RUN|RECIPE", help="the folder of a run with a trained supernet, or a recipe")
    rank.add_argument("--sample", metavar="N", help="architectures that are trained, of each budget (rank.sample)")
    rank.add_argument("--seeds", metavar="N", help="trainings of each (rank.seeds)")
    rank.add_argument("--epochs", metavar="N", help="epochs of a training (rank.epochs)")

    for trains in (run, rank):
        trains.add_argument("-v", "--verbose", action="store_true", help="show what libraries say, and their warnings")
        add_overrides(trains)


def _run(options: argparse.Namespace) -> None:
    from vitas import recipe

    _do(recipe.load(options.recipe, options.overrides), verbose=options.verbose)


def _do(settings: Recipe, *, verbose: bool) -> None:
    from vitas.report import terminal
    from vitas.runs.launch import missing_cpu_ranks

    if verbose:
        os.environ[terminal.VERBOSE] = "1"
    terminal.quiet()
    if program := missing_cpu_ranks(sys.orig_argv[1:]):
        os.execv(program[0], program)
    from vitas.runs import stages

    stages.run(settings)


def _watch(options: argparse.Namespace) -> None:
    from vitas.report.watch import watch

    watch(expanded(options.folder), once=options.once)


def _rank(options: argparse.Namespace) -> None:
    from vitas import recipe

    given = [f"rank.{name}={value}" for name in ("sample", "seeds", "epochs") if (value := getattr(options, name))]
    overrides = ["stages=[rank]", *given, *options.overrides]
    folder = expanded(options.recipe)
    is_run = (folder / "recipe.yaml").is_file()
    _do(recipe.of_run(folder, overrides) if is_run else recipe.load(options.recipe, overrides), verbose=options.verbose)
