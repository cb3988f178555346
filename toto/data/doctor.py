"""What is wrong with a dataset: every shard is compared with the index, every sample decoded."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from toto.data.decode import UndecodableError, inspect_media
from toto.data.index import EXCLUDED_FILE, NO_LABEL, TarRow
from toto.data.progress import Progress, silent
from toto.data.store import excluded_lines
from toto.data.workers import Crash, map_in_workers
from toto.errors import DataError
from toto.files import disk_errors, write_atomic
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from toto.data.config import ClipConfig
    from toto.data.index import Dataset

__all__ = [
    "PAPER_SIZES",
    "Finding",
    "PaperSize",
    "changed_shards",
    "count_by_ailment",
    "examine",
    "exclude",
    "unlike_paper",
]

Ailment = Literal["missing", "index", "undecodable", "short", "duplicate", "unlabelled"]
CHUNK = 16  # samples that a worker takes at once


@dataclass(frozen=True)
class Finding:
    """One sample that is not as it should be.

    Attributes:
        sample: its number in the dataset.
        file: its original.
        ailment: `missing` where its shard is gone or changed, `index` where the index says
            something else of it than its tar.
        detail: in words.
    """

    sample: int
    file: str
    ailment: Ailment
    detail: str


@dataclass(frozen=True)
class PaperSize:
    """A row of the paper's Table 2: images, or hours of video at 30 frames a second."""

    images: int = 0
    hours: float = 0.0


PAPER_SIZES = {
    "imagenet": PaperSize(images=13_900_000),
    "kinetics600": PaperSize(hours=1_496),
    "ego4d": PaperSize(hours=3_750),
    "howto100m": PaperSize(hours=92_627),
}
"""Source: Table 2; the frame rate follows from its tokens (hours · 3600 · 30 · 256)."""
FRAMES_AN_HOUR = 30 * 3600
TOLERANCE = 0.05


@dataclass(frozen=True)
class _Report:
    """What one sample is: a hash of its payload, and what ails it."""

    digest: int
    ailment: tuple[Ailment, str] | None


def changed_shards(
    dataset: Dataset, *, workers: int = 1, progress: Progress = silent
) -> dict[int, str]:
    """The shards that are gone, or are not of the manifest's size and checksum.

    Args:
        dataset: raw or tokens.
        workers: processes.
        progress: called after each shard.

    Returns:
        Number of the shard → what is wrong with it.
    """
    count = len(dataset.manifest.shards)
    checked = map_in_workers(
        partial(_changed, dataset),
        ([shard] for shard in range(count)),
        workers=min(workers, count),
    )
    changed: dict[int, str] = {}
    for shard, (reason,) in enumerate(checked):
        if reason is not None:
            changed[shard] = str(reason)
        progress(shard + 1, count)
    return changed


