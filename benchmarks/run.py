"""Measures steps and writes the tables of docs/PERFORMANCE.md: a few minutes on a machine that does nothing else.

    OMP_NUM_THREADS=1 python benchmarks/run.py [--before CHECKOUT] [--device cuda] [--only step] [--steps 9]

What stands between the marks of a table is replaced; the tables of another device stay as they are.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "PERFORMANCE.md"
PARTS = ("vitas", "mkl", "turned", "layers", "waits")


def runs(device: str, halves: bool) -> dict[str, list[str]]:
    """The benchmarks of a device, by the names of their tables."""
    large = "128" if device == "cuda" else "16"
    found = {
        "step": ["step.py", "--batch", large],
        "step of twice the batch": ["step.py", "--batch", str(2 * int(large)), "--ways", "plain,vitas"],
        "small step": ["step.py", "--recipe", "quickstart", "--classes", "10", "--batch", "64"],
        "parts": ["step.py", "--batch", large, "--ways", ",".join(PARTS)],
        "parts of a small step": ["step.py", "--recipe", "quickstart", "--classes", "10", "--batch", "64", "--ways",
                                  ",".join(PARTS)],
        "retraining": ["retrain.py", "--batch", large],
    }  # fmt: skip
    if halves:
        found["step in bfloat16"] = [*found["step"], "--precision", "bf16"]
        found["retraining in bfloat16"] = [*found["retraining"], "--precision", "bf16"]
    if device == "cuda":
        found["retraining, compiled"] = [*found["retraining"], "--compile", "--warm", "5"]
        found["retraining in bfloat16, compiled"] = [*found["retraining in bfloat16"], "--compile", "--warm", "5"]
    return found


def machine(device: str) -> str:
    """What is measured on, in words."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    if not name and Path("/proc/cpuinfo").exists():
        name = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    return f"{name or platform.processor()}, torch {torch.__version__}"


def put(page: str, name: str, table: str) -> str:
    """The page with another table of that name; a new one comes at the end."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = f"{begin}\n```text\n{table.rstrip()}\n```\n{end}"
    if begin not in page:
        return f"{page.rstrip()}\n\n{whole}\n"
    return page[: page.index(begin)] + whole + page[page.index(end) + len(end) :]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to measure, too")
    arguments.add_argument("--steps", type=int, default=9)
    arguments.add_argument("--only", action="append", help="the name of a table; may be given several times")
    arguments.add_argument("--json", type=Path, help="write the figures here, too")
    options = arguments.parse_args()
    halves = options.device == "cuda" or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    known = runs(options.device, halves)
    if unknown := {*(options.only or [])} - {*known}:
        arguments.error(f"--only: expected some of {', '.join(known)}; got {', '.join(unknown)}")
    figures: dict[str, Any] = {}
    for name in options.only or known:
        script, *rest = known[name]
        if options.before and "parts" not in name:
            rest += ["--before", str(options.before)]
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [sys.executable, str(HERE / script), *rest, "--device", options.device, "--json", file.name,
                       *([] if "--steps" in rest else ["--steps", str(options.steps)])]  # fmt: skip
            print(f"{name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
            table = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures[name] = json.loads(Path(file.name).read_text())
        print(table, flush=True)
        told = f"{machine(options.device)}\n{table}"
        PAGE.write_text(put(PAGE.read_text(), f"{name} on {options.device}", told))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
