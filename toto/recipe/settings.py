"""Every setting that a recipe can have: its type, its default and what it means, from the schemas.

No torch here. Plug-ins are included once they are imported.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from toto.errors import UserError
from toto.recipe.schemas import SCHEMAS, ProbeRecipe
from toto.registry import Component, Registry, nearest

__all__ = ["Section", "Setting", "all_sections", "sections_of"]

RECIPES: dict[str, type[BaseModel]] = {**SCHEMAS, "probe": ProbeRecipe}
FILLED_IN = {"name": "the file's name", "output": "runs/NAME"}
"""What the reader of a recipe file puts in."""
SCALARS = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "anything"}
BOUNDS = (
    ("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"), ("multiple_of", "a multiple of"),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One key of a section.

    Attributes:
        name: the key.
        kind: its type, in words.
        default: as YAML writes it; "required" without one.
        meaning: its description; empty where a plug-in gives none.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys that belong together.

    Attributes:
        path: dotted, from the top of a recipe; empty for the top.
        owner: the Config class.
        title: `training`, `tokenizer, name: dvae`, or the kind of recipe for the top.
        about: the docstring of the class.
        settings: in the order of the class.
    """

    path: str
    owner: type[BaseModel]
    title: str
    about: str
    settings: tuple[Setting, ...]


def all_sections() -> list[Section]:
    """Return every section, those that occur at several paths once, at the first of them."""
    first: dict[type[BaseModel], Section] = {}
    for section in _walk_all():
        first.setdefault(section.owner, section)
    return list(first.values())


def sections_of(path: str) -> list[Section]:
    """Return the section at a dotted path and those inside it, or the one setting at that path.

    Args:
        path: such as `training`, `data.sources`, `tokenizer`, or `training.steps`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    found: dict[tuple[str, type[BaseModel]], Section] = {}
    known = set()
    for section in _walk_all():
        prefix = f"{section.path}." if section.path else ""
        known |= {section.path, *(prefix + setting.name for setting in section.settings)}
        if section.path == path or section.path.startswith(f"{path}."):
            found.setdefault((section.path, section.owner), section)
    if found:
        return list(found.values())
    for section in _walk_all():
        prefix = f"{section.path}." if section.path else ""
        only = tuple(one for one in section.settings if prefix + one.name == path)
        if only:
            found.setdefault(
                (section.path, section.owner),
                Section(section.path, section.owner, section.title, "", only),
            )
    if not found:
        guess = nearest(path, sorted(known - {""}))
        hint = f"Did you mean {guess}?" if guess else "`toto show --describe` lists all"
        raise UserError(f"no section or setting {path!r}. {hint}")
    return list(found.values())


def _walk_all() -> Iterator[Section]:
    for verb, schema in RECIPES.items():
        yield from _walk("", schema, f"a recipe of `verb: {verb}`")


def _walk(path: str, owner: type[BaseModel], title: str) -> Iterator[Section]:
    settings = [_setting(name, field, owner) for name, field in owner.model_fields.items()]
    presets = getattr(owner, "presets", {})
    if presets:
        kind = " | ".join(presets)
        settings.insert(0, Setting("preset", kind, "null", "fills in the sizes below"))
    yield Section(path, owner, title, _paragraph(owner), tuple(settings))
    for name, field in owner.model_fields.items():
        inside = f"{path}.{name}" if path else name
        for child, child_path, child_title in _children(_annotated(field), inside, owner):
            yield from _walk(child_path, child, child_title)


def _children(
    annotation: Any, path: str, owner: type[BaseModel]
) -> Iterator[tuple[type[BaseModel], str, str]]:
    """Yield the Config classes that a field can hold, each with its path and title."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        registry = _registry(arguments[1:])
        if registry is None:
            yield from _children(arguments[0], path, owner)
            return
        for name in _names(registry, owner):
            yield registry.get(name), path, f"{path}, name: {name}"
    elif origin in (Union, types.UnionType, tuple):
        for argument in arguments:
            yield from _children(argument, path, owner)
    elif origin is dict:
        yield from _children(arguments[1], f"{path}.NAME", owner)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, path, path


def _names(registry: Registry[Any], owner: type[BaseModel]) -> list[str]:
    """Return the components that a section can name: of tasks those of the recipe's verb."""
    verb = owner.model_fields["verb"].default if "verb" in owner.model_fields else None
    return [
        name
        for name in registry.names()
        if verb is None or getattr(registry.get(name), "verb", verb) == verb
    ]


def _setting(name: str, field: FieldInfo, owner: type[BaseModel]) -> Setting:
    kind = _kind(_annotated(field), owner)
    default = _default(field)
    if field.is_required():
        default = FILLED_IN.get(name, default) if "verb" in owner.model_fields else default
        default = "of the preset, or required" if getattr(owner, "presets", {}) else default
    return Setting(name, kind, default, field.description or "")


def _annotated(field: FieldInfo) -> Any:
    """Return the field's type with its constraints, which pydantic keeps apart."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _kind(annotation: Any, owner: type[BaseModel]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        registry = _registry(arguments[1:])
        if registry is None:
            return f"{_kind(arguments[0], owner)}{_bounds(arguments[1:])}"
        may_be_none = type(None) in get_args(arguments[0])
        return " | ".join([*_names(registry, owner), *(["null"] if may_be_none else [])])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        kinds = [_kind(one, owner) for one in arguments if one is not type(None)]
        return " or ".join(kinds) + (", or null" if type(None) in arguments else "")
    if origin is tuple:
        items = [_kind(one, owner) for one in arguments if one is not Ellipsis]
        return f"list of {items[0]}" if Ellipsis in arguments else f"[{', '.join(items)}]"
    if origin is dict:
        return f"mapping: name → {_kind(arguments[1], owner)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return SCALARS.get(annotation, str(annotation))


def _registry(metadata: tuple[Any, ...]) -> Registry[Any] | None:
    return next((one for one in metadata if isinstance(one, Registry)), None)


def _bounds(metadata: tuple[Any, ...]) -> str:
    """Return the bounds of a number, such as ` ≥ 0, < 1`, lower ones first."""
    constraints = [
        constraint
        for one in metadata
        for constraint in (one.metadata if isinstance(one, FieldInfo) else [one])
        if isinstance(constraint, annotated_types.BaseMetadata)
    ]
    found = [
        f" {sign} {_yaml(value)}"
        for name, sign in BOUNDS
        for constraint in constraints
        if (value := getattr(constraint, name, None)) is not None
    ]
    return ",".join(found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) and _registry(tuple(field.metadata)) is None:
        return "see below"
    return _yaml(default)


def _yaml(value: Any) -> str:
    if isinstance(value, Component):
        return value.registered_name
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)


def _paragraph(owner: type[BaseModel]) -> str:
    """Return the docstring of a class as one paragraph."""
    return " ".join((owner.__doc__ or "").split())
