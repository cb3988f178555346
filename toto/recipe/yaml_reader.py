"""YAML as people expect it: 3e-4 is a number, `off` is a word, a key stands once."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from toto.errors import Problem, RecipeError
from toto.terminal import plain

__all__ = ["dump_yaml", "parse_value", "quote", "read_yaml"]

# Far beyond any recipe, and read in a second.
MAX_CHARACTERS = 2**20
MAX_DEPTH = 50
MAX_WEIGHT = 100_000


class _Loader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2's core schema, and duplicate keys refused."""

    # Begins empty: PyYAML's own resolvers are those of YAML 1.1.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} cannot be a key; a key is one word",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice; keep one of the two, line {line}",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what a reader of YAML 1.1 and one of 1.2 read alike.

    Floats have a point, and a string that either would read as something else is in quotes.
    """


_FLOAT = (
    r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$"
    r"|^\.(?:nan|NaN|NAN)$"
)
# Tag, what it looks like, and the first characters of that.
_SCALARS: list[tuple[str, str, list[str]]] = [
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
]
for _tag, _pattern, _first in _SCALARS:
    for _kind in (_Loader, _Dumper):  # the dumper has those of 1.1 already
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        RecipeError: unreadable, not YAML, a duplicate key, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [Problem("(file)", str(error), "Check the path")]) from error
    try:
        value = _load(text)
    except yaml.YAMLError as error:
        raise RecipeError(str(path), [_yaml_problem(error, text)]) from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        problem = Problem("(file)", f"holds {found}, not a mapping", "Write `key: value` lines")
        raise RecipeError(str(path), [problem])
    return value


def parse_value(text: str) -> Any:
    """One value as `--set key=value` gives it, read as YAML.

    Raises:
        yaml.YAMLError: the text is no YAML value.
    """
    return _load(text)


def dump_yaml(value: dict[str, Any]) -> str:
    """Return YAML text that `read_yaml` reads back to the same value; keys keep their order.

    Control characters are written as escapes, so that showing the text is safe.
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return plain(text)


def quote(text: str) -> str:
    """Return a string as one quoted line, which `parse_value` reads back to the same string."""
    line: str = yaml.dump(text, Dumper=_Dumper, default_style='"', width=math.inf)
    return line.rstrip("\n")


def _load(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        _require_bounded(text)
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except ValueError as error:  # `!!int x`, or thousands of digits
        raise yaml.YAMLError(str(error)) from error


def _require_bounded(text: str) -> None:
    """Refuse values nested so deep, or repeated so often by aliases, that nothing could read them.

    The events of YAML are read one after the other, whatever they describe; only what is made of
    them can outgrow the memory. A value's weight counts all scalars that it holds, those of its
    aliases again at each use.
    """
    weights: dict[str | None, int] = {}  # of finished anchors
    parents: list[tuple[str | None, int]] = []  # of collections that have begun: anchor, weight
    weight = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            parents.append((event.anchor, weight))
            weight = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = parents.pop()
            weights[anchor] = weight
            weight += before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in parents):
                raise _refusal(event, f"the value &{event.anchor} contains itself")
            weight += weights.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            weights[event.anchor] = 1
            weight += 1
        if len(parents) > MAX_DEPTH:
            raise _refusal(event, f"values are nested more than {MAX_DEPTH} deep")
        if weight >= MAX_WEIGHT:
            what = f"with its aliases written out it has more than {MAX_WEIGHT:,} values"
            raise _refusal(event, what)


def _refusal(event: Any, what: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)


def _yaml_problem(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        what = f"the character {chr(error.character)!r} may not stand in YAML"
        return Problem(f"line {line}", what, "Remove it, or write it as an escape in quotes")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        where = f"line {error.problem_mark.line + 1}"
        return Problem(where, str(error.problem), "Mend the YAML there")
    return Problem("(file)", str(error), "Mend the YAML")


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # In double quotes an escape is read back; `dump_yaml` writes it.
    style = None if plain(value) == value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)
