"""`toto pack` and `toto samples`: folders and installed packages become datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.pack import pack, plan_pack
from toto.data.samples import make_samples
from toto.data.workers import num_cores
from toto.errors import DataError
from toto.jobs.console import progress_bar, say
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_sample_datasets", "pack_source"]


def pack_source(
    source: Path,
    out: Path,
    *,
    layout: str,
    split: str | None,
    workers: int | None,
    skip_broken: bool,
) -> None:
    """Pack a folder and say what became of it.

    Args:
        source: a folder, or a WebDataset tar.
        out: the dataset's folder.
        layout: one of `toto.data.layouts.LAYOUTS`.
        split: for layouts with splits.
        workers: processes that check files; None for one a core, 0 for none besides this one.
        skip_broken: leave out files that cannot be decoded.

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
            progress=progress,
            note=say,
        )
    what = "pictures" if report.kind == "images" else "videos"
    say(
        f"{out}: {report.num_samples:,} {what}, {number_of(report.num_frames, 'frame')}, "
        f"{report.num_bytes / 1e6:,.1f} MB in {report.num_shards:,} "
        f"{'shard' if report.num_shards == 1 else 'shards'}, "
        + (number_of(len(report.classes), "class", "classes") if report.classes else "no labels")
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
