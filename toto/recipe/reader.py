"""From a file and overrides to a checked recipe, or to one message that names every mistake."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from toto.errors import Problem, RecipeError, UserError
from toto.recipe.messages import explain
from toto.recipe.overrides import apply_override
from toto.recipe.paths import both_folders, find_path, located
from toto.recipe.rules import broken_rules
from toto.recipe.schemas import SCHEMAS, ProbeRecipe, Recipe
from toto.recipe.yaml_reader import read_yaml
from toto.registry import import_plugin, nearest
from toto.tokenizers.config import TOKENIZERS

__all__ = [
    "PROBE_VERB",
    "ListedRecipe",
    "check_recipe",
    "check_recorded",
    "find_recipe",
    "list_recipes",
    "merge",
    "read_probe_recipe",
    "read_recipe",
    "recipe_verb",
    "shipped_recipes",
    "training_recipes",
]


PROBE_VERB = "probe"


def shipped_recipes() -> Path:
    """The folder of the recipes that come with toto."""
    spec = importlib.util.find_spec("toto.recipes")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parents[2] / "recipes"


def find_recipe(name: str) -> Path:
    """The file that `recipes/x.yaml`, `x.yaml` or `x` means: yours first, then the shipped one.

    A path into any other folder means that file alone.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    given = Path(name)
    if not given.name:
        raise UserError(
            f"no recipe {name!r}: that is a folder. Name a YAML file in it, or a shipped recipe "
            "(`toto list recipes`)"
        )
    file = given if given.suffix == ".yaml" else given.with_name(f"{given.name}.yaml")
    for path in (given, file, *_shipped(file)):
        if path.is_file():
            return path
    stems = [listed.path.stem for listed in list_recipes()]
    guess = nearest(given.stem, stems)
    hint = f"Did you mean {guess}?" if guess else "`toto list recipes` shows those that come along"
    raise UserError(f"no recipe {name}. {hint}")


def _shipped(path: Path) -> list[Path]:
    """The shipped recipe of that name, unless the path leads into some other folder."""
    is_name = path.parent in (Path(), Path("recipes"))
    return [shipped_recipes() / path.name] if is_name else []


@dataclass(frozen=True)
class ListedRecipe:
    """A line of `toto list recipes`."""

    path: Path
    verb: str
    title: str


def list_recipes() -> list[ListedRecipe]:
    """The shipped recipes, by name."""
    listed = []
    for path in sorted(shipped_recipes().glob("*.yaml")):
        raw = _read_with_base(path)
        listed.append(ListedRecipe(path, str(raw.get("verb", "")), str(raw.get("title", ""))))
    return listed


def training_recipes() -> list[ListedRecipe]:
    """Those of them that `read_recipe` reads."""
    return [listed for listed in list_recipes() if listed.verb != PROBE_VERB]


def recipe_verb(name: str) -> object:
    """What a recipe names as its verb, right or wrong; None without one.

    Raises:
        UserError: no such recipe.
        RecipeError: it is no YAML.
    """
    return _read_with_base(find_recipe(name)).get("verb")


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe that trains a model or a tokenizer.

    Args:
        name: path or name, as `find_recipe` takes it.
        overrides: `a.b=value` with the value as YAML, applied in order.

    Raises:
        UserError: no such recipe, or an `imports:` entry that is not there.
        RecipeError: its mistakes, all of them.
    """
    raw, where = _read_named(name, overrides)
    raw.setdefault("output", f"runs/{raw['name']}")
    return check_recipe(raw, where)


def read_probe_recipe(name: str, overrides: Sequence[str] = ()) -> ProbeRecipe:
    """Read, override and check a protocol of probes.

    Args:
        name: path or name, as `find_recipe` takes it.
        overrides: `a.b=value` with the value as YAML, applied in order.

    Raises:
        UserError: no such recipe, or an `imports:` entry that is not there.
        RecipeError: its mistakes, all of them, or it is a recipe of another verb.
    """
    raw, where = _read_named(name, overrides)
    verb = raw.get("verb")
    if verb != PROBE_VERB:
        mend = f"Take one of `verb: {PROBE_VERB}`; `toto list recipes` shows those that come along"
        raise RecipeError(where, [Problem("verb", f"{verb!r} is no protocol of probes", mend)])
    for reference in raw["imports"]:
        import_plugin(reference, Path.cwd())
    try:
        return ProbeRecipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(where, explain(error, ProbeRecipe, raw)) from None


def _read_named(name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The mapping of a recipe with its name and its imports found, and what messages call it."""
    path = find_recipe(name)
    raw = _read_with_base(path)
    for override in overrides:
        apply_override(raw, override, str(path))
    raw.setdefault("name", path.stem)
    # Those of files are absolute already; the command line's start at the working directory.
    raw["imports"] = [
        str(Path(entry).resolve()) if entry.endswith(".py") else entry
        for entry in _imports(raw, str(path))
    ]
    return raw, str(path)


