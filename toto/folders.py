"""Folders of results that are whole or absent, in which toto touches only what it wrote.

A folder of results holds `.toto.json`, which lists the files that toto put there. Only these are
ever replaced or removed. A folder that does not exist yet is written next to its place and renamed;
into one that exists (a mount point, for example) the finished files are moved one by one, from a
hidden folder inside it, so that no move crosses a file system.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from toto.errors import RunError, UserError
from toto.files import (
    disk_errors,
    require_writable,
    resumed_folder,
    sole_writer,
    sync,
    write_atomic,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MARKER", "held_folder", "is_whole", "new_folder", "publish", "results_in", "working_place",
]  # fmt: skip

MARKER = ".toto.json"
UNFINISHED = ".unfinished"
NEVER_OURS = ("lost+found",)
"""What a file system makes by itself; like hidden files it is neither touched nor in the way."""


def _below(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is not below the folder")
    return name


class Marker(BaseModel):
    """What `.toto.json` holds.

    Attributes:
        written_by: names this program.
        files: paths below the folder, with slashes, of all files that toto put there.
        is_whole: False while the files of one result replace those of another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    written_by: str = "toto"
    files: tuple[Annotated[str, AfterValidator(_below)], ...]
    is_whole: bool = True

    @classmethod
    def read(cls, folder: Path) -> Marker | None:
        """Return the marker of a folder, or None where it has none.

        Raises:
            UserError: it is not as toto writes it.
        """
        path = folder / MARKER
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            raise UserError(
                f"{path} should list the files that toto wrote, and cannot be read: {error}. "
                "Choose another folder"
            ) from error

    def write(self, folder: Path) -> None:
        """Write the marker into a folder."""
        write_atomic(folder / MARKER, self.model_dump_json(indent=1) + "\n")


@contextmanager
def held_folder(folder: Path, command: str) -> Iterator[Path]:
    """Hold a folder of results for the whole of a command, once it is sure that it can be written.

    Args:
        folder: to be made, or replaced where toto wrote all that it holds; a link is followed.
        command: that writes it, for messages.

    Yields:
        The folder, as `new_folder` takes it.

    Raises:
        UserError: the folder is a file, the current folder, holds other files than toto's, cannot
            be written, or is being written by another process.
    """
    if folder.is_symlink():
        folder = folder.resolve()
    require_writable(folder, "Choose another folder", folder=True)
    with sole_writer(folder):
        _require_replaceable(folder, command)
        yield folder


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds a whole result that toto wrote."""
    marker = Marker.read(folder) if folder.is_dir() else None
    return marker is not None and marker.is_whole


def results_in(folder: Path) -> list[str]:
    """Return the names that a folder of results shows, sorted."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def working_place(folder: Path) -> Path:
    """Return where the results for `folder` grow: on the same file system."""
    if folder.is_dir():
        return folder / UNFINISHED
    return folder.with_name(f".{folder.name}{UNFINISHED}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to write to; its files take the place of `folder`'s once the block ended well.

    Raises:
        RunError: the disk is full or refuses; `folder` is as it was.
    """
    unfinished = working_place(folder)
    with disk_errors(folder):
        try:
            if resumed_folder(unfinished):
                shutil.rmtree(unfinished)
                unfinished.mkdir()
            yield unfinished
            publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def publish(unfinished: Path, folder: Path) -> None:
    """Give finished results their place: by one rename, or file by file where the folder exists.

    Args:
        unfinished: as `working_place` names it; gone afterwards.
        folder: absent, or holding what an earlier call wrote.

    Raises:
        RunError: a name of the results is taken by a file that toto did not write.
        OSError: the disk is full or refuses.
    """
    names = tuple(
        path.relative_to(unfinished).as_posix()
        for path in sorted(unfinished.rglob("*"))
        if not path.is_dir() and path.name != MARKER
    )
    marker = Marker(files=names)
    if not folder.exists():
        marker.write(unfinished)
        unfinished.rename(folder)
        sync(folder.parent)
        return
    before = Marker.read(folder)
    old = before.files if before is not None else ()
    taken = [name for name in names if name not in old and (folder / name).exists()]
    if taken:
        raise RunError(
            f"{folder / taken[0]} is there, and toto did not write it: the new results are not put "
            "in its place. Move it away, and run the command again"
        )
    # From here on a kill leaves a folder that is known as toto's, and as unfinished.
    Marker(files=tuple(sorted({*old, *names})), is_whole=False).write(folder)
    for name in old:
        _remove(folder, name)
    # Records last: their readers find the figures that they name.
    for name in sorted(names, key=lambda name: (name.endswith(".json"), name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).replace(folder / name)
    shutil.rmtree(unfinished)
    marker.write(folder)
    sync(folder)


def _remove(folder: Path, name: str) -> None:
    """Remove a listed file, and the folders below `folder` that are empty without it."""
    path = folder / name
    # A folder on the way may have become a link to somewhere else.
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        return
    path.unlink(missing_ok=True)
    for above in path.parents:
        if above == folder:
            break
        with suppress(OSError):  # other files are in it, or it is gone
            above.rmdir()


def _require_replaceable(folder: Path, command: str) -> None:
    if folder.resolve() == Path.cwd():
        raise UserError(f"{folder} is the current folder. Name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder")
    if not folder.is_dir():
        return
    marker = Marker.read(folder)
    listed = set(marker.files) if marker is not None else set()
    others = [name for name in _names(folder) if name not in listed]
    if others:
        raise UserError(
            f"{folder} holds {others[0]}, which {command} did not write. Name another folder"
        )


def _names(folder: Path) -> list[str]:
    """Return the files below a folder, hidden ones at its top and what is never ours left out."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir()
        and not (top := path.relative_to(folder).parts[0]).startswith(".")
        and top not in NEVER_OURS
    )
