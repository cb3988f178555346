"""Words of messages that depend on numbers."""

from __future__ import annotations

__all__ = ["number_of"]


def number_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 frame`, `2 frames`, `1,024 frames`.

    Args:
        number: of things.
        noun: one of them.
        plural: several of them; `noun` with an s unless given.
    """
    several = plural if plural is not None else f"{noun}s"
    return f"{number:,} {noun if number == 1 else several}"
