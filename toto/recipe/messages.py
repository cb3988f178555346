"""pydantic's errors in the words of toto: dotted path, what is wrong, and the mend."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from toto.errors import Problem
from toto.registry import Config, Registry, nearest

__all__ = ["explain"]


def explain(error: ValidationError, schema: type[Config], raw: dict[str, Any]) -> list[Problem]:
    """One Problem for each of pydantic's findings, but for those that follow from another."""
    details = error.errors(include_url=False)
    return [
        _explain_one(detail, schema, raw)
        for detail in details
        if not any(_is_inside(other["loc"], detail["loc"]) for other in details)
    ]


def _is_inside(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _explain_one(detail: ErrorDetails, schema: type[Config], raw: dict[str, Any]) -> Problem:
    loc = detail["loc"]
    path = ".".join(str(part) for part in loc) or "(recipe)"
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        owner = _model_at(schema, raw, loc[:-1])
        known = sorted(owner.model_fields) if owner else []
        guess = nearest(str(loc[-1]), known)
        mend = f"Did you mean {guess}?" if guess else "Remove it"
        where = f"; {owner.__name__} has {', '.join(known)}" if owner else ""
        return Problem(path, f"unknown key{where}", mend)
    if detail["type"] == "missing":
        owner = _model_at(schema, raw, loc[:-1])
        field = owner.model_fields.get(str(loc[-1])) if owner else None
        meaning = f" ({field.description})" if field and field.description else ""
        return Problem(path, "missing", f"Add `{loc[-1]}: ...`{meaning}")
    if detail["type"] in ("value_error", "component_unknown", "component_unnamed"):
        what, _, mend = detail["msg"].removeprefix("Value error, ").partition("; ")
        return Problem(path, what.rstrip(". "), mend[:1].upper() + mend[1:] or "Change it")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return Problem(path, f"{value!r} does not fit: {message}", "Change the value")


def _model_at(schema: type[Config], raw: Any, loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The Config class whose keys stand at `loc`, as the recipe's names choose it."""
    model: type[BaseModel] = schema
    annotation: Any = schema
    for part in loc:
        raw = _child(raw, part)
        if get_origin(annotation) in (dict, list, tuple):
            annotation = get_args(annotation)[-1]
        else:
            field = model.model_fields.get(str(part))
            if field is None:
                return None
            registry = next((m for m in field.metadata if isinstance(m, Registry)), None)
            annotation = _component(registry, raw) if registry else _without_none(field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif get_origin(annotation) not in (dict, list, tuple):
            return None
    return model


def _child(raw: Any, part: int | str) -> Any:
    if isinstance(raw, dict):
        return raw.get(part)
    if isinstance(raw, list) and isinstance(part, int):
        return raw[part]
    return None


def _component(registry: Registry[Any], raw: Any) -> type[BaseModel] | None:
    name = raw.get("name") if isinstance(raw, dict) else raw
    return registry.get(name) if name in registry.names() else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation
