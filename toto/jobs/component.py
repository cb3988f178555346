"""A component outside of a recipe: a shell argument, or what a file says of its own."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ValidationError, create_model

from toto.errors import RecipeError, UserError
from toto.recipe.messages import explain
from toto.recipe.yaml_reader import parse_value
from toto.registry import Component, Config, Registry

__all__ = ["described_component", "parse_component"]

C = TypeVar("C", bound=Component)


def parse_component(registry: Registry[C], text: str) -> C:
    """The component that `dvae` or `{name: dvae, num_codes: 64}` describes.

    Raises:
        UserError: the text is no YAML.
        RecipeError: its mistakes.
    """
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is no YAML value. Write a name or '{{name: ...}}'") from error
    return described_component(registry, value, text)


def described_component(registry: Registry[C], description: Any, where: str) -> C:
    """The component that a name or a mapping describes.

    Args:
        registry: of its family.
        description: as a recipe would hold it.
        where: what messages call the place of the description.

    Raises:
        RecipeError: its mistakes, such as a plug-in's name before the plug-in is imported.
    """
    raw = {registry.family: description}
    field: Any = (Annotated[Component, registry], ...)
    schema = create_model("Argument", __base__=Config, **{registry.family: field})
    try:
        argument = schema.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(where, explain(error, schema, raw)) from None
    component: C = getattr(argument, registry.family)
    return component
