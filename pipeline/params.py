"""Reads `params.yaml`, checks it and hands a stage the keys that it declares, and no others.

The typed sections live in the rooms that use them (`pipeline/<room>/params.py`), so that a new knob
in one room leaves the other rooms' stages up to date. `pipeline/schema.py` joins them for a
whole-file check.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from textwrap import shorten
from types import NoneType, SimpleNamespace
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import InputError

# Every name that params.yaml may hold at its top, generated from pipeline/schema.py. It is data,
# not a module: it changes no result, so no stage depends on it.
JSON_SCHEMA = Path(__file__).with_name("params.schema.json")
SHOWN = 100  # characters of a wrong value
NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")  # of pydantic's complaints
MOST_VALUES = 200_000  # of a file; more are a few that name one another again and again
LEAST, MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # what 32 bits hold beside 0, without loss


Settings = TypeVar("Settings")

# Beside a field's type: its value decides when a stage fails or saves, and changes no byte of what
# it makes. What was done with another value is gone on from.
SAME_BYTES = "same bytes"


class Section(BaseModel):
    """A mapping in params.yaml: unknown keys, silently converted types and numbers that are none
    (`.inf`, `.nan`) are errors.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise ValueError(
            "the name of an entry goes into commands, files and MLflow: letters of ASCII, digits, "
            "'_' and '-' only, no '-' first; rename it"
        )
    return name


def _once_each(values: list) -> list:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} stands there twice; leave one of them")
    return values


Name = Annotated[str, AfterValidator(_plain)]  # of an entry that a person adds
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Distinct = AfterValidator(_once_each)  # for lists in which a value given twice would count twice


class Part(Section):
    """Some keys of a mapping in params.yaml: what one stage reads, while others read the rest.

    The stage depends on these keys alone, so every one of them must be there.
    """


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The whole file. ruamel reads YAML 1.2, where `1e-05` (as DVC writes it) is a number.

    Raises InputError where it cannot be read, or holds no mapping.
    """
    try:
        values = YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file; give the parameter file with --params"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML: {_of_yaml(error)}") from None
    if sum(1 for _ in itertools.islice(_inside(values), MOST_VALUES)) == MOST_VALUES:
        raise InputError(
            f"{path}: holds more than {MOST_VALUES} values; write out what its aliases (*name) "
            "repeat, or take them away"
        )
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: holds no `key: value` lines; copy profiles/ or the repository's own "
            "params.yaml"
        )
    return values


def _of_yaml(error: Exception) -> str:
    """What is wrong, and in which line."""
    if isinstance(error, RecursionError):
        return "lists or mappings stand in one another too deep; write them flat"
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    return f"line {error.problem_mark.line + 1}: {' '.join(f'{error.problem}'.split())}"


def _inside(values: Any) -> Iterator[tuple[str, Any]]:
    """(dotted place, value) of all that stands in a value, itself first."""
    left = [("", values)]
    while left:
        place, value = left.pop()
        yield place, value
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(parts, dict):
            left += [(f"{place}.{name}".removeprefix("."), part) for name, part in parts.items()]


def _unfit(value: Any) -> str | None:
    """What no key takes, whatever its type."""
    if isinstance(value, float) and value and not LEAST <= abs(value) <= MOST:
        return (
            "it is computed with in 32 bits, which hold 0 and what lies between 1.2e-38 and "
            "3.4e+38; choose such a number"
        )
    if isinstance(value, int) and abs(value) >= 2**63:
        return "no integer of 64 bits is so large; choose a smaller one"
    if isinstance(value, str) and not value.strip():
        return "is empty; give it a value, or null if it may be left out"
    if isinstance(value, str) and (value != value.strip() or re.search(r"[\x00-\x1f\x7f]", value)):
        return "begins or ends with a space, or holds a control character; take that away"
    return None


def did_you_mean(name: str, known) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def check_names(values: dict[str, Any], known, path: Path | str) -> None:
    for name in values:
        if name not in known:
            raise InputError(f"{path}: unknown parameter '{name}'{did_you_mean(name, known)}")


def _fields(kind: Any, inside: tuple) -> dict[str, Any]:
    """The fields of the section that a complaint's location leads to."""
    for part in inside:
        fields = getattr(_bare(kind), "model_fields", None)
        kind = fields[part].annotation if fields else get_args(_bare(kind))[-1]  # a mapping's
    return _bare(kind).model_fields


