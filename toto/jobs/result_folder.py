"""Where a command leaves its results: one folder for each result, and none replaced unasked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toto.analysis.evaluations import EVALUATIONS
from toto.analysis.records import json_object
from toto.errors import UserError
from toto.files import sole_writer
from toto.folders import MARKER, held_folder, is_whole
from toto.jobs.console import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["free_folder", "named_folder"]

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


@contextmanager
def free_folder(
    named: Path, out: Path | None, *, record: str, overwrite: bool, command: str
) -> Iterator[Path | None]:
    """Hold the folder to write, for the whole of the work; see `held_folder`.

    Args:
        named: as `named_folder` calls it.
        out: the folder that the user names instead.
        record: a file that every whole result has.
        overwrite: whether the user asked to replace an earlier result.
        command: that writes it, for messages.

    Yields:
        The folder, or None where the very result that is asked for is there.

    Raises:
        UserError: as `held_folder`; or `out` holds an earlier result, and `overwrite` was not
            asked for.
    """
    if out is None and not overwrite and _is_there(named, record):
        say(
            f"{named} has been measured already, with the same checkpoint, data and settings; "
            "--overwrite measures it again"
        )
        text = json_object((named / record).read_bytes(), str(named / record)).get("text")
        if text is not None:
            say(str(text))
        if os.access(named.parent, os.W_OK):
            with sole_writer(named):  # removes the lock that a killed process left
                pass
        yield None
        return
    with held_folder(out or named, command) as folder:
        if is_whole(folder) and not overwrite:
            raise UserError(
                f"{folder} exists already, with a result of {command}. Name another folder with "
                "--out, or replace it with --overwrite"
            )
        yield folder


def _is_there(folder: Path, record: str) -> bool:
    """Whether a result is whole; those of earlier versions have no marker."""
    return (folder / record).is_file() and (is_whole(folder) or not (folder / MARKER).exists())
