"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each piece of work."""


def silent(done: int, total: int) -> None:
    """The progress of those who do not ask."""
