"""The report of a next-token run: its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from toto.analysis import plots
from toto.analysis.evaluations import CLASSES, FINETUNED, PROBES
from toto.analysis.figures import DPI
from toto.analysis.page import embedded, write_page
from toto.analysis.report import (
    COURSE_CAPTION,
    Reconstructions,
    ReportContent,
    Section,
    reconstruction_sheet,
)
from toto.analysis.summary import age, probe_table, summary, validation_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from toto.analysis.evaluations import Probing
    from toto.analysis.findings import Finding
    from toto.analysis.runs import Generated, RunRecord, SourceLoss

__all__ = ["TrainingReport", "write_training_report"]


CSS_DPI = 96
PROBE_CAPTION = (
    "Accuracy of a probe on the features of each layer, at its best learning rate and decay; the "
    "model does not learn from probes. The band is the 95% interval for the number of samples, "
    "bars are that of the mean over seeds, the ring is the best layer. Layer, rate and decay were "
    "chosen on the split that is shown, so the best value is optimistic."
)
PROBE_CAPTIONS = {
    CLASSES: "One pooling head and a linear classifier, trained through the whole model.",
}
PROBE_TITLES = {
    PROBES: "Accuracy by layer",
    FINETUNED: "Accuracy by layer, probes trained with the model,",
    CLASSES: "Classes through the whole model",
}
UTILISATION = (
    " Utilisation (MFU) is the model's own arithmetic, forward and backward, as a share of the "
    "device's peak; that of the last start is under Machine."
)


@dataclass(frozen=True, kw_only=True)
class TrainingReport(ReportContent):
    """All that the page shows.

    Attributes:
        record: what the run wrote; parts that are missing are named as not run.
        findings: what other commands left in the run, a section each.
        reconstructions: or why there are none.
        loss_unit: "nats/token", or what the loss of the run is measured in.
        no_generation: why the model generates nothing; None where it can.
    """

    record: RunRecord
    findings: list[Finding]
    reconstructions: Reconstructions | str
    loss_unit: str = "nats/token"
    no_generation: str | None = None


def write_training_report(out: Path, content: TrainingReport) -> None:
    """Write the page to `out`; an older one is replaced only when the new one is complete."""
    record = content.record
    write_page(
        out,
        "training_report.html",
        {
            "content": content,
            "run": record.folder,
            "summary": summary(record, content.loss_unit, can_generate=not content.no_generation),
            "validation": validation_table(record),
            "loss_sections": _loss_sections(content),
            "probe_sections": [_probe_section(record, one) for one in record.probings],
            "findings": [_finding(one, record) for one in content.findings],
            "reconstructions": _reconstructions(content),
            "generated": record.generated,
            "generation_caption": _generation_caption(record.generated),
            "samples": _samples(record.generated, record.generated_folder),
            "generated_earlier": [
                str(path.relative_to(record.folder)) for path in record.generated_earlier
            ],
        },
    )


def _loss_sections(content: TrainingReport) -> list[Section]:
    record, unit = content.record, content.loss_unit
    last = record.evals[-1].sources if record.evals else {}
    training = [plots.training_loss(record.train, unit)] if record.train else []
    if record.train and len(record.train[-1].source_loss) > 1:
        training.append(plots.source_losses(record.train, unit))
    validation = [plots.validation_loss(record.evals, source, unit) for source in last]
    return [
        Section(
            "Loss against tokens",
            f"Lower is better{_baselines(last.values())}.",
            training + validation,
            content.command,
        ),
        *_frame_sections(content),
        Section(
            "Training curves",
            COURSE_CAPTION + (UTILISATION if _knows_utilisation(record) else ""),
            plots.training_curves(record.train) if record.train else [],
            content.command,
            small=True,
        ),
    ]


def _baselines(losses: Iterable[SourceLoss]) -> str:
    """Return what the caption says of the baselines that were measured."""
    losses = list(losses)
    if all(loss.unigram is None for loss in losses):
        return ""
    unigram = "the unigram predicts each token from its frequency alone"
    if all(loss.copy is None for loss in losses):
        return f": the model's curve should fall below the line. {unigram.capitalize()}"
    return (
        ": the model's curve should fall below both lines. Copying predicts each token from the "
        f"same place of the frame before, {unigram}"
    )


def _frame_sections(content: TrainingReport) -> list[Section]:
    """Return no section for a model that was evaluated without frames to compare.

    It predicts classes, or its sequences are single frames.
    """
    evals = content.record.evals
    panels = [
        plots.loss_by_frame(loss, source, content.loss_unit)
        for source, loss in (evals[-1].sources if evals else {}).items()
        if loss.frame_loss is not None and len(loss.frame_loss) > 1
    ]
    if evals and not panels:
        return []
    return [
        Section(
            "Loss by frame",
            "The last evaluation, frame by frame: a curve that falls from left to right means that "
            "the model uses the frames it has seen.",
            panels,
            content.command,
        )
    ]


def _knows_utilisation(record: RunRecord) -> bool:
    return any(point.utilisation is not None for point in record.train)


def _probe_section(record: RunRecord, probing: Probing) -> dict[str, Any]:
    """One result of probes or classifiers: what it is of, its curve, its table."""
    step = "an unknown step" if probing.step is None else f"step {probing.step:,}"
    caption = (
        f"{PROBE_CAPTIONS.get(probing.name, PROBE_CAPTION)} It has {probing.samples}; the "
        f"checkpoint is that of {step}. Files: {probing.folder.relative_to(record.folder)}."
    )
    several = len({row.layer for row in probing.rows}) > 1
    return {
        "title": f"{PROBE_TITLES.get(probing.name, f'Accuracy by layer: {probing.name}')} on "
        f"{probing.source}",
        "caption": caption + age(record, probing.step),
        "small": False,
        "panels": [plots.accuracy_by_layer(probing.rows)] if several else [],
        "notes": probing.notes,
        "table": probe_table(probing),
    }


def _finding(found: Finding, record: RunRecord) -> dict[str, Any]:
    """A section: its lines, the last with a warning where the run has gone on since."""
    *lines, last = found.lines
    return {
        "title": found.title,
        "caption": found.caption,
        "lines": [*lines, last + age(record, found.step)],
        "picture": None if found.picture is None else embedded(found.picture, found.picture.parent),
        "width": None if found.picture is None else _shown_width(found.picture),
    }


def _shown_width(picture: Path) -> int:
    """In CSS pixels: the width in inches that the picture was drawn for."""
    with Image.open(picture) as image:
        return round(image.width * CSS_DPI / DPI)


def _reconstructions(content: TrainingReport) -> dict[str, str | int] | None:
    if isinstance(content.reconstructions, str):
        return None
    return reconstruction_sheet(content.reconstructions)


def _generation_caption(generated: Generated | None) -> str:
    """What the pictures show, by what the sequences began with."""
    if generated is None:
        return ""
    new = f"{generated.frames} {'frame' if generated.frames == 1 else 'frames'}"
    if generated.prompts == "start":
        what = "a video" if generated.start == "video" else "separate images"
        return (
            f"{new} without a prompt, from the start of {what}; there is nothing to compare with."
        )
    prompts = {
        "held-out": f"the first frames of validation videos of {generated.source}",
        "files": "prompts from files",
    }
    return (
        f"{new} after {prompts[generated.prompts]}. The frames of the prompt have a border. The "
        "real continuation, where there is one, is shown next to the generated one."
    )


def _samples(generated: Generated | None, folder: Path) -> list[dict[str, str]]:
    """The pictures of each generated sequence as data URIs, and what it is."""
    if generated is None:
        return []
    return [
        {
            "gif": embedded(folder / one.gif, folder),
            "sheet": embedded(folder / one.sheet, folder),
            "title": f"{one.prompt}, seed {one.seed}",
        }
        for one in generated.samples
    ]
