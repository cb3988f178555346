"""`toto pack` and `toto samples`: folders and installed packages become datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.class_folders import SplitsError
from toto.data.class_names import name_some, read_class_names
from toto.data.pack import pack, plan_pack
from toto.data.parts import is_published
from toto.data.samples import make_samples
from toto.data.tar_plan import TarPlan
from toto.data.walk import describe_left
from toto.data.workers import num_cores
from toto.errors import DataError
from toto.files import require_writable, sole_writer
from toto.jobs.console import progress_bar, say
from toto.terminal import one_line
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.manifest import Kind, Orientation
    from toto.data.pack import PackReport
    from toto.data.plan import Plan

__all__ = ["make_sample_datasets", "pack_source"]


def pack_source(
    source: Path,
    out: Path,
    *,
    layout: str,
    split: str | None,
    kind: Kind | None,
    class_list: str | None,
    workers: int | None,
    skip_broken: bool,
    orientation: Orientation,
) -> None:
    """Pack a folder, and print what was packed and what was left out.

    Args:
        source: a folder, or a WebDataset tar.
        out: the dataset's folder.
        layout: one of `toto.data.layouts.LAYOUTS`.
        split: the sub-folder to pack, such as train.
        kind: what to pack where images and videos are together.
        class_list: whose classes are taken; see `read_class_names`. None: those of SRC.
        workers: processes that check files; None for one a core, 0 for none besides this one.
        skip_broken: leave out files that cannot be decoded.
        orientation: whether readers apply EXIF orientation and display matrices.

    Raises:
        DataError: see `plan_pack` and `pack`.
        UserError: `out` cannot be written.
    """
    if is_published(out):
        raise DataError(f"{out} exists already. Remove it, or choose another folder")
    require_writable(out, "Choose another folder")
    classes = None if class_list is None else read_class_names(class_list)
    try:
        plan = plan_pack(source, layout, split, kind=kind, classes=classes)
    except SplitsError as error:
        raise error.for_output(out) from None
    for note in plan.notes:
        say(one_line(f"{plan.source}: {note}"))
    with sole_writer(out), progress_bar(f"packing {plan.source}", plan.unit) as progress:
        report = pack(
            plan,
            out,
            workers=num_cores() if workers is None else workers,
            skip_broken=skip_broken,
            orientation=orientation,
            progress=progress,
            note=say,
        )
    _say_report(plan, report)


def _say_report(plan: Plan, report: PackReport) -> None:
    samples = number_of(report.num_samples, report.kind.removesuffix("s"))
    say(
        f"{report.path}: {samples}, {number_of(report.num_frames, 'frame')}, "
        f"{report.num_bytes / 1e6:,.1f} MB in {number_of(report.num_shards, 'shard')}, "
        + _describe_classes(report.classes)
    )
    if report.unlabelled:
        say(f"  without a label: {number_of(report.unlabelled, report.kind.removesuffix('s'))}")
    if not report.classes and isinstance(plan, TarPlan) and report.left.get(".json"):
        say("  labels in .json are not read: write them as .cls, or sort the files into folders")
    if report.turned:
        say(f"  {_describe_turned(report)}")
    if report.left:
        say(f"  left alone: {describe_left(report.left)}")
    for file in report.skipped:
        say(f"  left out {one_line(file.path)}: {file.reason}")


def _describe_classes(classes: tuple[str, ...]) -> str:
    if not classes:
        return "no labels"
    return f"{number_of(len(classes), 'class', 'classes')} ({one_line(name_some(classes))})"


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
