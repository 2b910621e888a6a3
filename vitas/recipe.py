"""The recipe: what a run does, as typed YAML. See `recipes/` for runnable ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from vitas import shipped
from vitas.config import Section, UserError, did_you_mean, keys, one_line, parse, reading_yaml
from vitas.files import expanded
from vitas.sections import (
    FEWEST_TRIALS,
    NAME,
    Data,
    Evaluation,
    Evolution,
    Ranking,
    Retraining,
    SupernetTraining,
    Tracking,
)
from vitas.spaces.budget import Budget, calibrate_skip
from vitas.spaces.cost import COSTS, COUNTED, MEASURED
from vitas.spaces.space import SearchSpace

Stage = Literal["supernet", "evolve", "rank", "retrain", "baseline", "evaluate"]

FILES = ("data.train", "data.test")
"""Keys whose values are files, and may be patterns."""


class Recipe(Section):
    """A whole run: supernet, evolve, retrain, evaluate."""

    name: Annotated[str, Field(pattern=NAME, max_length=128)]
    """Name of the run, and of its folder."""
    output: str = "runs"
    """Folder of the run folders."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random."""
    stages: list[Stage] = ["supernet", "evolve", "retrain", "evaluate"]
    """What is done, in this order."""
    data: Data = Data()
    """The images."""
    space: SearchSpace
    """The architectures."""
    supernet: SupernetTraining = SupernetTraining()
    """Training of the supernet."""
    budget: Budget = Budget()
    """What a found architecture may cost."""
    budgets: dict[Annotated[str, Field(pattern=NAME, max_length=64)], Budget] = {}
    """Several budgets of one search, by name: each finds a best architecture. What one leaves out is as in `budget`."""
    evolve: Evolution = Evolution()
    """The search."""
    rank: Ranking = Ranking()
    """How the supernet is compared with trainings of single architectures."""
    retrain: Retraining = Retraining()
    """Training of the found architectures, and of the uniform ViTs of stage `baseline`."""
    evaluate: Evaluation = Evaluation()
    """The final figures."""
    tracking: Tracking = Tracking()
    """Where the metrics go."""

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: list[str]) -> list[str]:
        order = list(Stage.__args__)  # pyright: ignore[reportAttributeAccessIssue]
        if not stages or sorted(set(stages), key=order.index) != stages:
            raise ValueError(f"expected some of {order}, each once and in this order, got {stages}")
        return stages

    @model_validator(mode="before")
    @classmethod
    def _what_budgets_leave_out(cls, values: Any) -> Any:
        common, named = (values.get(key) for key in ("budget", "budgets"))
        if not isinstance(common, dict) or not isinstance(named, dict):
            return values
        filled = {name: common | budget if isinstance(budget, dict) else budget for name, budget in named.items()}
        return values | {"budgets": filled}

    @model_validator(mode="after")
    def _measured_alike(self) -> Recipe:
        if self.evolve.population < 2 * len(self.budgets):
            least = 2 * len(self.budgets)
            raise ValueError(
                f"evolve.population: expected at least {least}, two for each budget, got {self.evolve.population}"
            )
        for name in ("trials", "smooth"):
            least, given = FEWEST_TRIALS * len(self.budgets), getattr(self.evolve, name)
            if 0 < given < least:
                raise ValueError(
                    f"evolve.{name}: expected 0 or at least {least}, {FEWEST_TRIALS} a budget, got {given}"
                )
        for name, budget in self.budgets.items():
            for key, value in budget.deployment.items():
                if value != self.budget.deployment[key]:
                    raise ValueError(f"budgets.{name}.{key}: costs are measured once for all budgets: set budget.{key}")
        return self

    @model_validator(mode="after")
    def _counted(self) -> Recipe:
        if self.supernet.in_budget and "supernet" in self.stages and self.supernet.trained_in is None:
            for name, budget in self.every_budget.items():
                if not budget.windows(COUNTED):
                    where = f"budgets.{name}" if name else "budget"
                    raise ValueError(f"supernet.in_budget: expected a window of {' or '.join(COUNTED)} in {where}")
        return self

    @property
    def every_budget(self) -> dict[str, Budget]:
        """The budgets of the search, by name; a single one has the name `""`."""
        return self.budgets or {"": self.budget}

    @property
    def measured(self) -> list[str]:
        """The measured costs that the search needs, as objectives or for a budget."""
        needed = {
            *self.evolve.objectives,
            *(name for budget in self.every_budget.values() for name in budget.windows()),
        }
        return [name for name in MEASURED if name in needed]

    def skip_probabilities(self, num_classes: int) -> dict[str, float]:
        """The skip probability for each budget: the one given, or the one calibrated to it.

        Raises:
            UserError: No probability brings the subnets into a budget.
        """
        if self.supernet.skip is not None:
            return dict.fromkeys(self.every_budget, self.supernet.skip)
        return {name: calibrate_skip(self.space, budget, num_classes) for name, budget in self.every_budget.items()}

    @property
    def ranking_schedule(self) -> Retraining:
        """The schedule of the trainings of stage `rank`: that of `retrain`, shortened, from new weights."""
        return self.retrain.over(self.rank.epochs or self.retrain.epochs / 4, "scratch")

    @property
    def trial_schedule(self) -> Retraining:
        """The schedule of the trials of a search: that of `retrain`, shortened."""
        return self.retrain.short(self.evolve.trial_epochs or self.retrain.epochs / 4, self.evolve.trial_init)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return expanded(self.output) / self.name

    @property
    def supernet_folder(self) -> Path:
        """The folder of the supernet: this run's, or the one that `supernet.from` names."""
        if self.supernet.trained_in is None:
            return self.folder / "supernet"
        named = expanded(self.supernet.trained_in)
        return named / "supernet" if (named / "supernet").is_dir() else named

    @property
    def search_folder(self) -> Path:
        """The folder of the search that found what is retrained."""
        return expanded(self.retrain.search) if self.retrain.search else self.folder / self.evolve.name


