"""The commands that show what runs did: vitas report | compare | dashboard."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitas.commands.common import AddCommand
from vitas.files import expanded


def add(add_command: AddCommand) -> None:
    """Adds the commands."""
    report = add_command(
        "report",
        _report,
        "write the page of a run: what was asked for, how it goes, what came out",
        "It needs the run folder alone, at any stage. A run writes its page itself, and keeps it fresh.",
    )
    report.add_argument("run", metavar="RUN", help="the folder of a run, such as runs/quickstart")
    report.add_argument("-o", "--output", metavar="FILE.html", help="default: report.html in the folder")

    compare = add_command(
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

    dashboard = add_command(
        "dashboard",
        _dashboard,
        "save a dashboard of a wandb project: its supernets, searches and retrainings",
        "Needs the extra: pip install 'vitas[dashboard]'.",
    )
    dashboard.add_argument("project", metavar="[ENTITY/]PROJECT", help="the project (tracking.project)")
    dashboard.add_argument("-o", "--output", metavar="FILE.json", help="write it there, without the service")


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