def examine(
    dataset: Dataset,
    clip: ClipConfig,
    changed: Mapping[int, str],
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> list[Finding]:
    """Decode a whole dataset; samples that are excluded already are passed over.

    Every picture and every frame of the videos is decoded; codes are counted. A sample over which
    the decoder crashes is undecodable; one whose bytes an earlier sample has is a duplicate.

    Args:
        dataset: raw or tokens.
        clip: what a video must be long enough for.
        changed: of `changed_shards`; their samples are missing.
        workers: processes; the findings do not depend on their number.
        progress: called with numbers of samples.

    Returns:
        At most one finding a sample, in order.

    Raises:
        DataError: a shard and its index are of different packings.
    """
    kept = dataset.kept()
    shard_of = np.searchsorted(dataset.shard_starts, kept, side="right") - 1
    is_missing = np.isin(shard_of, list(changed))
    ailments: list[tuple[int, Ailment, str]] = [
        (sample, "missing", changed[shard])
        for sample, shard in zip(
            kept[is_missing].tolist(), shard_of[is_missing].tolist(), strict=True
        )
    ]
    there = kept[~is_missing]
    wrong = _unlike_tar(dataset, sorted(set(shard_of[~is_missing].tolist())))
    ailments += [(sample, "index", wrong[sample]) for sample in there.tolist() if sample in wrong]
    there = np.setdiff1d(there, list(wrong), assume_unique=True)
    hashes = np.zeros(dataset.num_samples, dtype=np.uint64)
    examined = map_in_workers(
        partial(_examine_sample, dataset, clip.span if dataset.kind == "videos" else 1),
        (there[first : first + CHUNK].tolist() for first in range(0, len(there), CHUNK)),
        workers=min(workers, max(1, -(-len(there) // CHUNK))),
    )
    done = 0
    for reports in examined:
        for sample, report in zip(there[done : done + CHUNK].tolist(), reports, strict=True):
            if isinstance(report, DataError):
                raise report
            if isinstance(report, Crash):
                report = _Report(0, ("undecodable", str(report)))
            hashes[sample] = report.digest
            if report.ailment:
                ailments.append((sample, *report.ailment))
        done += len(reports)
        progress(done, len(there))
    passed_over = {sample for sample, _, _ in ailments} | set(dataset.excluded.tolist())
    return _findings(dataset, ailments, _duplicates(hashes, passed_over))


def _unlike_tar(dataset: Dataset, shards: Iterable[int]) -> dict[int, str]:
    """Compare the index with the members of the tars; sample → what differs."""
    wrong: dict[int, str] = {}
    for shard in shards:
        first, last = dataset.shard_starts[shard : shard + 2].tolist()
        found = _tar_rows(dataset.folder / dataset.manifest.shards[shard].name)
        if isinstance(found, str):
            wrong |= dict.fromkeys(range(first, last), found)
            continue
        said = dataset.rows(first, last)
        for place in range(last - first):
            here = found[place] if place < len(found) else None
            if here != said[place]:
                wrong[first + place] = _difference(said[place], here)
    return wrong


def _tar_rows(path: Path) -> list[TarRow] | str:
    """Return what the index should say of each sample of a tar, or why it cannot be read."""
    rows: list[TarRow] = []
    labels: dict[str, str] = {}
    keys: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if extension == "cls":
                    content = tar.extractfile(member)
                    labels[key] = "" if content is None else content.read(32).decode("ascii")
                    continue
                keys.append(key)
                rows.append(TarRow(member.offset_data, member.size, NO_LABEL))
        if len(set(keys)) < len(keys):
            return f"{path.name} has several samples of one key"
        return [
            replace(row, label=int(labels.get(key, NO_LABEL)))
            for key, row in zip(keys, rows, strict=True)
        ]
    except (tarfile.TarError, ValueError, OSError) as error:
        return f"{path.name} is no sound tar ({error})"


def _difference(said: TarRow, found: TarRow | None) -> str:
    if found is None:
        return "the index has more samples than the tar"
    return "; ".join(
        f"{name} {ours} in the index, {theirs} in the tar"
        for (name, ours), theirs in zip(asdict(said).items(), asdict(found).values(), strict=True)
        if ours != theirs
    )


def exclude(dataset: Dataset, findings: Iterable[Finding]) -> int:
    """Add the samples of these findings to those that streams of the dataset leave out.

    Returns:
        How many samples are left out now.

    Raises:
        RunError: the disk is full or refuses.
    """
    path = dataset.folder / EXCLUDED_FILE
    lines: dict[int, str] = {}
    if path.is_file():
        for line in excluded_lines(path.read_bytes()):
            lines[json.loads(line)["sample"]] = line
    for finding in findings:
        lines[finding.sample] = json.dumps(asdict(finding), ensure_ascii=False)
    with disk_errors(path):
        write_atomic(path, "".join(lines[sample] + "\n" for sample in sorted(lines)))
    return len(lines)


def unlike_paper(dataset: Dataset, name: str) -> str | None:
    """How the size of a dataset differs from the paper's Table 2; None within 5 %."""
    size = PAPER_SIZES[name]
    if size.images:
        found, wanted, unit = float(dataset.num_samples), float(size.images), "images"
    else:
        frames = dataset.frame_counts(0, dataset.num_samples).sum()
        found, wanted, unit = float(frames) / FRAMES_AN_HOUR, size.hours, "hours at 30 frames/s"
    if abs(found / wanted - 1) <= TOLERANCE:
        return None
    return f"{found:,.1f} {unit}, and the paper's Table 2 has {wanted:,.0f} ({found / wanted:.1%})"


def _examine_sample(dataset: Dataset, span: int, sample: int) -> _Report | DataError:
    try:
        payload = dataset.read(sample)
    except UndecodableError as error:
        return _Report(0, ("undecodable", str(error)))
    except DataError as error:  # what a worker raises would pass for a crash
        return error
    digest = hashlib.blake2b(payload, digest_size=8).digest()
    return _Report(int.from_bytes(digest, "little"), _ailment(dataset, sample, payload, span))


def _changed(dataset: Dataset, shard: int) -> str | None:
    entry = dataset.manifest.shards[shard]
    path = dataset.folder / entry.name
    if not path.is_file():
        return f"{entry.name} is missing"
    if path.stat().st_size != entry.bytes:
        return f"{entry.name} has {path.stat().st_size} bytes instead of {entry.bytes}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == entry.sha256 else f"{entry.name} has another checksum"


def _ailment(
    dataset: Dataset, sample: int, payload: memoryview, span: int
) -> tuple[Ailment, str] | None:
    expected = dataset.frames(sample)
    try:
        frames = _count(dataset, payload)
    except UndecodableError as error:
        return "undecodable", str(error)
    if frames != expected:
        return "undecodable", f"{number_of(frames, 'frame')}, and the index says {expected}"
    if frames < span:
        return "short", f"{number_of(frames, 'frame')}, and a clip takes {span}"
    if dataset.classes and dataset.label(sample) == NO_LABEL:
        return "unlabelled", "no label in a dataset with classes"
    return None


def _count(dataset: Dataset, payload: memoryview) -> int:
    if dataset.form == "raw":
        return inspect_media(dataset.kind, payload).frames
    try:
        codes_THW = np.load(io.BytesIO(payload), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UndecodableError(f"no .npy array ({error})") from error
    if codes_THW.dtype != np.uint16 or codes_THW.shape[1:] != dataset.tokens.grid:
        raise UndecodableError(f"codes {codes_THW.dtype} {codes_THW.shape}")
    return len(codes_THW)


def _duplicates(hashes: npt.NDArray[np.uint64], passed_over: set[int]) -> dict[int, int]:
    """Every sample whose payload stood before, with the first that has it."""
    order = np.argsort(hashes, kind="stable")
    # Left in, one of them would part two that are alike.
    order = order[~np.isin(order, list(passed_over))]
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    first_of: dict[int, int] = {}
    for place in same.tolist():
        sample, before = int(order[place]), int(order[place - 1])
        first_of[sample] = first_of.get(before, before)
    return first_of


def _findings(
    dataset: Dataset, ailments: list[tuple[int, Ailment, str]], first_of: dict[int, int]
) -> list[Finding]:
    """All of them in order, with the names of the files."""
    wanted = {sample for sample, _, _ in ailments} | {*first_of, *first_of.values()}
    files = {n: file for n, file in enumerate(dataset.origins()) if n in wanted} if wanted else {}
    files = {sample: _printable(file) for sample, file in files.items()}
    found = [Finding(sample, files[sample], ail, detail) for sample, ail, detail in ailments]
    found += [
        Finding(sample, files[sample], "duplicate", f"the same bytes as {files[first]}")
        for sample, first in first_of.items()
    ]
    return sorted(found, key=lambda finding: finding.sample)


def _printable(text: str) -> str:
    """Lone surrogates, which older packings left in the paths of originals, can't be written."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def count_by_ailment(findings: Iterable[Finding]) -> Counter[str]:
    """How many samples have each ailment."""
    return Counter(finding.ailment for finding in findings)
