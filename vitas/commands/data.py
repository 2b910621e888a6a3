"""The commands that make images ready to be read: vitas index | prepare."""

from __future__ import annotations

import argparse

from vitas.commands.common import AddCommand, number
from vitas.files import expanded


def add(add_command: AddCommand) -> None:
    """Adds the commands."""
    index = add_command(
        "index",
        _index,
        "note how many rows shards have, their labels, and where in a tar each image lies",
        "A run on a stream does so by itself, once; with the file beside the shards, none has to.",
    )
    index.add_argument("source", metavar="SHARDS", help="what data.train names: 'shards/train-{0000..1023}.tar'")
    index.add_argument("-o", "--output", metavar="FILE", help="default: vitas_index.json beside the shards")
    index.add_argument("--image_column", metavar="NAME", help="the column of images, if it cannot be told")
    index.add_argument("--label_column", metavar="NAME", help="the column of labels, if it cannot be told")

    preparing = add_command(
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
        preparing.add_argument(f"--{name}", metavar="N", type=number(1, most), default=default, help=what + shown)


def _index(options: argparse.Namespace) -> None:
    from vitas.data import sources
    from vitas.sections import Data

    columns = {"image_column": options.image_column, "label_column": options.label_column}
    data = Data(train=options.source, test="", streaming=True, **columns)
    file, index = sources.write_index(data, options.output and expanded(options.output))
    print(f"{file}: {len(index.labels):,} rows in {len(index.counts):,} shards")


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
