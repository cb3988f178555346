"""A run directory: opened anew, or to go on from its latest checkpoint.

RUN/recipe.yaml, history.jsonl, metrics.jsonl, tensorboard/, checkpoints/; while it is trained in,
run.lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.errors import UserError
from toto.files import disk_errors, write_atomic
from toto.training.checkpoint import find_checkpoint, remove_after
from toto.training.checkpoint_folder import FOLDER, complete_checkpoints
from toto.training.lock import LOCK_FILE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["RunDirectory", "open_run"]


@dataclass(frozen=True)
class RunDirectory:
    """Where a run writes.

    Attributes:
        path: the directory.
        checkpoint: what the run resumes from; None for one that begins.
        finished: whether all steps are done and what is made of them is written: nothing is left to
            do.
    """

    path: Path
    checkpoint: Path | None
    finished: bool = False

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / FOLDER

    @property
    def metrics(self) -> Path:
        """One JSON object a line; see metrics.py."""
        return self.path / "metrics.jsonl"

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of the run, such as recipe.yaml, whole or not at all.

        Raises:
            RunError: the disk is full or refuses.
        """
        with disk_errors(self.path / name):
            write_atomic(self.path / name, text)


def open_run(path: Path, *, resume: bool, command: str) -> RunDirectory:
    """Make the directory of a run, or find where it goes on. Hold it first: see lock.py.

    A run that stopped before its first checkpoint is resumed from its beginning.

    Args:
        path: the run directory.
        resume: go on with what is there.
        command: what the user typed, without --resume; for the message.

    Raises:
        UserError: `path` holds something and `resume` is not asked for, or it is a file.
        CheckpointError: `resume` is asked for and there is no such run.
        RunError: the directory cannot be made.
    """
    if path.is_dir() and not resume and any(file.name != LOCK_FILE for file in path.iterdir()):
        raise UserError(
            f"{path} exists already. To resume that run: `{command} --resume`; "
            f"to start another: `{command} --output {path}-2`"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give another directory: `{command} --output DIRECTORY`")
    checkpoint = None
    if resume and (not path.is_dir() or complete_checkpoints(path / FOLDER)):
        checkpoint = find_checkpoint(path)
        remove_after(checkpoint)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return RunDirectory(path, checkpoint)