def load(file: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, with what it extends, and applies `key=value` overrides.

    Args:
        file: A file, or the name of a recipe that comes with the package.
        overrides: Settings in place of the recipe's, such as `supernet.epochs=10`.

    Raises:
        UserError: One line that names file and key, what was expected, and the nearest valid name.
    """
    found = shipped.find(str(expanded(file)))
    if found is None:
        near = did_you_mean(Path(file).name.removesuffix(".yaml"), shipped.recipes())
        raise UserError(f"{one_line(file)}: No such file or directory{near}")
    values = _read(found, ())
    source = str(file)
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        shown = one_line(override)
        if not equals or not key:
            raise UserError(f"{shown}: expected key=value, such as supernet.epochs=10")
        known = keys(Recipe)
        if not any(fnmatchcase(key, pattern) for pattern in known):
            raise UserError(f"{shown}: unknown key {one_line(key)}{did_you_mean(key, known)}")
        try:
            with reading_yaml(shown):
                value = yaml.load(text, _Loader)
        except UserError:
            if key not in FILES:
                raise
            value = text  # to YAML `*.tar` is an alias, and `{a,b}/*.tar` a broken mapping
        if key in FILES and given.setdefault(key, value) != value:
            raise UserError(f"{override}: {key} is given twice; quote braces, or the shell takes them apart")
        *path, last = key.split(".")
        section = values
        for part in path:
            below = section.get(part, {})
            if not isinstance(below, dict):
                raise UserError(f"{source}: {part}: expected keys and values")
            section[part] = section = dict(below)  # a copy: YAML's `*name` has two sections share one
        section[last] = value
        if path == ["budget"] and last in COSTS:
            _is_of_use(last, values, shown)
        source = one_line(" ".join([str(file), *overrides]))
    return parse(Recipe, values, source=source)


def _is_of_use(cost: str, values: dict[str, Any], shown: str) -> None:
    """Refuses another `budget` in a recipe whose `budgets` have all their own: nothing would follow from it."""
    named = values.get("budgets")
    if isinstance(named, dict) and named and all(isinstance(one, dict) and one.get(cost) for one in named.values()):
        keys = " and ".join(f"budgets.{name}.{cost}" for name in named)
        raise UserError(f"{shown}: has no effect beside {keys}; set these, or budgets={{}}")


def of_run(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run, as `load` gives it, with name and output of where the run is now, not where it was made.

    Raises:
        UserError: There is no run.
    """
    place = folder.resolve()
    here = [f"name={json.dumps(place.name)}", f"output={json.dumps(str(place.parent))}"]
    return load(folder / "recipe.yaml", [*here, *overrides])


def dump(recipe: Recipe) -> str:
    """The YAML of the whole, resolved recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def schema() -> dict[str, Any]:
    """The JSON Schema of recipe files, in which nothing is required: `extends` or an override may bring the rest."""
    whole = Recipe.model_json_schema()
    whole["properties"]["extends"] = {
        "type": "string",
        "description": "The recipe whose settings this one changes: a file, seen from this one, or a shipped name.",
    }
    for section in (whole, *whole["$defs"].values()):
        section.pop("required", None)
    return whole


def _read(file: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """The merged values of a recipe file and of those it extends."""
    chain = (*extended_by, file.resolve())
    if file.resolve() in extended_by:
        raise UserError(f"{file}: extends itself, by way of {' -> '.join(path.name for path in chain)}")
    with reading_yaml(file):
        # A runnable recipe is Python and YAML at once; its settings are the last YAML document.
        *_, values = [None, *yaml.load_all(file.read_text(), _Loader)]
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values, got {type(values).__name__}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{file}: extends: expected a file, got {parent!r}")
    # A recipe of ours extends its neighbours; copied elsewhere, it finds them by name.
    base = shipped.find(str(expanded(parent)), file.parent) or shipped.find(parent.removesuffix(".yaml"), file.parent)
    if base is None or base.is_dir():
        near = did_you_mean(parent.removesuffix(".yaml"), shipped.recipes())
        raise UserError(f"{file}: extends: {file.parent / parent}: No such file or directory{near}")
    below = _read(base, chain)
    with reading_yaml(file):
        return merge(below, values)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The settings `below` with those `above` in their place, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but `0.9e9` is a number, and a key given twice an error, not a silent last word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The values of a YAML mapping."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise ValueError(f"line {key.start_mark.line + 1}: expected a word as key")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: key {key.value} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
