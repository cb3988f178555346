"""`toto pack` and `toto samples`: folders and installed packages become datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.pack import pack_folder
from toto.data.samples import make_samples
from toto.jobs.console import progress_bar, say

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_sample_datasets", "pack_source"]


def pack_source(source: Path, out: Path, *, skip_broken: bool) -> None:
    """Pack a folder and say what became of it.

    Raises:
        DataError: see `pack_folder`.
    """
    with progress_bar(f"packing {source}") as progress:
        report = pack_folder(source, out, skip_broken=skip_broken, progress=progress)
    what = "pictures" if report.kind == "images" else "videos"
    say(
        f"{out}: {report.num_samples:,} {what}, {report.num_frames:,} frames, "
        f"{report.num_bytes / 1e6:,.1f} MB in {report.num_shards} shards, "
        + (f"{len(report.classes)} classes" if report.classes else "no labels")
    )
    if report.ignored:
        say(f"  {report.ignored} other files in the folder were left alone")
    for file in report.skipped:
        say(f"  left out {file.path}: {file.reason}")


def make_sample_datasets(root: Path) -> None:
    """Make the six sample datasets under `root`.

    Raises:
        UserError: a package that the samples come from is not installed.
    """
    with progress_bar(f"making samples in {root}") as progress:
        make_samples(root, progress=progress)
    for folder in sorted(root.iterdir()):
        say(f"{folder}")
