"""`toto doctor`: a dataset examined, and what streams should leave out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from toto.data.config import ClipConfig
from toto.data.doctor import (
    PAPER_SIZES,
    Finding,
    changed_shards,
    count_by_ailment,
    examine,
    exclude,
    unlike_paper,
)
from toto.data.index import EXCLUDED_FILE, Dataset
from toto.data.workers import num_cores
from toto.errors import UserError
from toto.files import disk_errors, require_writable, write_atomic
from toto.jobs.console import progress_bar, say
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["examine_dataset"]

SHOWN = 5
EXPLANATIONS = {
    "missing": "the shard is gone or changed",
    "index": "the index and the tar disagree",
    "undecodable": "cannot be decoded whole",
    "short": "fewer frames than a clip",
    "duplicate": "the same bytes as an earlier sample",
    "unlabelled": "no label in a dataset with classes",
}


def examine_dataset(
    path: Path, *, frames: int, stride: int, like: str | None, fix: bool, listing: Path
) -> bool:
    """Examine a dataset, print a summary and write the findings as JSON lines.

    Args:
        path: of the dataset.
        frames: T of a clip.
        stride: every stride-th frame.
        like: a row of the paper's Table 2 to compare with.
        fix: write the findings to the dataset's list of excluded samples, all but unlabelled ones.
        listing: the file of the findings.

    Returns:
        Whether all is well: nothing was found, or what was found and harms is excluded now.

    Raises:
        UserError: no such row of Table 2, a file that cannot be written, which is found before the
            work, or no sample would be left.
    """
    if like is not None and like not in PAPER_SIZES:
        raise UserError(f"--like {like}: the paper's Table 2 has {', '.join(PAPER_SIZES)}")
    dataset = Dataset.open(path)
    require_writable(listing, "Name another file for the findings with --list FILE")
    if fix:
        require_writable(
            dataset.folder / EXCLUDED_FILE,
            "--fix writes into the dataset: correct its permissions, or copy it elsewhere",
        )
    clip = ClipConfig(frames=frames, stride=stride)
    with progress_bar(f"checking {path}", "shards") as progress:
        changed = changed_shards(dataset, workers=num_cores(), progress=progress)
    with progress_bar(f"examining {path}", "samples") as progress:
        findings = examine(dataset, clip, changed, workers=num_cores(), progress=progress)
    _say_summary(dataset, findings)
    lines = "".join(json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in findings)
    with disk_errors(listing):
        write_atomic(listing, lines)
    say(f"findings: {len(findings):,}, listed in {listing}")
    unlike = unlike_paper(dataset, like) if like is not None else None
    if unlike is not None:
        say(f"unlike the paper: {unlike}")
    if not findings:
        return unlike is None
    # Pre-training needs no labels, and probes pass over samples without one.
    harmful = [finding for finding in findings if finding.ailment != "unlabelled"]
    if len(harmful) < len(findings):
        say("unlabelled samples stay: training needs no labels, and probes pass over them")
    if not fix:
        if harmful:
            say(f"let streams leave out {len(harmful):,} of them: the same command with --fix")
        return False
    if len(harmful) + len(dataset.excluded) == dataset.num_samples:
        raise UserError(f"{path}: all {dataset.num_samples:,} samples ail; none would be left")
    say(f"streams of {path} leave out {exclude(dataset, harmful):,} of its samples now")
    return unlike is None


def _say_summary(dataset: Dataset, findings: list[Finding]) -> None:
    frames = int(dataset.frame_counts(0, dataset.num_samples).sum())
    shards = len(dataset.manifest.shards)
    say(
        f"{dataset.path}: {dataset.num_samples:,} {dataset.kind} ({dataset.form}), {frames:,} "
        f"frames in {shards:,} {'shard' if shards == 1 else 'shards'}, "
        f"{number_of(len(dataset.classes), 'class', 'classes')}; {len(dataset.excluded):,} "
        "excluded before"
    )
    if dataset.manifest.format_version == 2 and dataset.form == "raw":
        say(
            "  packed by an older toto: orientation is ignored, and frames of videos were counted "
            "by packets. Pack the originals again to apply today's rules"
        )
    unprotected = dataset.manifest.unprotected
    if unprotected:
        say(
            f"  packed by an older toto: {', '.join(unprotected)} have no checksum, so that damage "
            "to them is found only where they contradict the shards. Pack the originals again"
        )
    counts = count_by_ailment(findings)
    for ailment, explanation in EXPLANATIONS.items():
        say(f"  {ailment:<12}{counts[ailment]:>8,}  {explanation}")
        of_kind = [finding for finding in findings if finding.ailment == ailment]
        for finding in of_kind[:SHOWN]:
            say(f"      {finding.file}: {finding.detail}")
        if len(of_kind) > SHOWN:
            say(f"      and {len(of_kind) - SHOWN:,} more")
