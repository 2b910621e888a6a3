"""The command line: vitas run | watch | check | rank | report | compare | describe | ... (vitas --help lists all).

What a command needs is imported inside it: torch takes seconds, and a typing error should cost none.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitas import model_commands, shipped
from vitas.config import RankError, UserError, did_you_mean, one_line
from vitas.files import expanded
from vitas.version import __version__

if TYPE_CHECKING:
    from vitas.recipe import Recipe

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130

REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""What a file system says of paths that are the user's to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 2 the user's input. Our own failures raise, and so exit with 1."""
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

    def command(name: str, work: Callable[[argparse.Namespace], None], text: str, more: str = "") -> Any:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
        added.set_defaults(work=work)
        return added

    a_recipe = "a recipe file, or a name that `vitas recipes` lists"
    run = command(
        "run", _run, "do the stages of a recipe, or go on where they stopped", "The word run may be left out."
    )
    run.add_argument("recipe", metavar="RECIPE", help=a_recipe)

    watching = command(
        "watch",
        _watch,
        "show how far a run is, live, from its folder alone",
        "From any machine that sees the folder; ends when the run does, or by Ctrl-C.",
    )
    watching.add_argument("folder", metavar="RUN", help="the folder of a run")
    watching.add_argument("--once", action="store_true", help="print it once, for scripts")

    new = command(
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
        "--gpus", metavar="N", type=_number(0, 1024), help="GPUs of the run (default: those of this machine)"
    )
    new.add_argument("--hours", metavar="H", type=_hours, default=8.0, help="how long it may run (default: 8)")

    check = command("check", _check, "tell what a recipe will do: data, steps, costs within reach, memory")
    check.add_argument("recipe", metavar="RECIPE", nargs="?", help=a_recipe)
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

    rank = command("rank", _rank, "find out whether a supernet ranks architectures as training each of them alone does")
    rank.add_argument("recipe", metavar="RUN|RECIPE", help="the folder of a run with a trained supernet, or a recipe")
    rank.add_argument("--sample", metavar="N", help="architectures that are trained, of each budget (rank.sample)")
    rank.add_argument("--seeds", metavar="N", help="trainings of each (rank.seeds)")
    rank.add_argument("--epochs", metavar="N", help="epochs of a training (rank.epochs)")

    recipes = command("recipes", _recipes, "list the recipes that come with vitas, or print one")
    recipes.add_argument("name", metavar="NAME", nargs="?", help="print this one: vitas recipes search_1G > mine.yaml")
    recipes.add_argument("--folder", action="store_true", help="print the folder that holds recipes/ and launch/")

    report = command(
        "report",
        _report,
        "write the page of a run: what was asked for, how it goes, what came out",
        "It needs the run folder alone, at any stage. A run writes its page itself, and keeps it fresh.",
    )
    report.add_argument("run", metavar="RUN", help="the folder of a run, such as runs/quickstart")
    report.add_argument("-o", "--output", metavar="FILE.html", help="default: report.html in the folder")

    compare = command(
        "compare",
        _compare,
        "show several runs side by side: curves, fronts, means over seeds",
        "Runs that differ in seed and name alone are taken together.",
    )
    compare.add_argument("runs", metavar="RUN", nargs="+", help="the folders of runs")
    compare.add_argument("-o", "--output", metavar="FILE.html", help="default: compare.html")

    for draws in (report, compare):
        draws.add_argument(
            "--png", metavar="DIR", help="write the plots there as PNG, for papers, in place of the page"
        )
        draws.add_argument(
            "--json", action="store_true", help="print the figures as one JSON object, in place of the page"
        )

    describe = command("describe", _describe, "print an architecture, block by block, and its costs; or compare two")
    describe.add_argument(
        "architecture", metavar="NAME|FILE", help="a name, such as vitas_c; a YAML file, or a folder that holds one"
    )
    describe.add_argument("other", metavar="NAME|FILE", nargs="?", help="another one, to be printed beside it")
    describe.add_argument("--classes", metavar="N", type=int, default=1000, help="classes (default: 1000)")

    dashboard = command(
        "dashboard",
        _dashboard,
        "save a dashboard of a wandb project: its supernets, searches and retrainings",
        "Needs the extra: pip install 'vitas[dashboard]'.",
    )
    dashboard.add_argument("project", metavar="[ENTITY/]PROJECT", help="the project (tracking.project)")
    dashboard.add_argument("-o", "--output", metavar="FILE.json", help="write it there, without the service")

    index = command(
        "index",
        _index,
        "note how many rows shards have, their labels, and where in a tar each image lies",
        "A run on a stream does so by itself, once; with the file beside the shards, none has to.",
    )
    index.add_argument("source", metavar="SHARDS", help="what data.train names: 'shards/train-{0000..1023}.tar'")
    index.add_argument("-o", "--output", metavar="FILE", help="default: vitas_index.json beside the shards")
    index.add_argument("--image_column", metavar="NAME", help="the column of images, if it cannot be told")
    index.add_argument("--label_column", metavar="NAME", help="the column of labels, if it cannot be told")

    preparing = command(
        "prepare",
        _prepare,
        "copy images as parquet shards that read fast: shorter, mixed, with row counts and class names",
        "A call that was ended goes on with the shards that are missing.",
    )
    preparing.add_argument("source", metavar="SOURCE", help="what data.train names: a folder, shards, a Hub name ...")
    preparing.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the shards")
    preparing.add_argument(
        "--part",
        choices=["train", "test"],
        default="train",
        help="which part of the source, and what the shards' names begin with",
    )
    for name, default, most, what in (
        ("short", 320, 10_000, "pixels of the shorter side; smaller images are copied as they are"),
        ("quality", 92, 100, "of the JPEGs that images become"),
        ("shards", 256, 100_000, "how many there are"),
        ("workers", None, 1024, "processes (default: as many as cores)"),
    ):
        shown = f" (default: {default})" if default else ""
        preparing.add_argument(f"--{name}", metavar="N", type=_number(1, most), default=default, help=what + shown)

    importing = command("import", _import, "turn a checkpoint of the original release into a model")
    importing.add_argument("file", metavar="FILE.pth.tar", help="the checkpoint")
    importing.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the model")
    importing.add_argument("--config", metavar="NET.json", help="its model config, if it is not a published network")

    for trains in (run, rank):
        trains.add_argument("-v", "--verbose", action="store_true", help="show what libraries say, and their warnings")
    model_commands.add(command)

    for takes_settings in (run, check, rank):
        takes_settings.add_argument(
            "overrides", metavar="key=value", nargs="*", help="settings in place of the recipe's: supernet.epochs=10"
        )
    for has_facts in (check, describe):
        has_facts.add_argument("--json", action="store_true", help="print one JSON object")

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


