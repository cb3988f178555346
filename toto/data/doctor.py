"""What is wrong with a dataset: every shard read, every sample decoded, found out before a run."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from toto.data.decode import UndecodableError, count_frames
from toto.data.index import EXCLUDED_FILE, NO_LABEL
from toto.data.progress import Progress, silent
from toto.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from toto.data.config import ClipConfig
    from toto.data.index import Dataset

__all__ = ["PAPER_SIZES", "Finding", "PaperSize", "examine", "exclude", "unlike_paper"]

Ailment = Literal["missing", "undecodable", "short", "duplicate", "unlabelled"]
HASH_CHUNK = 2**24


@dataclass(frozen=True)
class Finding:
    """One sample that is not as it should be.

    Attributes:
        sample: its number in the dataset.
        file: its original.
        ailment: `missing` where its shard is gone or changed.
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
class _ShardReport:
    """What one shard holds: (sample, ailment, detail), and a hash of every payload."""

    ailments: list[tuple[int, Ailment, str]]
    hashes: npt.NDArray[np.uint64]


def examine(
    dataset: Dataset, clip: ClipConfig, *, workers: int = 1, progress: Progress = silent
) -> list[Finding]:
    """Read a whole dataset; samples that are excluded already are passed over.

    Shards are compared with the manifest's sizes and checksums. Pictures are decoded; of videos
    the frames are counted, and the first and the last are decoded; codes are counted. A sample is
    a duplicate if an earlier one has the same bytes.

    Args:
        dataset: raw or tokens.
        clip: what a video must be long enough for.
        workers: processes; the findings do not depend on their number.
        progress: called after each shard.

    Returns:
        At most one finding a sample, in order.
    """
    shards = range(len(dataset.manifest.shards))
    jobs = [(dataset, shard, clip.span if dataset.kind == "videos" else 1) for shard in shards]
    ailments: list[tuple[int, Ailment, str]] = []
    hashes = []
    with ProcessPoolExecutor(workers) as pool:
        for done, report in enumerate(pool.map(_examine_shard, jobs), start=1):
            ailments += report.ailments
            hashes.append(report.hashes)
            progress(done, len(jobs))
    ailing = {sample for sample, _, _ in ailments}
    ailments += _duplicates(np.concatenate(hashes), ailing | set(dataset.excluded.tolist()))
    return _with_files(dataset, sorted(ailments))


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
        for line in path.read_text(encoding="utf-8").splitlines():
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


def _examine_shard(job: tuple[Dataset, int, int]) -> _ShardReport:
    dataset, shard, span = job
    first, last = dataset.shard_starts[shard : shard + 2].tolist()
    hashes = np.zeros(last - first, dtype=np.uint64)
    reason = _changed(dataset, shard)
    excluded = set(dataset.excluded.tolist())
    samples = [sample for sample in range(first, last) if sample not in excluded]
    if reason is not None:
        return _ShardReport([(sample, "missing", reason) for sample in samples], hashes)
    ailments: list[tuple[int, Ailment, str]] = []
    for sample in samples:
        payload = dataset.read(sample)
        digest = hashlib.blake2b(payload, digest_size=8).digest()
        hashes[sample - first] = int.from_bytes(digest, "little")
        ailment = _ailment(dataset, sample, payload, span)
        if ailment is not None:
            ailments.append((sample, *ailment))
    return _ShardReport(ailments, hashes)


def _changed(dataset: Dataset, shard: int) -> str | None:
    entry = dataset.manifest.shards[shard]
    path = dataset.folder / entry.name
    if not path.is_file():
        return f"{entry.name} is missing"
    if path.stat().st_size != entry.bytes:
        return f"{entry.name} has {path.stat().st_size} bytes instead of {entry.bytes}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return None if digest.hexdigest() == entry.sha256 else f"{entry.name} has another checksum"


def _ailment(
    dataset: Dataset, sample: int, payload: memoryview, span: int
) -> tuple[Ailment, str] | None:
    expected = dataset.frames(sample)
    try:
        frames = _count(dataset, payload)
    except UndecodableError as error:
        return "undecodable", str(error)
    if frames != expected:
        return "undecodable", f"{frames} frames, and the index says {expected}"
    if frames < span:
        return "short", f"{frames} frames, and a clip takes {span}"
    if dataset.classes and dataset.label(sample) == NO_LABEL:
        return "unlabelled", "no label in a dataset with classes"
    return None


def _count(dataset: Dataset, payload: memoryview) -> int:
    if dataset.form == "raw":
        return count_frames(dataset.kind, payload)
    try:
        codes_THW = np.load(io.BytesIO(payload), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UndecodableError(f"no .npy array ({error})") from error
    if codes_THW.dtype != np.uint16 or codes_THW.shape[1:] != dataset.tokens.grid:
        raise UndecodableError(f"codes {codes_THW.dtype} {codes_THW.shape}")
    return len(codes_THW)


def _duplicates(
    hashes: npt.NDArray[np.uint64], passed_over: set[int]
) -> list[tuple[int, Ailment, str]]:
    """Every sample whose payload stood before, with the first that has it."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    first_of: dict[int, int] = {}
    found: list[tuple[int, Ailment, str]] = []
    for place in same.tolist():
        sample, before = int(order[place]), int(order[place - 1])
        if {sample, before} & passed_over:
            continue
        first_of[sample] = first = first_of.get(before, before)
        found.append((sample, "duplicate", f"the same bytes as sample {first}"))
    return found


def _with_files(dataset: Dataset, ailments: list[tuple[int, Ailment, str]]) -> list[Finding]:
    wanted = {sample for sample, _, _ in ailments}
    files = {n: file for n, file in enumerate(dataset.origins()) if n in wanted} if wanted else {}
    return [Finding(sample, files[sample], ail, detail) for sample, ail, detail in ailments]


def count_by_ailment(findings: Iterable[Finding]) -> Counter[str]:
    """How many samples have each ailment."""
    return Counter(finding.ailment for finding in findings)
