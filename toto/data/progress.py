"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Note", "Progress", "silent", "unsaid"]

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each piece of work."""

Note = Callable[[str], None]
"""Called with a sentence for the user."""


def silent(done: int, total: int) -> None:
    """The progress of those who do not ask."""


def unsaid(text: str) -> None:
    """The note of those who do not ask."""
