"""The names in a run's `checkpoints/` folder. No torch here: `toto runs` reads them too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.files import PARTIAL

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FOLDER", "META_FILE", "complete_checkpoints", "folder_name", "step_of"]

FOLDER = "checkpoints"
META_FILE = "checkpoint.json"
PREFIX = "step-"


def folder_name(step: int) -> str:
    """Of the checkpoint of a step; the names sort as the steps do."""
    return f"{PREFIX}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix(PREFIX))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a `checkpoints/` folder, oldest first."""
    return sorted(
        path.parent
        for path in folder.glob(f"{PREFIX}*/{META_FILE}")
        if not path.parent.name.endswith(PARTIAL)
    )
