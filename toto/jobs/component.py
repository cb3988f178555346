"""A component as a shell argument: a name, or the mapping that a recipe would hold."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ValidationError, create_model

from toto.errors import RecipeError, UserError
from toto.recipe.messages import explain
from toto.recipe.yaml_reader import parse_value
from toto.registry import Component, Config, Registry

__all__ = ["parse_component"]

C = TypeVar("C", bound=Component)


def parse_component(registry: Registry[C], text: str) -> C:
    """The component that `dvae` or `{name: dvae, num_codes: 64}` describes.

    Raises:
        UserError: the text is no YAML.
        RecipeError: its mistakes.
    """
    try:
        raw = {registry.family: parse_value(text)}
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is no YAML value. Write a name or '{{name: ...}}'") from error
    field: Any = (Annotated[Component, registry], ...)
    schema = create_model("Argument", __base__=Config, **{registry.family: field})
    try:
        argument = schema.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(text, explain(error, schema, raw)) from None
    component: C = getattr(argument, registry.family)
    return component
