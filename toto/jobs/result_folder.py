"""Where a command leaves its results: one folder for each result, and none replaced unasked."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toto.analysis.evaluations import EVALUATIONS
from toto.analysis.records import json_object
from toto.errors import UserError
from toto.files import disk_errors
from toto.jobs.console import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["free_folder", "named_folder", "new_folder"]

NOT_OF_A_NAME = re.compile(r"[^\w.+-]+")
DIGEST = 8  # hexadecimal digits: 65,000 results of a run before two share a name by chance


def named_folder(run: Path, evaluation: str, subject: str, settings: Mapping[str, object]) -> Path:
    """Return RUN/eval/EVALUATION-SUBJECT-DIGEST.

    Args:
        run: the run's folder.
        evaluation: what was measured, or by which protocol.
        subject: what it was measured on, for people: a source or a data set.
        settings: everything that the result depends on, the checkpoint and the data included, as
            plain values of JSON; the digest is theirs, so that two results share a folder only
            where they are the same.
    """
    text = json.dumps(settings, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
    words = [NOT_OF_A_NAME.sub("_", word).strip(".") for word in (evaluation, subject)]
    return run / EVALUATIONS / "-".join([*words, digest])


def free_folder(
    named: Path,
    out: Path | None,
    *,
    mark: str,
    ours: re.Pattern[str],
    overwrite: bool,
    command: str,
) -> Path | None:
    """Return the folder to write, or None where the very result that is asked for is there.

    Args:
        named: as `named_folder` calls it.
        out: the folder that the user names instead.
        mark: a file that every whole result has.
        ours: the names that a result may hold.
        overwrite: whether the user asked to replace an earlier result.
        command: that writes it, for messages.

    Raises:
        UserError: the place is a file, the current folder, or a folder with other files; or `out`
            holds an earlier result, and `overwrite` was not asked for.
    """
    folder = out or named
    _require_replaceable(folder, ours, command)
    if overwrite or not (folder / mark).is_file():
        return folder
    if out is not None:
        raise UserError(
            f"{out} holds an earlier result of {command}. Name another folder with --out, or "
            "replace it with --overwrite"
        )
    say(
        f"{folder} has been measured already, with the same checkpoint, data and settings; "
        "--overwrite measures it again"
    )
    text = json_object((folder / mark).read_bytes(), str(folder / mark)).get("text")
    if text is not None:
        say(str(text))
    return None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to write to; it takes the place of `folder` once the block has ended well.

    Raises:
        RunError: the disk is full, or refuses; `folder` is as it was.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with disk_errors(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _require_replaceable(folder: Path, ours: re.Pattern[str], command: str) -> None:
    if folder.resolve() == Path.cwd():
        raise UserError(f"{folder} is the current folder. Name another one with --out")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file. Name a folder with --out")
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path.name for path in held if not ours.fullmatch(path.name)]
    if others:
        raise UserError(
            f"{folder} holds {others[0]}, which {command} did not write, and the whole folder "
            "would be replaced. Name another one with --out"
        )
