"""The command line: vitas run | check | describe | import."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from vitas import recipe
from vitas.config import RankError, UserError
from vitas.files import expanded
from vitas.models import registry, release, saved, vit
from vitas.spaces import cost
from vitas.spaces.architecture import MOST_CLASSES

DONE, USER_ERROR = 0, 2

REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""What a file system says of paths that are the user's to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 2 the user's input. Our own failures raise, and so exit with 1."""
    parser = argparse.ArgumentParser(prog="vitas", description="Finds Vision Transformers inside a budget.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="do the stages of a recipe, or go on where they stopped",
        description="On several devices or nodes: accelerate launch RECIPE [key=value ...]",
    )  # fmt: skip
    run.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    run.set_defaults(work=_run)

    check = commands.add_parser("check", help="is the recipe valid, its budget reachable, its data there?")
    check.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe file")
    check.add_argument("--ranks", type=int, help="processes that the run will have (default 1, or the config file's)")
    check.add_argument("--config_file", metavar="FILE", help="Accelerate's config file of the run, for its memory")
    check.add_argument("--mixed_precision", choices=["no", "bf16", "fp16"], help="default: no, or the config file's")
    check.add_argument("--schema", action="store_true", help="print the JSON Schema of recipes, for editors")
    check.set_defaults(work=_check)

    describe = commands.add_parser("describe", help="the costs of an architecture")
    describe.add_argument(
        "architecture", metavar="NAME|FILE", help="a name, such as vitas_c; a YAML file, or a folder that holds one"
    )
    describe.add_argument("--classes", type=int, default=1000, help="outputs of the classifier (default 1000)")
    describe.set_defaults(work=_describe)

    importing = commands.add_parser("import", help="turn a checkpoint of the original release into a model")
    importing.add_argument("file", metavar="FILE.pth.tar", help="the checkpoint")
    importing.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the model")
    importing.add_argument("--config", metavar="NET.json", help="its model config, if it is not a published network")
    importing.set_defaults(work=_import)

    for command in (run, check):
        command.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the recipe's")
    for command in (check, describe):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # key=value after an option: argparse takes positional arguments only in one go
        options.overrides += rest
    return _guarded(lambda: options.work(options))


def run_recipe(file: str) -> int:
    """What a recipe does that is started as a program; its arguments are `key=value` overrides."""
    from vitas.runs.launch import missing_cpu_ranks

    if command := missing_cpu_ranks([file, *sys.argv[1:]]):
        os.execv(command[0], command)
    return main(["run", file, *sys.argv[1:]])


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
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
    return DONE


def _complain(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # on a line of its own, not behind a progress bar


def _run(options: argparse.Namespace) -> None:
    settings = recipe.load(options.recipe, options.overrides)
    from vitas.runs import stages  # what trains takes seconds to import: not before the recipe is known to be right

    stages.run(settings)


def _check(options: argparse.Namespace) -> None:
    if options.schema:
        schema = recipe.Recipe.model_json_schema()
        schema["properties"]["extends"] = {"type": "string", "description": "A recipe whose settings this one changes."}
        print(json.dumps(schema, indent=1))
        return
    if options.recipe is None:
        raise UserError("check: which recipe? vitas check RECIPE, or vitas check --schema")
    settings = recipe.load(options.recipe, options.overrides)
    from vitas.runs import check

    backend = check.backend(options.config_file, options.ranks, options.mixed_precision)
    _print(check.facts(settings, backend), options.json)


def _describe(options: argparse.Namespace) -> None:
    architecture = registry.find(options.architecture)
    if not 1 <= options.classes <= MOST_CLASSES:
        raise UserError(f"--classes: expected 1 to {MOST_CLASSES:,}, got {options.classes}")
    costs = cost.count(architecture, options.classes)
    facts = {"flops_paper": costs["flops"], "macs": costs["macs"], "params": costs["params"]}
    if options.json:
        _print(facts | {"architecture": architecture.model_dump(mode="json")}, as_json=True)
    else:
        print(architecture.to_yaml(), end="")
        _print(facts, as_json=False)


def _import(options: argparse.Namespace) -> None:
    config = options.config and expanded(options.config)
    architecture, state = release.convert(expanded(options.file), config)
    model = vit.from_state(architecture, state, release.PREPROCESSING)
    try:
        saved.save_model(expanded(options.output), model)
    except OSError as error:
        raise UserError(f"{options.output}: {error.strerror}") from None
    params = sum(value.numel() for value in state.values())
    name = registry.name_of(architecture) or "a network of its own"
    print(f"{options.output}: {name}, {params:,} parameters, {model.num_classes} classes")


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{name.replace('_', ' '):<24}{text}")