def check_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """Make the recipe that a mapping describes.

    Args:
        raw: the mapping, with `verb`, `name` and `output`.
        where: what messages call it.

    Raises:
        UserError: an `imports:` entry that is not there.
        RecipeError: its mistakes, all of them.
    """
    verb = raw.get("verb")
    if verb == PROBE_VERB:
        problem = Problem(
            "verb", "a protocol of probes trains no model", "toto probe RUN --recipe takes it"
        )
        raise RecipeError(where, [problem])
    if not isinstance(verb, str) or verb not in SCHEMAS:
        what = "missing" if verb is None else f"unknown verb {verb!r}"
        problem = Problem("verb", what, f"Write one of {', '.join(SCHEMAS)}")
        raise RecipeError(where, [problem])
    for reference in _imports(raw, where):
        import_plugin(reference, Path.cwd())
    schema = SCHEMAS[verb]
    try:
        recipe = schema.model_validate(raw)
    except ValidationError as error:
        problems = explain(error, schema, raw)
        partial, unsound = _sound_sections(schema, _without_unknown_keys(raw, error))
        raise RecipeError(where, problems + broken_rules(partial, unsound)) from None
    problems = broken_rules(recipe, set())
    if problems:
        raise RecipeError(where, problems)
    return recipe


def check_recorded(raw: dict[str, Any], where: str) -> Recipe:
    """Make the recipe that a run recorded; no code is imported.

    A tokenizer's setting that is newer than the record has the value that the run was trained
    with (`TokenizerConfig.unrecorded`), not today's default.

    Args:
        raw: RUN/recipe.yaml, or the recipe in a checkpoint.
        where: what messages call it.

    Raises:
        RecipeError: its mistakes, all of them.
    """
    sections = {
        key: dict(TOKENIZERS.get(section["name"]).unrecorded) | section
        for key in ("tokenizer", "target_tokenizer")
        if isinstance(section := raw.get(key), dict)
        and section.get("name") in TOKENIZERS.names()  # check_recipe reports other names
    }
    return check_recipe(raw | sections | {"imports": []}, where)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` upon `base`, mapping by mapping, but for two that replace those of the base whole.

    A section with another `name`, whose other keys are those of another component; and `sources`,
    whose keys are the user's own: a mixture that is written out has no source but those written.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            renamed = "name" in value and value["name"] != old.get("name")
            whole = renamed or key == "sources"
            merged[key] = value if whole else merge(old, value)
        else:
            merged[key] = value
    return merged


def _imports(raw: dict[str, Any], where: str) -> list[str]:
    """The plug-ins of a recipe; judged before the rest, which may be of their making."""
    listed = raw.get("imports")
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        example = listed if isinstance(listed, str) else "mine.py"
        problem = Problem(
            "imports",
            f"{listed!r} is no list of modules and .py files",
            f"Write imports: [{example}]",
        )
        raise RecipeError(where, [problem])
    return listed


def _read_with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a recipe's mapping merged onto that of its `base`, and so on down.

    Args:
        path: the file.
        above: the files whose base, directly or not, this one is.

    Raises:
        RecipeError: unreadable YAML, a base that is not there, or bases that form a cycle.
    """
    chain = (*above, path)
    raw = located(read_yaml(path), path)
    if "base" not in raw:
        return raw
    base = _base_file(str(raw.pop("base")), path)
    again = next((file for file in chain if file.samefile(base)), None)
    if again is not None:
        cycle = " → ".join(str(file) for file in (*chain[chain.index(again) :], base))
        problem = Problem("base", f"recipes that build on each other: {cycle}", "Remove one `base`")
        raise RecipeError(str(chain[0]), [problem])
    return merge(_read_with_base(base, chain), raw)


def _base_file(named: str, recipe: Path) -> Path:
    """Return the file that `base: named` means: the user's own first, then the shipped one."""
    file = Path(named) if named.endswith((".yaml", ".yml")) else Path(f"{named}.yaml")
    # A shipped recipe means its neighbour, whatever files the working directory has.
    is_shipped = recipe.parent.resolve() == shipped_recipes().resolve()
    own = None if is_shipped else find_path(str(file), "base", recipe)
    found = [place for place in (own, *_shipped(file)) if place is not None and place.is_file()]
    if found:
        return found[0]
    guess = nearest(file.stem, [listed.stem for listed in shipped_recipes().glob("*.yaml")])
    hint = f"Did you mean {guess}?" if guess else "`toto list recipes` shows the shipped ones"
    what = f"no file {file} {both_folders(recipe)}, and no shipped recipe of that name"
    raise RecipeError(str(recipe), [Problem("base", what, hint)])


def _without_unknown_keys(raw: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """The same recipe but for keys that do not exist, which hide no other mistake."""
    kept = copy.deepcopy(raw)
    for detail in error.errors():
        if detail["type"] == "extra_forbidden":
            section: Any = kept
            for part in detail["loc"][:-1]:
                section = section[part]
            del section[detail["loc"][-1]]
    return kept


def _sound_sections(schema: type[Recipe], raw: dict[str, Any]) -> tuple[Recipe, set[str]]:
    """The sections that validate on their own, in a recipe without the others."""
    sound: dict[str, Any] = {}
    unsound: set[str] = set()
    for name, field in schema.model_fields.items():
        if name not in raw:
            if field.is_required():
                unsound.add(name)
            else:
                sound[name] = field.get_default(call_default_factory=True)
            continue
        annotation: Any = field.annotation
        if field.metadata:
            annotation = Annotated[annotation, *field.metadata]
        try:
            sound[name] = TypeAdapter[Any](annotation).validate_python(raw[name])
        except ValidationError:
            unsound.add(name)
    return schema.model_construct(**sound), unsound
