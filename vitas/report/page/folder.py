"""What lies in a run folder, at any stage, of any version: what is missing, cut or damaged is left out, and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vitas.config import Section, UserError, one_line, parse
from vitas.files import read_lines
from vitas.recipe import Recipe
from vitas.report.numbers import is_number
from vitas.spaces.architecture import Architecture
from vitas.spaces.space import SearchSpace

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's is ten times faster, where it is built in."""

T = TypeVar("T")
S = TypeVar("S", bound=Section)

TIMES = "times.json"
"""Where a run notes how long its stages take, and on what: see `vitas.runs.reporting`."""


@dataclass
class Folder:
    """A run folder as it is read. Values are as they lie on disk; `recipe` and `space` are None if they do not parse.

    Raises:
        UserError: There is no such folder.
    """

    path: Path
    told: list[str] = field(default_factory=list)
    """What could not be read."""

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such folder; expected that of a run, such as runs/quickstart")
        self.values: dict[str, Any] = self._read("recipe.yaml", _yaml, dict) or {}
        self.recipe = self._parsed(Recipe, self.values)
        self.space = self.recipe.space if self.recipe else self._parsed(SearchSpace, self.values.get("space"), "space")
        self.times = list(filter(_is_time, self._read(TIMES, json.loads, list) or []))
        self.evaluation = {
            name: row
            for name, row in (self._read("evaluation.json", json.loads, dict) or {}).items()
            if isinstance(row, dict) and is_number(row.get("top1"))
        }
        first = str(self.section("evolve").get("name", "evolution"))
        names = sorted(file.parent.name for file in self.path.glob("*/candidates.jsonl"))
        self.searches = sorted(names, key=lambda name: name != first)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return self._lines("metrics.jsonl", _is_metric)

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.values.get("name") or self.path.resolve().name)

    @property
    def stages(self) -> list[str]:
        """The stages that were asked for."""
        stages = self.values.get("stages")
        return [str(stage) for stage in stages] if isinstance(stages, list) else []

    def section(self, name: str) -> dict[str, Any]:
        """A section of the recipe; empty if there is none."""
        found = self.values.get(name)
        return found if isinstance(found, dict) else {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the first training that is there was made with."""
        made = (self.made_with(stage) for stage in ("supernet", *self.trained))
        return next(filter(None, made), {})

    def made_with(self, stage: str) -> dict[str, Any]:
        """The settings that what is in a stage's folder was made with; empty if there are none."""
        return self._read(f"{stage}/settings.yaml", _yaml, dict) or {}

    @property
    def classes(self) -> int | None:
        """How many classes the images have, if that is known by now."""
        known = self.settings.get("classes")
        if isinstance(known, dict) and known:
            return len(known)
        return self.recipe.data.num_classes if self.recipe else None

    @property
    def windows(self) -> dict[str, dict[str, tuple[float, float]]]:
        """For each budget, by name, its windows; a single one has the name `""`."""
        if self.recipe:
            return {name: budget.windows() for name, budget in self.recipe.every_budget.items()}
        pairs = {name: pair for name, pair in self.section("budget").items() if isinstance(pair, list)}
        return {"": {name: (pair[0], pair[1]) for name, pair in pairs.items() if len(pair) == 2}}

    @cached_property
    def trained(self) -> dict[str, bool]:
        """The folders of `retrain` and `baseline` in which something is trained, and whether it is done."""
        folders = sorted(
            file.parent for stage in ("retrain", "baseline") for file in self.path.glob(f"{stage}/**/architecture.yaml")
        )
        return {str(one.relative_to(self.path)): (one / "model.safetensors").is_file() for one in folders}

    def candidates(self, search: str) -> list[dict[str, Any]]:
        """The candidates of a search in their order, each once."""
        lines = self._lines(f"{search}/candidates.jsonl", _is_candidate)
        return list({line["key"]: line for line in reversed(lines)}.values())[::-1]

    def front(self, search: str) -> list[dict[str, Any]]:
        """The front of a search."""
        return list(filter(_is_candidate, self._read(f"{search}/front.json", json.loads, list) or []))

    def best(self, search: str) -> dict[str, Architecture]:
        """The best architecture of each budget, by what `retrain.architecture` calls it."""
        files = sorted(self.path.glob(f"{search}/best*.yaml"))
        found = {file.stem.replace("_", ":", 1): self.architecture(file) for file in files}
        return {name: architecture for name, architecture in found.items() if architecture}

    def rankings(self) -> list[dict[str, Any]]:
        """The tables of stage `rank`."""
        found = self._read("rank/ranking.json", json.loads, dict) or {}
        tables = found.get("tables") or []
        return list(filter(_is_ranking, tables)) if isinstance(tables, list) else []

    def architecture(self, file: Path) -> Architecture | None:
        """The architecture of a file, if it holds one."""
        return self.attempt(file.name, lambda: Architecture.from_yaml(file))

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """What `work` makes, or None: whatever a run of another version or a kill has left must not end a report."""
        try:
            return work()
        except Exception as error:
            self.tell(f"{what}: {one_line(error) or type(error).__name__}")
            return None

    def tell(self, text: str) -> None:
        """Notes what could not be read, once."""
        if text not in self.told:
            self.told.append(text)

    def _read(self, name: str, load: Callable[[str], Any], kind: type[T]) -> T | None:
        """The content of a file in the folder, if it is there and of this kind."""
        file = self.path / name
        if not file.is_file():
            return None
        found = self.attempt(name, lambda: load(file.read_text()))
        if isinstance(found, kind):
            return found
        self.tell(f"{name}: damaged, and passed over")
        return None

    def _lines(self, name: str, sound: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        return self.attempt(name, lambda: read_lines(self.path / name, sound, tell=self.tell)) or []

    def _parsed(self, kind: type[S], values: Any, where: str = "recipe.yaml") -> S | None:
        """The section, if this version knows all that is in it."""
        if not values:
            return None
        return self.attempt(where, lambda: parse(kind, values, source="read by another version"))


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _is_metric(line: dict[str, Any]) -> bool:
    return isinstance(line.get("stage"), str) and is_number(line.get("step"))


def _is_time(line: Any) -> bool:
    known = isinstance(line, dict) and isinstance(line.get("stage"), str)
    return known and is_number(line.get("seconds")) and is_number(line.get("devices"))


def _is_ranking(table: Any) -> bool:
    try:
        return bool(table["architectures"]) and is_number(table["rankings"]["supernet"]["tau"])
    except (KeyError, TypeError):
        return False


def _is_candidate(line: Any) -> bool:
    shape = line.get("architecture") if isinstance(line, dict) else None
    if not isinstance(shape, dict) or not isinstance(line.get("key"), str) or not is_number(line.get("macs")):
        return False
    blocks = shape.get("blocks")
    widths = ("heads", "qkv_dim", "mlp_dim")
    return (
        is_number(shape.get("patch_size"))
        and is_number(shape.get("embed_dim"))
        and isinstance(blocks, list)
        and all(
            block is None or (isinstance(block, dict) and all(is_number(block.get(name)) for name in widths))
            for block in blocks
        )
    )
