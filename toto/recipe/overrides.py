"""`--set a.b=value`: one value of a recipe replaced from the command line."""

from __future__ import annotations

from typing import Any

import yaml

from toto.errors import Problem, RecipeError
from toto.recipe.yaml_reader import parse_value

__all__ = ["apply_override"]


def apply_override(raw: dict[str, Any], override: str, where: str) -> None:
    """Put `a.b=value` into a recipe's mapping, the value read as YAML.

    Args:
        raw: changed in place; a component written as a bare name becomes a mapping.
        override: what stood behind `--set`.
        where: what messages call the recipe.

    Raises:
        RecipeError: no `key=value`, no YAML, or a path through something that is no section.
    """
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        problem = Problem(f"--set {override}", "no `key=value`", "Write --set training.steps=100")
        raise RecipeError(where, [problem])
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        problem = Problem(f"--set {dotted}", f"{text!r} is no YAML value", "Quote it")
        raise RecipeError(where, [problem]) from error
    *parents, last = dotted.split(".")
    section: Any = raw
    for parent in parents:
        if isinstance(section.get(parent), str):
            section[parent] = {"name": section[parent]}
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            problem = Problem(f"--set {dotted}", f"{parent} is no section", "Set it as a whole")
            raise RecipeError(where, [problem])
    section[last] = value
