"""Pickles of classes that are not installed, and of things that should never run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock


@contextmanager
def made_up(*names: str) -> Iterator[list[type]]:
    """Empty classes of these full names, which can be pickled inside the block, nowhere else."""
    classes: list[type] = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules))
        for name in names:
            module, _, short = name.rpartition(".")
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                part = ".".join(parts[:end])
                sys.modules.setdefault(part, ModuleType(part))
            classes.append(type(short, (), {"__module__": module}))
            place = sys.modules[module]
            stack.enter_context(mock.patch.object(place, short, classes[-1], create=True))
        yield classes


class Call:
    """Unpickled carelessly, it calls a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


def touching(path: Path) -> Call:
    """Makes the file `path` where it is unpickled carelessly."""
    return Call(os.system, f"touch {path}")
