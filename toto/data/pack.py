"""Pictures or videos to a dataset, byte for byte: checked in parallel, written in order."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from toto.data.check import SourceFile, check_file
from toto.data.decode import MediaInfo, UndecodableError
from toto.data.index import NO_LABEL, Dataset
from toto.data.layouts import list_source
from toto.data.listing import split_folder
from toto.data.manifest import Kind, Orientation, SkippedFile
from toto.data.parts import Description, LeftAlone, Parts, Sample, Totals
from toto.data.plan import Entry, FilePlan, Item, Plan
from toto.data.progress import Note, Progress, silent, unsaid
from toto.data.tar_plan import TarPlan, find_tars
from toto.data.walk import describe_left
from toto.data.workers import Crash, map_in_workers
from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["PackReport", "pack", "pack_folder", "plan_pack"]

LISTED_FILES = 20
# What a worker is sent at once: little enough that none waits long for the last one.
CHUNK_FILES = 32
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        path: the dataset.
        kind: images or videos.
        num_samples: images or videos.
        num_frames: decoded frames of all samples.
        num_bytes: of the files.
        num_shards: tar files.
        classes: names of the labels; empty without.
        skipped: files that were left out because they cannot be decoded.
        left: what was neither packed nor broken, counted by kind, such as `.txt`.
        orientation: whether readers apply EXIF orientation and display matrices.
        turned: samples that have one which asks for a turn or a reflection.
        unlabelled: samples without a label in a dataset with classes.
    """

    path: Path
    kind: Kind
    num_samples: int
    num_frames: int
    num_bytes: int
    num_shards: int
    classes: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    left: Mapping[str, int]
    orientation: Orientation
    turned: int
    unlabelled: int


def plan_pack(
    source: Path,
    layout: str = "folder",
    split: str | None = None,
    *,
    kind: Kind | None = None,
    classes: tuple[str, ...] | None = None,
) -> Plan:
    """Return what packing `source` would write: the files, their labels and their shards.

    Args:
        source: a folder of images or of videos, of WebDataset tars, or one tar.
        layout: one of LAYOUTS.
        split: the sub-folder to pack, such as train; layouts have their own rules for it.
        kind: what to pack where images and videos are together; the other kind is counted.
        classes: the names of the labels in their order, such as those of a training split, instead
            of the names found; empty to pack without labels.

    Raises:
        DataError: nothing to pack, not laid out so, a folder of splits, or a choice between files
            that only the user can make.
    """
    if layout == "folder":
        folder = split_folder(source, split) if split else source
        if tars := find_tars(folder):
            return TarPlan.find(folder, tars, kind=kind, classes=classes)
    return FilePlan(list_source(layout, source, split, kind=kind, classes=classes))


def pack(
    plan: Plan,
    out: Path,
    *,
    workers: int = 0,
    skip_broken: bool = False,
    orientation: Orientation = "upright",
    progress: Progress = silent,
    note: Note = unsaid,
) -> PackReport:
    """Check every file and write the shards of a plan that are not there yet.

    Images and all frames of videos are decoded. The bytes of the shards depend on the plan alone,
    not on the workers or on how often the packing was stopped and resumed.

    Args:
        plan: see `plan_pack`.
        out: the dataset's folder; must not exist yet. What is finished waits in `.OUT.partial`.
        workers: processes that check files, so that a crash of a decoder costs that file alone;
            0 checks in this process.
        skip_broken: leave out files that cannot be decoded, and name them in the manifest.
        orientation: whether readers apply EXIF orientation and display matrices; the files are
            copied as they are.
        progress: called after each file.
        note: told what is left of a stopped packing.

    Raises:
        DataError: `out` exists, or files cannot be decoded; nothing is at `out` then.
        RunError: the disk is full or refuses.
    """
    parts = Parts.open(out, plan.fingerprint(), plan.num_shards(), note)
    missing = parts.missing()
    total = sum(plan.shard_weight(shard) for shard in range(parts.count))
    done = total - sum(plan.shard_weight(shard) for shard in missing)
    if done:
        progress(done, total)
    checked = _check(plan, missing, workers)
    try:
        for shard in missing:
            end = done + plan.shard_weight(shard)
            parts.write(shard, _to_samples(plan, checked, progress, range(done, end), total))
            done = end
    finally:
        checked.close()
    totals = parts.totals()
    if not totals.samples:
        parts.discard()
        raise DataError(_unusable_message(plan, totals))
    if totals.skipped and not skip_broken:
        raise DataError(_broken_message(plan.source, totals.skipped))
    classes = plan.classes
    if classes is None:
        classes = tuple(str(label) for label in range(totals.max_label + 1))
    parts.publish(
        Description(plan.kind, "raw", classes, orientation=orientation, turned=totals.turned)
    )
    return _report(plan, out, classes, totals, orientation)


