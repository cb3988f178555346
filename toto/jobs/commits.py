"""Which commit of git a folder stands at. No torch here."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import toto

__all__ = ["Commit", "commit_of", "commit_of_toto"]

SECONDS = 10.0


@dataclass(frozen=True)
class Commit:
    """A checkout: its top folder, the commit, and whether files that git knows were changed since.

    `dirty` is None where git took too long to say.
    """

    folder: str
    commit: str
    dirty: bool | None


def commit_of(folder: Path) -> Commit | None:
    """The commit of the checkout that holds `folder`; None where it is in none, or without git."""
    found = _git(folder, "rev-parse", "--show-toplevel", "HEAD")
    if not found:
        return None
    top, _, commit = found.removesuffix("\n").rpartition("\n")
    status = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
    return Commit(top, commit, None if status is None else bool(status))


def commit_of_toto() -> Commit | None:
    """The commit of toto's own code; None where it was installed from a wheel."""
    home = Path(toto.__file__).resolve().parents[1]
    found = commit_of(home)
    # An environment may stand inside a checkout of something else.
    return found if found is not None and Path(found.folder).resolve() == home else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, is not there or takes long."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
