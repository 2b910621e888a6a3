"""The ground under every recipe: strict sections, and errors that a user can act on."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

EXIT_STOPPED = 75
"""Exit code of a run that has saved, and wants to be started again (EX_TEMPFAIL)."""


class UserError(ValueError):
    """A mistake in the user's input. The message is one line."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class RankError(UserError):
    """What one rank alone ran into, such as a full disk: that rank prints it, for the others do not know."""


class RankLost(RankError):
    """Another rank has ended, or does not answer: no mistake of the user."""

    exit_code = 1


class SourceLost(RankError):
    """Images cannot be read for the moment, such as from a server that does not answer: worth another start later."""

    exit_code = EXIT_STOPPED


def words_of(error: UserError) -> str:
    """The line of an error; one that comes from a worker process has its traceback before it."""
    return str(error).strip().rpartition(f"{type(error).__name__}: ")[2]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    The docstring under a field is its help text, in `vitas check --schema` and in editors.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, serialize_by_alias=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        for part in value if isinstance(value, list) else [value]:
            # pydantic reads `true` as 1; in a recipe that is always a mistake.
            if isinstance(part, bool) and "bool" not in str(annotation):
                what = _type_name(annotation) if part is value else "numbers or words"
                raise ValueError(f"expected {what}, got {str(part).lower()}")
            if isinstance(part, int) and abs(part) >= 2**63:
                raise ValueError("expected a number of fewer than 19 digits")
            if isinstance(part, str) and "\0" in part:
                raise ValueError("expected text without null characters")
        return value


S = TypeVar("S", bound=Section)


def parse(section: type[S], values: Any, *, source: str) -> S:
    """Builds `section` from plain YAML values.

    Raises:
        UserError: One line that names `source`, the dotted key, what was expected and what came instead.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected keys and values, got {type(values).__name__}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # An unknown key is most often the cause of what else is wrong: name it first.
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_explain(section, problems[0])}{more}") from None


def read_yaml(file: Path | str, *, otherwise: str = "not YAML") -> Any:
    """The values of a YAML or JSON file.

    Raises:
        UserError: The file is missing, or `otherwise`.
    """
    with reading_yaml(file, otherwise=otherwise):
        return yaml.safe_load(Path(file).read_text())


@contextmanager
def reading_yaml(source: object, *, otherwise: str = "not YAML") -> Iterator[None]:
    """Turns whatever PyYAML runs into within `source` to one line that says `otherwise`."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    except Exception as error:  # its constructors let through KeyError, RecursionError and more
        raise UserError(f"{source}: {otherwise}: {one_line(error) or type(error).__name__}") from None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean X?)` for the member of `names` nearest to `name`, or nothing.

    Of dotted names the last part decides, so that a key in the wrong section finds its place.
    """
    ends: dict[str, str] = {}
    for candidate in names:
        ends.setdefault(candidate, candidate)
        ends.setdefault(candidate.rpartition(".")[2], candidate)
    close = get_close_matches(name, ends, n=1) or get_close_matches(name.rpartition(".")[2], ends, n=1)
    return f" (did you mean {ends[close[0]]}?)" if close else ""


def keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of `section`, those of its sub-sections included; `*` stands for a name that the user gives."""
    names = []
    for attribute, field in section.model_fields.items():
        name = prefix + (field.alias or attribute)
        names.append(name)
        if get_origin(field.annotation) is dict:
            name += ".*"
            names.append(name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += keys(kind, f"{name}.")
    return names


def one_line(text: object) -> str:
    """The text of an error from elsewhere, on one line, shortened to 300 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:297] + "..."


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring = 4, 20, 20, 300


def _shown(value: Any) -> str:
    """A value from YAML, however large or deep, on one line."""
    try:
        return one_line(_short.repr(value))
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return f"a very large {type(value).__name__}"


def _explain(section: type[BaseModel], problem: Any) -> str:
    where = one_line(".".join(str(part) for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{did_you_mean(where, keys(section))}"
    if problem["type"] == "invalid_key":
        return f"{where}: expected a word as key"
    if problem["type"] == "missing":
        return f"{where}: required, and missing"
    message = one_line(problem["msg"].removeprefix("Value error, "))
    if problem["type"] != "value_error":
        message = "expected keys and values" if problem["type"] == "model_type" else message
        message = message.replace("Input should be", "expected").replace("String should match", "expected a match of")
        message = re.sub(r"^\w+ should have", "expected", message)
        message += f", got {_shown(problem['input'])}"
    return f"{where}: {message}" if where else message


def _type_name(annotation: Any) -> str:
    if choices := getattr(annotation, "__args__", None):
        return " or ".join(str(choice) for choice in choices)
    text = str(getattr(annotation, "__name__", annotation))
    return {"int": "a whole number", "float": "a number", "str": "a text"}.get(text, text)