def _bare(kind: Any) -> Any:
    """A type without its `Annotated` and its `| None`."""
    while get_origin(kind) is Annotated or NoneType in get_args(kind):
        kind = next(inner for inner in get_args(kind) if inner is not NoneType)
    return kind


def validate(kind: Any, value: Any, key: str, path: Path | str) -> Any:
    """`value` as `kind`; every complaint becomes one line that names file and key."""
    found, said = None, {}  # place → complaint
    try:
        found = TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        for problem in error.errors():
            inside = [str(part) for part in problem["loc"] if part != "[key]"]
            place = ".".join([key, *inside]).strip(".")
            said.setdefault(place, []).append(_complaint(kind, place, problem))
    for inside_, part in _inside(value):
        place = f"{key}.{inside_}".strip(".")
        if (why := _unfit(part)) and place not in said:
            said[place] = [f"parameter '{place}': {why}; it is {_shown(part)}"]
    if said:
        raise InputError("\n".join(f"{path}: {one}" for of in said.values() for one in of))
    return found


def _complaint(kind: Any, place: str, problem: Any) -> str:
    """One problem that pydantic found, in words for whoever wrote the file."""
    if problem["type"] == "extra_forbidden":
        known = _fields(kind, problem["loc"][:-1])
        return f"unknown parameter '{place}'{did_you_mean(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"parameter '{place}' is missing; add it (the repository's params.yaml shows one)"
    if problem["type"] in NO_MAPPING:
        shown = "it is empty" if problem["input"] is None else f"it is {_shown(problem['input'])}"
        return (
            f"parameter '{place}': {shown}, where `key: value` lines belong; write them below it "
            "(the repository's params.yaml shows some)"
        )
    if isinstance(problem["input"], dict):  # it is of several keys, which are named
        where = f"parameter '{place}': " if place else ""
        return f"{where}{problem['msg'].removeprefix('Value error, ')}"
    return f"parameter '{place}': {problem['msg']}, but it is {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    return shorten(repr(value), SHOWN, placeholder=" …")


def lookup(values: dict[str, Any], key: str, path: Path | str) -> Any:
    """The value at a dotted key."""
    here: Any = values
    for depth, part in enumerate(key.split(".")):
        if not isinstance(here, dict) or part not in here:
            where = ".".join(key.split(".")[:depth]) or "the file"
            hint = did_you_mean(part, here) if isinstance(here, dict) and here else ""
            raise InputError(f"{path}: parameter '{key}' is missing: {where} has no '{part}'{hint}")
        here = here[part]
    return here


_read: dict[str, Any] = {}  # of this process: a process is one stage


def read_so_far() -> dict[str, Any]:
    """Dotted key → value of all that `load_params` handed out, for the record of the run."""
    return dict(_read)


def fields_of(kind: Any) -> list[str]:
    """The keys that a stage depends on one by one; none where it depends on the whole value."""
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, Part) else []


def load_params(
    path: Path | str, reads: dict[str, tuple[str, Any]], **names: str
) -> SimpleNamespace:
    """The declared parameters of one stage, validated.

    Args:
        path: the parameter file.
        reads: attribute → (dotted key, type). `{name}` in a key is filled from `names`.

    Returns:
        A namespace with just these attributes: reading anything else fails, which is what keeps the
        `params:` lists of dvc.yaml honest.
    """
    values = read_yaml(path)
    check_names(values, json.loads(JSON_SCHEMA.read_text())["properties"], path)
    found = {}
    for attribute, (key, kind) in reads.items():
        full = key.format(**names)
        value = lookup(values, full, path)
        if fields := fields_of(kind):
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k in fields}
                _read.update({f"{full}.{k}": v for k, v in value.items()})
        else:
            _read[full] = value
        found[attribute] = validate(kind, value, full, path)
    return SimpleNamespace(**found)


def settings_of(kind: type[Settings], found: SimpleNamespace) -> Settings:
    """A dataclass of the parameters that `load_params` found under its fields' names."""
    return kind(**{field.name: getattr(found, field.name) for field in fields(kind)})  # type: ignore[arg-type]
