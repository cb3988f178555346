"""`toto list`, `show`, `weights list`: what there is, and what a recipe comes to. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto.backbones.config import BACKBONES
from toto.heads.config import HEADS
from toto.jobs.console import say
from toto.recipe.derived import describe
from toto.recipe.reader import (
    PROBE_VERB,
    list_recipes,
    read_probe_recipe,
    read_recipe,
    recipe_verb,
)
from toto.recipe.settings import all_sections, sections_of
from toto.recipe.yaml_reader import dump_yaml
from toto.registry import Registry, import_plugin
from toto.tasks.config import FEATURE_NETWORKS, TASKS
from toto.tokenizers.config import TOKENIZERS
from toto.tokenizers.official import OFFICIAL, read_record, weights_path
from toto.training.deepspeed_settings import deepspeed_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["REGISTRIES", "describe_settings", "list_family", "list_weights", "show_recipe"]

REGISTRIES: dict[str, Registry[Any]] = {
    "tokenizers": TOKENIZERS,
    "backbones": BACKBONES,
    "heads": HEADS,
    "tasks": TASKS,
    "feature-networks": FEATURE_NETWORKS,
}


NO_MEANING = "(no description: its class gives none, with pydantic's Field(description=...))"


def list_family(family: str, *, imports: Sequence[str]) -> None:
    """Print the names of a family, each with the first line of its description.

    Args:
        family: a key of REGISTRIES, or `recipes`.
        imports: plug-ins to import first.
    """
    for reference in imports:
        import_plugin(reference, Path.cwd())
    if family == "recipes":
        rows = [(entry.path.stem, entry.verb, entry.title) for entry in list_recipes()]
    else:
        registry = REGISTRIES[family]
        rows = [(name, "", _first_line(registry.get(name))) for name in registry.names()]
    width = max((len(row[0]) for row in rows), default=0)
    for name, verb, text in rows:
        say(f"{name:<{width}}  {verb + '  ' if verb else ''}{text}".rstrip())


def show_recipe(name: str, overrides: Sequence[str], *, imports: Sequence[str] = ()) -> None:
    """Print the resolved recipe as YAML, then as comments the numbers and settings derived of it.

    A protocol of probes has none.

    Args:
        name: of the recipe.
        overrides: `a.b=value`.
        imports: plug-ins to import first, besides those that the recipe names.

    Raises:
        RecipeError: every mistake of the recipe.
    """
    for reference in imports:
        import_plugin(reference, Path.cwd())
    if recipe_verb(name) == PROBE_VERB:
        protocol = read_probe_recipe(name, overrides)
        say(dump_yaml(protocol.model_dump(mode="json")).rstrip())
        return
    recipe = read_recipe(name, overrides)
    say(dump_yaml(recipe.model_dump(mode="json")).rstrip())
    for what, value in describe(recipe):
        say(f"# {what}: {value}")
    if recipe.training.engine != "local":
        settings = deepspeed_settings(recipe.training, recipe.optimizer)
        say(f"# given to DeepSpeed: {json.dumps(settings)}")


def describe_settings(path: str | None, *, imports: Sequence[str]) -> None:
    """Print every setting of a recipe with its type, its default and its meaning.

    Args:
        path: a section or a setting, such as `training` or `training.steps`; None for all.
        imports: plug-ins to import first, whose components are listed too.

    Raises:
        UserError: there is no such section or setting.
    """
    for reference in imports:
        import_plugin(reference, Path.cwd())
    sections = all_sections() if path is None else sections_of(path)
    for number, section in enumerate(sections):
        if number:
            say("")
        say(f"{section.title}{f': {section.about}' if section.about else ''}")
        rows = section.settings
        names = max((len(one.name) for one in rows), default=0)
        kinds = max((len(one.kind) for one in rows), default=0)
        for one in rows:
            default = one.default if one.default == "required" else f"default: {one.default}"
            say(f"  {one.name:<{names}}  {one.kind:<{kinds}}  {default}")
            say(f"  {'':<{names}}  {one.meaning or NO_MEANING}")


def list_weights() -> None:
    """Print the published weights: what they are, from where, how large, and whether they are here.

    Raises:
        CheckpointError: the record of those that are here is damaged.
    """
    for name, official in OFFICIAL.items():
        say(f"{name}: {official.title}")
        say(f"  licence: {official.licence}")
        record = read_record(name)
        for file in official.files:
            say(f"  {file.name}: {file.address}")
            if file.name in record:
                received = record[file.name]
                say(f"    received: {received.size:,} bytes, SHA-256 {received.sha256}")
            else:
                say(f"    size: {file.size or 'unknown'}")
        path = weights_path(name)
        say(f"  here: {path}" if path.is_file() else f"  not here: toto weights get {name}")


def _first_line(component: type[Any]) -> str:
    return (component.__doc__ or "").strip().split("\n")[0]