def pack_folder(
    src: Path,
    out: Path,
    *,
    workers: int = 0,
    skip_broken: bool = False,
    progress: Progress = silent,
) -> PackReport:
    """Pack the images (jpg, png, webp) or videos (mp4, mov, mkv, webm, avi) under `src`.

    Files are found in all sub-folders, hidden ones left out, links to folders not followed. Where
    every file is in a sub-folder, the first-level folders are the classes, sorted. A folder of
    WebDataset tars becomes one shard per tar. For what is raised see `plan_pack` and `pack`.
    """
    plan = plan_pack(src)
    return pack(plan, out, workers=workers, skip_broken=skip_broken, progress=progress)


_Entry = Entry | None
"""What a plan has, or the end of a shard."""
_Checked = tuple[Item, MediaInfo | str | Crash] | SkippedFile | LeftAlone | None
"""The same with what a decode of the file shows, or with what is wrong."""


def _entries(plan: Plan, shards: Iterable[int]) -> Iterator[_Entry]:
    for shard in shards:
        yield from plan.items(shard)
        yield None


def _check(plan: Plan, shards: list[int], workers: int) -> Generator[_Checked, None, None]:
    """Every entry of the shards, checked, in order."""
    check = partial(check_file, plan.kind)
    if workers == 0:
        for entry in _entries(plan, shards):
            yield (entry, check(entry.file)) if isinstance(entry, Item) else entry
        return
    sent: deque[list[_Entry]] = deque()

    def chunks() -> Iterator[list[SourceFile]]:
        for chunk in _chunks(_entries(plan, shards)):
            sent.append(chunk)
            yield [entry.file for entry in chunk if isinstance(entry, Item)]

    for results in map_in_workers(check, chunks(), workers=workers):
        verdicts = iter(results)
        for entry in sent.popleft():
            yield (entry, next(verdicts)) if isinstance(entry, Item) else entry


def _chunks(entries: Iterator[_Entry]) -> Iterator[list[_Entry]]:
    chunk: list[_Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += entry.file.size if isinstance(entry, Item) else 0
        if len(chunk) == CHUNK_FILES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _to_samples(
    plan: Plan, checked: Iterator[_Checked], progress: Progress, span: range, total: int
) -> Iterator[Sample | SkippedFile | LeftAlone]:
    """The entries up to the end of their shard, with their bytes; `span` is their progress."""
    done = span.start
    for entry in checked:
        if entry is None:
            break
        if isinstance(entry, SkippedFile | LeftAlone):
            yield entry
            continue
        item, verdict = entry
        yield _to_sample(item, verdict)
        done = min(done + plan.weight(item.file), span.stop)
        progress(done, total)
    if done < span.stop:
        progress(span.stop, total)


def _to_sample(item: Item, verdict: MediaInfo | str | Crash) -> Sample | SkippedFile:
    file = item.file
    if not isinstance(verdict, MediaInfo):
        return SkippedFile(path=file.origin, reason=str(verdict))
    try:
        payload = file.read()
    except UndecodableError as error:  # it was there when it was checked
        return SkippedFile(path=file.origin, reason=str(error))
    return Sample(
        item.key,
        file.extension,
        payload,
        file.origin,
        verdict.frames,
        file.label,
        turned=verdict.turned,
    )


def _report(
    plan: Plan, out: Path, classes: tuple[str, ...], totals: Totals, orientation: Orientation
) -> PackReport:
    return PackReport(
        path=out,
        kind=plan.kind,
        num_samples=totals.samples,
        num_frames=totals.frames,
        num_bytes=totals.payload_bytes,
        num_shards=totals.shards,
        classes=classes,
        skipped=tuple(totals.skipped),
        left=totals.left + Counter(plan.left),
        orientation=orientation,
        turned=totals.turned,
        unlabelled=_count_unlabelled(Dataset.open(out)) if classes else 0,
    )


def _count_unlabelled(dataset: Dataset) -> int:
    return int((dataset.labels(0, dataset.num_samples) == NO_LABEL).sum())


def _broken_message(source: Path, broken: list[SkippedFile]) -> str:
    return "\n".join(
        [
            f"{source}: {number_of(len(broken), 'file')} cannot be decoded or chosen. Correct "
            "them, or leave them out with --skip-broken, which resumes after the shards that are "
            "finished",
            *_listed(broken),
        ]
    )


def _unusable_message(plan: Plan, totals: Totals) -> str:
    left = totals.left + Counter(plan.left)
    there = f" (left alone: {describe_left(left)})" if left else ""
    if not totals.skipped:
        return f"{plan.source} holds no {plan.kind} to pack{there}"
    return "\n".join(
        [
            f"{plan.source}: there is nothing to pack: {number_of(len(totals.skipped), 'file')} "
            f"cannot be decoded or chosen{there}. Correct them",
            *_listed(totals.skipped),
        ]
    )


def _listed(broken: list[SkippedFile]) -> list[str]:
    lines = [f"  {file.path}: {file.reason}" for file in broken[:LISTED_FILES]]
    if len(broken) > LISTED_FILES:
        lines.append(f"  and {len(broken) - LISTED_FILES:,} more")
    return lines
