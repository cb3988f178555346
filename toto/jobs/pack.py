"""`toto pack` and `toto samples`: folders and installed packages become datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.pack import pack, plan_pack
from toto.data.samples import make_samples
from toto.data.workers import num_cores
from toto.errors import DataError
from toto.jobs.console import progress_bar, say

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.manifest import Orientation
    from toto.data.pack import PackReport

__all__ = ["make_sample_datasets", "pack_source"]


def pack_source(
    source: Path,
    out: Path,
    *,
    layout: str,
    split: str | None,
    workers: int | None,
    skip_broken: bool,
    orientation: Orientation,
) -> None:
    """Pack a folder and print a summary.

    Args:
        source: a folder, or a WebDataset tar.
        out: the dataset's folder.
        layout: one of `toto.data.layouts.LAYOUTS`.
        split: for layouts with splits.
        workers: processes that check files; None for one a core, 0 for none besides this one.
        skip_broken: leave out files that cannot be decoded.
        orientation: whether readers apply EXIF orientation and display matrices.

    Raises:
        DataError: see `plan_pack` and `pack`.
    """
    if out.exists():
        raise DataError(f"{out} exists already. Remove it, or choose another folder")
    plan = plan_pack(source, layout, split)
    for note in plan.notes:
        say(f"{plan.source}: {note}")
    with progress_bar(f"packing {plan.source}", plan.unit) as progress:
        report = pack(
            plan,
            out,
            workers=num_cores() if workers is None else workers,
            skip_broken=skip_broken,
            orientation=orientation,
            progress=progress,
            note=say,
        )
    what = "pictures" if report.kind == "images" else "videos"
    say(
        f"{out}: {report.num_samples:,} {what}, {report.num_frames:,} frames, "
        f"{report.num_bytes / 1e6:,.1f} MB in {report.num_shards:,} "
        f"{'shard' if report.num_shards == 1 else 'shards'}, "
        + (f"{len(report.classes)} classes" if report.classes else "no labels")
    )
    if report.turned:
        say(f"  {_describe_turned(report)}")
    if report.ignored:
        say(f"  {report.ignored} other files in the folder were left alone")
    for file in report.skipped:
        say(f"  left out {file.path}: {file.reason}")


def _describe_turned(report: PackReport) -> str:
    what = f"{report.turned:,} with an EXIF orientation or a display matrix"
    if report.orientation == "upright":
        return f"{what}: readers turn them upright (--orientation stored: not)"
    return f"{what}: readers ignore it (--orientation stored)"


def make_sample_datasets(root: Path) -> None:
    """Make the six sample datasets under `root`.

    Raises:
        UserError: a package that the samples come from is not installed.
    """
    with progress_bar(f"making samples in {root}") as progress:
        make_samples(root, progress=progress)
    for folder in sorted(root.iterdir()):
        say(f"{folder}")
