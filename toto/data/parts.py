"""A dataset written in independent parts, one a shard, in any order and by any number of processes.

Beside the dataset `OUT` stands `.OUT.partial` while it is made:

    plan.json           what is being made, as a fingerprint, and in how many parts
    dataset/            shard-00000.tar …, at last the columns and the manifest
    parts/00000.json …  the parts that are finished, with their rows of the index and origins
    work/               parts under way

A part is finished by the rename of its .json, the dataset by the rename of `dataset/` to `OUT`. The
same plan found there is gone on with: a part's bytes depend on the plan alone, so that neither the
number of processes nor their deaths show in the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, NonNegativeInt, ValidationError

from toto.data.columns import COLUMNS, column_checksum, column_file
from toto.data.index import NO_LABEL, ORIGINS_FILE
from toto.data.manifest import (
    MANIFEST_FILE,
    Form,
    Kind,
    Manifest,
    Orientation,
    ShardEntry,
    SkippedFile,
    TokenInfo,
    manifest_json,
)
from toto.data.tar import TarFileWriter
from toto.errors import DataError, RunError, UserError
from toto.files import (
    PARTIAL,
    disk_errors,
    locked,
    resumed_folder,
    sole_writer,
    sync,
    write_atomic,
)
from toto.registry import Config

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from toto.data.progress import Note

__all__ = [
    "Description",
    "LeftAlone",
    "Part",
    "PartWriter",
    "Parts",
    "Sample",
    "Totals",
    "is_published",
    "make_working_folder",
    "publish",
]

DATASET, PARTS, WORK, PLAN_FILE = "dataset", "parts", "work", "plan.json"
OURS = (DATASET, PARTS, WORK, PLAN_FILE, f".{PLAN_FILE}")
ROW = np.dtype(list(COLUMNS.items()))


@dataclass(frozen=True)
class Sample:
    """One sample of a shard.

    Attributes:
        key: unique in the dataset; letters, digits, `_` and `-`, at most 80 of them.
        extension: of the payload, without its dot: jpg, mp4, npy.
        payload: the encoded file, as it is.
        origin: where the payload came from, for messages.
        frames: number of frames; 1 for a picture.
        label: class, or -1.
        turned: whether it has an orientation that asks for a turn or a reflection.
    """

    key: str
    extension: str
    payload: bytes
    origin: str
    frames: int = 1
    label: int = NO_LABEL
    turned: bool = False


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """What of a part's files is no sample and is not packed, counted by kind, such as `.txt`."""

    counts: dict[str, int]


@dataclass(frozen=True)
class Description:
    """What the manifest says besides the shards; see Manifest."""

    kind: Kind
    form: Form
    classes: tuple[str, ...] = ()
    tokens: TokenInfo | None = None
    sources: tuple[str, ...] = ()
    made_from: str = ""
    orientation: Orientation = "upright"
    turned: int = 0


class Part(Config):
    """A finished part. Without a shard, every file of it was left out."""

    shard: ShardEntry | None
    frames: NonNegativeInt
    payload_bytes: NonNegativeInt
    max_label: int = NO_LABEL
    turned: NonNegativeInt = 0
    skipped: tuple[SkippedFile, ...] = ()
    left: dict[str, int] = Field(default_factory=dict)


@dataclass
class Totals:
    """Sums over parts; see Part."""

    samples: int = 0
    shards: int = 0
    frames: int = 0
    payload_bytes: int = 0
    max_label: int = NO_LABEL
    turned: int = 0
    skipped: list[SkippedFile] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


