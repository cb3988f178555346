"""The report of a run: one HTML page with its figures, pictures, recipe and versions inside.

The page asks for nothing outside itself: styles and figures are inline, pictures are data URIs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from toto.analysis import plots
from toto.analysis.page import data_uri, png_uri, write_page
from toto.analysis.summary import probe_table, summary, validation_table
from toto.generation.media import pixel_scale, sheet
from toto.tokenizers.quality import psnr

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from toto.analysis.runs import Generated, RunRecord

__all__ = ["DataSource", "Reconstructions", "ReportContent", "write_report"]


@dataclass(frozen=True)
class DataSource:
    """One source of the mixture: what it holds, and what the run has drawn of it.

    `tokens` are visual tokens, `share` is of the sequences, `failures` counts units that could not
    be decoded and were replaced.
    """

    name: str
    path: str
    samples: int
    validation_samples: int
    share: float
    tokens: int
    epochs: float
    failures: int


@dataclass(frozen=True)
class Reconstructions:
    """Pictures and what the tokenizer makes of them: uint8 RGB `NHWC`, in the same order."""

    originals_NHWC: NDArray[np.uint8]
    decoded_NHWC: NDArray[np.uint8]


@dataclass(frozen=True)
class ReportContent:
    """All that a report shows, in plain values.

    Attributes:
        name: of the run.
        record: what the run wrote; parts that are missing are named as not run.
        command: the command that trained the run.
        recipe: the resolved recipe as YAML text.
        sources: the mixture.
        reconstructions: or why there are none.
        loss_unit: "nats/token", or what the loss of the run is measured in.
        samples_video: whether the model's predictions can be drawn and taken in again.
        facts: sizes worth reading first, for example {"parameters": "3.1 M"}.
        versions: package → version.
        machine: for example {"processor": ..., "precision": "bf16"}.
    """

    name: str
    record: RunRecord
    command: str
    recipe: str
    sources: list[DataSource]
    reconstructions: Reconstructions | str
    loss_unit: str = "nats/token"
    samples_video: bool = True
    facts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Figures beside each other and how to read them, or the command that would make them."""

    title: str
    caption: str
    panels: list[plots.Panel]
    command: str


def write_report(out: Path, content: ReportContent) -> None:
    """Write the page to `out`; an older one is replaced only when the new one is complete."""
    record = content.record
    write_page(
        out,
        "report.html",
        {
            "content": content,
            "run": record.folder,
            "summary": summary(record, content.loss_unit),
            "validation": validation_table(record),
            "probes": probe_table(record),
            "loss_sections": _loss_sections(content),
            "probe_section": _probe_section(record),
            "reconstructions": _reconstruction_sheet(content.reconstructions),
            "generated": record.generated,
            "samples": _samples(record.generated, record.generated_folder),
        },
    )


def _loss_sections(content: ReportContent) -> list[Section]:
    record, unit = content.record, content.loss_unit
    last = record.evals[-1].sources if record.evals else {}
    training = [plots.training_loss(record.train, unit)] if record.train else []
    validation = [plots.validation_loss(record.evals, source, unit) for source in last]
    baselines = (
        ": the curve of the model should fall below both lines. Copying predicts each token from "
        "the same place of the frame before, the unigram from the token's frequency alone"
    )
    compared = any(loss.unigram is not None for loss in last.values())
    return [
        Section(
            "Loss against tokens",
            f"Lower is better{baselines if compared else ''}.",
            training + validation,
            content.command,
        ),
        Section(
            "Loss by frame",
            "The last evaluation, frame by frame: a curve that falls from left to right means that "
            "the model uses the frames it has seen.",
            [plots.loss_by_frame(loss, source, unit) for source, loss in last.items()],
            content.command,
        ),
        Section(
            "The course of the training",
            "The learning rate follows its schedule, the gradient's norm should stay bounded, and "
            "the speed even.",
            plots.training_curves(record.train) if record.train else [],
            content.command,
        ),
    ]


def _probe_section(record: RunRecord) -> Section:
    return Section(
        "Accuracy by layer",
        "How well a linear classifier reads the label from each layer of the frozen model, at its "
        "best learning rate: the band is the 95% interval that the number of samples leaves, the "
        "ring the best layer. Layer and learning rate were chosen on the very split that is shown, "
        "so the best value leans high.",
        [plots.accuracy_by_layer(record.probes)] if record.probes else [],
        f"toto probe {record.folder}",
    )


def _reconstruction_sheet(pictures: Reconstructions | str) -> dict[str, str] | None:
    """The pictures above their reconstructions, as a data URI, and the mean PSNR."""
    if isinstance(pictures, str):
        return None
    values = psnr(_pixels(pictures.originals_NHWC), _pixels(pictures.decoded_NHWC)).tolist()
    image_HWC = sheet(
        {"original": pictures.originals_NHWC, "decoded": pictures.decoded_NHWC},
        [f"{value:.1f} dB" for value in values],
        scale=pixel_scale(pictures.originals_NHWC.shape[1]),
    )
    return {"image": png_uri(image_HWC), "psnr": f"{np.mean(values):.1f}"}


def _pixels(pictures_NHWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).double() / 255


def _samples(generated: Generated | None, folder: Path) -> list[dict[str, str]]:
    """The pictures of each generated video as data URIs."""
    if generated is None:
        return []
    return [
        {name: _embed(folder / path) for name, path in (("gif", one.gif), ("sheet", one.sheet))}
        for one in generated.samples
    ]


def _embed(path: Path) -> str:
    return data_uri(path.read_bytes(), path.suffix)
