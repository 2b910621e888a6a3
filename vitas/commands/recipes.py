"""The commands that write, check and list recipes: vitas new | check | recipes."""

from __future__ import annotations

import argparse
import json
import math

from vitas import shipped
from vitas.commands.common import A_RECIPE, AddCommand, add_json, add_overrides, number, print_facts
from vitas.config import UserError, did_you_mean
from vitas.files import expanded


def add(add_command: AddCommand) -> None:
    """Adds the commands."""
    new = add_command(
        "new",
        _new,
        "write a recipe for images of yours: vitas new photos > mine.yaml",
        "It looks at the images and the machine, and runs a few steps to find out what fits into the time; so it takes "
        "a minute or more.",
    )
    new.add_argument("source", metavar="FOLDER", help="what data.train names: a folder, shards, a Hub name ...")
    new.add_argument(
        "--budget", metavar="MACS", type=_count, help="the most multiply-adds, as 300M (default: the space's mean)"
    )
    new.add_argument(
        "--gpus", metavar="N", type=number(0, 1024), help="GPUs of the run (default: those of this machine)"
    )
    new.add_argument("--hours", metavar="H", type=_hours, default=8.0, help="how long it may run (default: 8)")

    check = add_command("check", _check, "tell what a recipe will do: data, steps, costs within reach, memory")
    check.add_argument("recipe", metavar="RECIPE", nargs="?", help=A_RECIPE)
    check.add_argument(
        "--ranks", metavar="N", type=int, help="processes that the run will have (default: 1, or the config file's)"
    )
    check.add_argument("--config_file", metavar="FILE", help="Accelerate's config file of the run, for its memory")
    check.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16"], help="precision (default: no, or the config file's)"
    )
    check.add_argument(
        "-o",
        "--output",
        metavar="FILE.png",
        help="draw the first images of the training there; tells how fast they are read",
    )
    check.add_argument("--images", metavar="N", type=int, help="how many are drawn (16)")
    check.add_argument("--schema", action="store_true", help="print the JSON Schema of recipe files, for editors")
    add_json(check)
    add_overrides(check)

    recipes = add_command("recipes", _recipes, "list the recipes that come with vitas, or print one")
    recipes.add_argument("name", metavar="NAME", nargs="?", help="print this one: vitas recipes search_1G > mine.yaml")
    recipes.add_argument("--folder", action="store_true", help="print the folder that holds recipes/ and launch/")


def _new(options: argparse.Namespace) -> None:
    from vitas.runs import new

    print(new.write(options.source, budget=options.budget, gpus=options.gpus, hours=options.hours), end="")


def _count(text: str) -> float:
    number = text[:-1] if text[-1:] in "kMG" else text
    try:
        value = float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[len(number) :], 1.0)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number as 300M or 1.3G, got {text}")
    return value


def _hours(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of hours, got {text}")
    return value


def _check(options: argparse.Namespace) -> None:
    from vitas import recipe

    if options.schema:
        print(json.dumps(recipe.schema(), indent=1))
        return
    if options.recipe is None:
        raise UserError("check: which recipe? vitas check RECIPE, or vitas check --schema")
    if options.images is not None and options.output is None:
        raise UserError("--images: where to? Add -o FILE.png")
    settings = recipe.load(options.recipe, options.overrides)
    from vitas.runs import check, pictures

    backend = check.backend(options.config_file, options.ranks, options.mixed_precision)
    images = 16 if options.images is None else options.images
    file = options.output and expanded(options.output)
    if file:
        pictures.check(settings, file, images)
    print_facts(check.facts(settings, backend, file and (file, images)), options.json)


def _recipes(options: argparse.Namespace) -> None:
    ours = shipped.recipes()
    if options.folder:
        print(shipped.folder())
    elif options.name is None:
        from vitas.spaces.named import NAMED

        for name, file in ours.items():
            if not name.startswith("_"):
                print(f"{name:<20}{shipped.summary(file)}")
        print("\nSearch spaces, for space.extends:")
        for name, space in NAMED.items():
            print(f"{name:<20}{space.words}")
    elif options.name in ours:
        print(ours[options.name].read_text(), end="")
    else:
        raise UserError(f"unknown recipe {options.name}{did_you_mean(options.name, ours)}")