class PartWriter:
    """Writes one part. Leaving it by an exception leaves nothing of it."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number
        self._work = Path(tempfile.mkdtemp(prefix=f"{number:05d}-", dir=folder / WORK))
        self._tar = TarFileWriter(self._work / "tar")
        self._rows: list[tuple[int, int, int, int]] = []
        self._origins: list[str] = []
        self._turned = 0
        self._skipped: list[SkippedFile] = []
        self._left: Counter[str] = Counter()

    def add(self, item: Sample | SkippedFile | LeftAlone) -> None:
        """Append a sample, or note what is left out."""
        if isinstance(item, SkippedFile):
            self._skipped.append(item)
            return
        if isinstance(item, LeftAlone):
            self._left.update(item.counts)
            return
        members = {item.extension: item.payload}
        if item.label != NO_LABEL:
            members["cls"] = str(item.label).encode()
        for extension in sorted(members):
            offset = self._tar.add(f"{item.key}.{extension}", members[extension])
            if extension == item.extension:
                self._rows.append((offset, len(item.payload), item.frames, item.label))
        self._origins.append(json.dumps(item.origin))
        self._turned += item.turned

    def finish(self) -> Part:
        """Close the tar; the part is there for good."""
        digest = self._tar.close()
        rows = np.array(self._rows, dtype=ROW)
        rows.tofile(self._work / "rows")
        (self._work / "origins").write_text("".join(f"{line}\n" for line in self._origins))
        entry = ShardEntry(
            name=f"shard-{self._number:05d}.tar",
            samples=max(len(rows), 1),
            bytes=self._tar.size,
            sha256=digest,
            columns={name: column_checksum(rows[name]) for name in COLUMNS},
        )
        part = Part(
            shard=entry if len(rows) else None,
            frames=int(rows["frames"].sum(dtype=np.int64)),
            payload_bytes=int(rows["size"].sum(dtype=np.int64)),
            max_label=int(rows["label"].max(initial=NO_LABEL)),
            turned=self._turned,
            skipped=tuple(self._skipped),
            left=dict(self._left),
        )
        (self._work / "json").write_text(part.model_dump_json() + "\n", encoding="utf-8")
        if part.shard is not None:
            sync(self._work / "tar")
            _require_written(self._work / "tar", digest)
            self._move("tar", self._folder / DATASET / part.shard.name)
        for name in ("rows", "origins"):
            self._move(name, _part_file(self._folder, self._number, name))
        sync(self._work / "json")
        finished = _part_file(self._folder, self._number, "json")
        (self._work / "json").replace(finished)
        # From here on another process may publish the dataset and remove the working folder.
        with contextlib.suppress(FileNotFoundError):
            sync(finished.parent)
        shutil.rmtree(self._work, ignore_errors=True)
        return part

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tar.abandon()
        shutil.rmtree(self._work, ignore_errors=True)

    def _move(self, name: str, target: Path) -> None:
        """A rename that survives a power cut."""
        sync(self._work / name)
        (self._work / name).replace(target)
        sync(target.parent)


class Parts:
    """The parts of a dataset under way; see the module."""

    def __init__(self, out: Path, folder: Path, count: int) -> None:
        self._out = out
        self._folder = folder
        self.count = count

    @classmethod
    def open(cls, out: Path, plan: str, count: int, note: Note) -> Parts:
        """Resume the parts of this plan next to `out`, or start with none.

        Args:
            out: the dataset's folder; must not exist yet.
            plan: fingerprint of all that decides the parts' bytes.
            count: of the parts.
            note: told what was found there.

        Raises:
            DataError: `out` exists.
            UserError: the working folder is a link or another user's.
            RunError: the disk refuses.
        """
        folder = _working_folder(out)
        parts = cls(out, folder, count)
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with locked(_lock_of(out)):
                if out.exists():
                    _discard(folder)
                    raise DataError(f"{out} exists already. Remove it, or choose another folder")
                expected = json.dumps({"plan": plan, "parts": count}) + "\n"
                if folder.exists() and _read_text(folder / PLAN_FILE) != expected:
                    note(
                        f"{folder} is of other files or options, and no longer needed: removing it"
                    )
                    _discard(folder)
                if folder.exists():
                    resumed_folder(folder)
                    done = count - len(parts.missing())
                    note(f"{folder}: {done:,} of {count:,} shards are finished; going on")
                else:
                    make_working_folder(folder)
                    write_atomic(folder / PLAN_FILE, expected)
        return parts

    def missing(self) -> list[int]:
        """The parts that are not finished."""
        finished = {path.name for path in (self._folder / PARTS).glob("*.json")}
        return [n for n in range(self.count) if f"{n:05d}.json" not in finished]

    def read(self, number: int) -> Part:
        """A finished part."""
        return _read_part(self._folder, number)

    def totals(self) -> Totals:
        """Sums over the finished parts."""
        totals = Totals()
        for number in sorted(set(range(self.count)) - set(self.missing())):
            part = self.read(number)
            totals.samples += part.shard.samples if part.shard else 0
            totals.shards += part.shard is not None
            totals.frames += part.frames
            totals.payload_bytes += part.payload_bytes
            totals.max_label = max(totals.max_label, part.max_label)
            totals.turned += part.turned
            totals.skipped += part.skipped
            totals.left.update(part.left)
        return totals

    def write(self, number: int, items: Iterable[Sample | SkippedFile | LeftAlone]) -> Part:
        """Write one part whole.

        Raises:
            RunError: the disk is full or refuses.
        """
        with disk_errors(self._out), PartWriter(self._folder, number) as writer:
            for item in items:
                writer.add(item)
            return writer.finish()

    def discard(self) -> None:
        """Remove what was written of the parts, of which nothing is of use."""
        with disk_errors(self._out), locked(_lock_of(self._out)):
            shutil.rmtree(self._folder, ignore_errors=True)

    def publish(self, description: Description) -> bool:
        """Give the dataset its name, if every part is finished and nobody else did.

        Returns:
            Whether the dataset is there now.

        Raises:
            DataError: no part has a sample.
        """
        with disk_errors(self._out), locked(_lock_of(self._out)):
            if self._out.exists():
                return True
            if not self._folder.exists() or self.missing():
                return False
            publish(self._folder, self.count, self._out, description)
            return True


def is_published(out: Path) -> bool:
    """Return whether a dataset is there; remove what a kill right after its publishing left.

    Raises:
        UserError: another process writes it.
        RunError: the disk refuses.
    """
    if not out.exists():
        return False
    if os.access(out.parent, os.W_OK):
        with sole_writer(out), disk_errors(out), locked(_lock_of(out)):
            _discard(_working_folder(out))
    return True


def _working_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}{PARTIAL}")


def _discard(folder: Path) -> None:
    """Remove a working folder, if toto made it and all that it holds."""
    if not os.path.lexists(folder):
        return
    resumed_folder(folder)
    others = [path.name for path in folder.iterdir() if not path.name.startswith(OURS)]
    if others:
        raise UserError(f"{folder / others[0]} is not of toto. Move it away, or choose another OUT")
    shutil.rmtree(folder)


def make_working_folder(folder: Path) -> None:
    """The empty folders that parts are written into."""
    for name in (DATASET, PARTS, WORK):
        (folder / name).mkdir(parents=True)


def publish(folder: Path, count: int, out: Path, description: Description) -> None:
    """Join the finished parts of a working folder and rename the whole to `out`.

    Raises:
        DataError: no part has a sample.
    """
    dataset = folder / DATASET
    parts = [(n, part) for n in range(count) if (part := _read_part(folder, n)).shard is not None]
    if not parts:
        raise DataError(f"{out}: there is no sample to pack")
    columns = {name: (dataset / column_file(name)).open("wb") for name in COLUMNS}
    digest = hashlib.sha256()
    with (dataset / ORIGINS_FILE).open("wb") as origins:
        for number, _ in parts:
            rows = np.fromfile(_part_file(folder, number, "rows"), ROW)
            for name, file in columns.items():
                rows[name].tofile(file)
            lines = _part_file(folder, number, "origins").read_bytes()
            digest.update(lines)
            origins.write(lines)
    for file in columns.values():
        file.close()
    manifest = Manifest(
        kind=description.kind,
        form=description.form,
        shards=tuple(part.shard for _, part in parts if part.shard is not None),
        classes=description.classes,
        tokens=description.tokens,
        sources=description.sources,
        made_from=description.made_from,
        orientation=description.orientation,
        turned=description.turned,
        origins_sha256=digest.hexdigest(),
        skipped=tuple(file for n in range(count) for file in _read_part(folder, n).skipped),
    )
    for path in (dataset / ORIGINS_FILE, *(dataset / column_file(name) for name in COLUMNS)):
        sync(path)
    write_atomic(dataset / MANIFEST_FILE, manifest_json(manifest))
    dataset.rename(out)
    sync(out.parent)
    shutil.rmtree(folder, ignore_errors=True)


def _require_written(path: Path, sha256: str) -> None:
    """Read a file that was just written, from the disk where the system lets us.

    Raises:
        RunError: it is not what was written.
    """
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise RunError(
                f"{path} holds other bytes than were written to it: the memory or the disk of this "
                "machine is faulty. Check them, then run the command again on a sound disk"
            )


def _part_file(folder: Path, number: int, kind: str) -> Path:
    return folder / PARTS / f"{number:05d}.{kind}"


def _read_part(folder: Path, number: int) -> Part:
    path = _part_file(folder, number, "json")
    try:
        return Part.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError) as error:
        raise DataError(f"{path} is damaged: {error}. Remove {folder} and begin again") from error


def _lock_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
