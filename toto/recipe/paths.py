"""Relative paths in a recipe: found from the working directory, else from the recipe's folder.

The shipped recipes need the first (their `data` and `runs` are the user's), recipes that are kept
together with their plug-ins and weights need the second. Only one of the two may have the file:
otherwise the same recipe would silently mean different files in different working directories.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toto.data.addresses import is_remote
from toto.errors import Problem, RecipeError

__all__ = ["both_folders", "find_path", "located"]

HF_PREFIX = "hf:"


def find_path(value: str, key: str, recipe: Path) -> Path | None:
    """Return the file or folder that a relative path in a recipe means; None if there is none.

    Args:
        value: the path as written.
        key: dotted path of the setting, for the message.
        recipe: the file that it is written in.

    Raises:
        RecipeError: the working directory and the recipe's folder each have one.
    """
    found = [path for path in (Path(value), recipe.parent / value) if path.exists()]
    if len(found) == 2 and not found[0].samefile(found[1]):
        problem = Problem(
            key,
            f"{value} is in the working directory ({Path.cwd()}) and in the recipe's folder "
            f"({recipe.parent.resolve()})",
            f"Write {found[0].resolve()} or {found[1].resolve()}",
        )
        raise RecipeError(str(recipe), [problem])
    return found[0] if found else None


def both_folders(recipe: Path) -> str:
    """Return the two folders in which a relative path was looked for, in words."""
    here, folder = Path.cwd(), recipe.parent.resolve()
    if here == folder:
        return f"in the working directory ({here}), which is the recipe's folder"
    return f"in the working directory ({here}) or in the recipe's folder ({folder})"


def located(raw: dict[str, Any], recipe: Path) -> dict[str, Any]:
    """Return a recipe's mapping with the paths that are found in the recipe's folder alone put in.

    These are plug-in files (`imports`), `data.root`, `init_from`, and every `weights` file in a
    tokenizer or task. What is found in the working directory, or nowhere yet, stays as written.
    Datasets in `data.sources` are relative to `data.root`.

    Args:
        raw: as read from `recipe`, before it is merged with others.
        recipe: the file.

    Raises:
        RecipeError: the working directory and the recipe's folder each have one, or neither has
            a plug-in file.
    """
    return {key: _located(value, key, recipe) for key, value in raw.items()}


def _located(value: Any, key: str, recipe: Path) -> Any:
    if isinstance(value, dict):
        return {name: _located(child, f"{key}.{name}", recipe) for name, child in value.items()}
    if isinstance(value, list) and key == "imports":
        return [_plugin(entry, recipe) for entry in value]
    if not isinstance(value, str) or not _is_path(key, value):
        return value
    prefix = HF_PREFIX if key == "init_from" and value.startswith(HF_PREFIX) else ""
    found = find_path(value.removeprefix(prefix), key, recipe)
    if found is None or found == Path(value):
        return value
    return f"{prefix}{found}"


def _plugin(entry: Any, recipe: Path) -> Any:
    """Return the path of a plug-in file; it must be there, for the recipe depends on its names."""
    if not isinstance(entry, str) or not entry.endswith(".py"):
        return entry
    found = find_path(entry, "imports", recipe)
    if found is None:
        problem = Problem("imports", f"no file {entry} {both_folders(recipe)}", "Correct the path")
        raise RecipeError(str(recipe), [problem])
    return str(found.resolve())


def _is_path(key: str, value: str) -> bool:
    if is_remote(value):
        return False
    return key in ("data.root", "init_from") or (
        key.endswith(".weights") and value.endswith(".safetensors")
    )
