"""Which commit of git a folder is at. No torch here.

The folder may be a checkout that somebody else made. Its configuration can name programs that
`git status` runs: a file-system monitor, hooks, and filters of file contents. None of them is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import toto

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Commit", "commit_of", "commit_of_toto"]

SECONDS = 10.0
NO_PROGRAMS = {"core.fsmonitor": "", "core.hooksPath": os.devnull}


@dataclass(frozen=True)
class Commit:
    """A checkout: its top folder, the commit, and whether files that git knows were changed since.

    `dirty` is None where git took too long to say.
    """

    folder: str
    commit: str
    dirty: bool | None


def commit_of(folder: Path) -> Commit | None:
    """Return the commit of the checkout that holds `folder`; None outside one, or without git."""
    found = _git(folder, "rev-parse", "--show-toplevel", "HEAD")
    if not found:
        return None
    top, _, commit = found.removesuffix("\n").rpartition("\n")
    return Commit(top, commit, _is_dirty(Path(top)))


def commit_of_toto() -> Commit | None:
    """Return the commit of toto's own code; None where it was installed from a wheel."""
    home = Path(toto.__file__).resolve().parents[1]
    found = commit_of(home)
    # An environment may be inside a checkout of something else.
    return found if found is not None and Path(found.folder).resolve() == home else None


def _is_dirty(top: Path) -> bool | None:
    """Whether tracked files differ from the commit; submodules are not entered."""
    words = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    status = _git(top, *words, settings=_without_filters(top))
    return None if status is None else bool(status)


def _without_filters(top: Path) -> dict[str, str]:
    """Return settings that switch off the content filters of the checkout's own configuration.

    Those of the user's configuration stay: without `git lfs` its files would count as changed.
    """
    words = ("config", "--show-scope", "--name-only", "--null", "--get-regexp", r"^filter\..*")
    fields = (_git(top, *words) or "").split("\0")
    return {
        name: "false" if name.endswith(".required") else ""
        for scope, name in zip(fields[::2], fields[1::2], strict=False)
        if scope in ("local", "worktree")
    }


def _git(folder: Path, *arguments: str, settings: Mapping[str, str] | None = None) -> str | None:
    """Return what git prints; None where it fails, is not installed or takes long.

    Args:
        folder: where to run it.
        arguments: of git.
        settings: which replace those of its configuration files, like those of NO_PROGRAMS.
    """
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), "--no-optional-locks", *arguments]
    # Not with -c: a filter's name may contain "=".
    first = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    environment = dict(os.environ)
    for number, (name, value) in enumerate({**NO_PROGRAMS, **(settings or {})}.items(), first):
        environment[f"GIT_CONFIG_KEY_{number}"] = name
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
        environment["GIT_CONFIG_COUNT"] = str(number + 1)
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
