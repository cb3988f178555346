"""What tables and figures call the things that a command compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["distinct_labels"]


def distinct_labels(names: Sequence[str], given: Sequence[str]) -> list[str]:
    """One label each: those of `--label`, or the names of the things themselves.

    Raises:
        UserError: not as many labels as things, or two are equal.
    """
    if given and len(given) != len(names):
        raise UserError(
            f"--label: {len(given)} given for {len(names)}. Give one each, in the same order, or "
            "none"
        )
    labels = list(given or names)
    twice = [label for number, label in enumerate(labels) if label in labels[:number]]
    if twice:
        raise UserError(
            f"two are called {twice[0]!r}. Tell them apart with a --label each, in the order given"
        )
    return labels