def _new(options: argparse.Namespace) -> None:
    from vitas.runs import new

    print(new.write(options.source, budget=options.budget, gpus=options.gpus, hours=options.hours), end="")


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
    _print(check.facts(settings, backend, file and (file, images)), options.json)


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


def _report(options: argparse.Namespace) -> None:
    from vitas.report.page.figures import figures
    from vitas.report.page.page import page

    folder = expanded(options.run)
    _show(figures(folder), options, folder / "report.html", page)


def _compare(options: argparse.Namespace) -> None:
    from vitas.report.page import compare, compared

    found = compare.compare([expanded(run) for run in options.runs])
    if not options.json:
        print(compare.table(found))
    _show(found, options, Path("compare.html"), compared.page)


def _show(found: dict[str, Any], options: argparse.Namespace, usual: Path, page: Callable[[Any], str]) -> None:
    """Figures as JSON, as PNG, or, if neither is asked for or a file is named, as a page."""
    if options.json:
        print(json.dumps(found))
    if options.png:
        from vitas.report.page import plots

        for file in plots.write(found, expanded(options.png)):
            print(file)
    if options.output or not (options.json or options.png):
        from vitas.files import write_atomically

        file = expanded(options.output) if options.output else usual
        write_atomically(file, page(found))
        if not options.json:
            print(file)


def _describe(options: argparse.Namespace) -> None:
    from vitas.models import registry
    from vitas.report import blocks
    from vitas.spaces import cost
    from vitas.spaces.architecture import MOST_CLASSES

    if not 1 <= options.classes <= MOST_CLASSES:
        raise UserError(f"--classes: expected 1 to {MOST_CLASSES:,}, got {options.classes}")
    given = [options.architecture, *([options.other] if options.other else [])]
    named = {name: registry.find(name) for name in given}
    facts = {}
    for name, architecture in named.items():
        costs = cost.count(architecture, options.classes)
        facts[name] = {"flops_paper": costs["flops"], "macs": costs["macs"], "params": costs["params"]}
    if options.json:
        whole = {name: facts[name] | {"architecture": one.model_dump(mode="json")} for name, one in named.items()}
        _print(whole if options.other else whole[options.architecture], as_json=True)
    elif options.other:
        print("\n".join(blocks.side_by_side(named, facts)))
    else:
        architecture = named[options.architecture]
        print(architecture.to_yaml(), end="")
        _print(facts[options.architecture], as_json=False)
        print("\n".join(blocks.bars(architecture)))


def _dashboard(options: argparse.Namespace) -> None:
    from vitas.files import write_atomically
    from vitas.report import dashboard

    if options.output:
        entity, _, project = options.project.rpartition("/")
        whole = dashboard.spec(dashboard.build(project, entity))
        write_atomically(expanded(options.output), json.dumps(whole, indent=1))
        print(options.output)
    else:
        print(dashboard.save(options.project))


def _index(options: argparse.Namespace) -> None:
    from vitas.data import sources
    from vitas.sections import Data

    columns = {"image_column": options.image_column, "label_column": options.label_column}
    data = Data(train=options.source, test="", streaming=True, **columns)
    file, index = sources.write_index(data, options.output and expanded(options.output))
    print(f"{file}: {len(index.labels):,} rows in {len(index.counts):,} shards")


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most:,}, got {text}")
        return int(text)

    return read


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


def _prepare(options: argparse.Namespace) -> None:
    from vitas.data import sources
    from vitas.data.prepare import prepare

    folder = expanded(options.output)
    split = sources.open_one(options.source, f"data.{options.part}")
    how = {name: getattr(options, name) for name in ("short", "quality", "shards", "workers")}
    about = prepare(split, folder, options.part, **how)
    if reasons := about["unreadable"]:
        print(f"{len(reasons)} image(s) could not be read and were left out; all are in {folder / options.part}.json")
    size = f"{about['bytes'] / 1e9:.2f} GB"
    print(
        f"{folder}: {about['images']:,} images in {len(about['rows']):,} shards, {size}; data.{options.part}={folder}"
    )


def _import(options: argparse.Namespace) -> None:
    from vitas.models import registry, release, saved, vit
    from vitas.report import card

    config = options.config and expanded(options.config)
    architecture, state = release.convert(expanded(options.file), config)
    model = vit.from_state(architecture, state, release.PREPROCESSING)
    folder = expanded(options.output)
    try:
        saved.save_model(folder, model)
        card.write(folder)
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
