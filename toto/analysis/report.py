"""What the report of any run holds: one HTML page, with its figures, pictures and recipe inside.

The page asks for nothing outside itself: styles and figures are inline, pictures are data URIs.
`report.html` is what the pages of all runs share; each verb's page extends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from toto.analysis.page import png_uri
from toto.generation.media import pixel_scale, sheet
from toto.tokenizers.quality import psnr

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from toto.analysis.panels import Panel

__all__ = [
    "COURSE_CAPTION",
    "DataSource",
    "Reconstructions",
    "ReportContent",
    "Section",
    "reconstruction_sheet",
]


COURSE_CAPTION = (
    "The learning rate follows its schedule, the gradient's norm should stay bounded, the speed "
    "even, and the wait for data near zero."
)


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


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """What every report shows, in plain values.

    Attributes:
        name: of the run.
        command: the command that trained the run.
        recipe: the resolved recipe as YAML text.
        sources: the mixture.
        facts: sizes worth reading first, for example {"parameters": "3.1 M"}.
        versions: package → version.
        machine: for example {"processor": ..., "precision": "bf16"}.
    """

    name: str
    command: str
    recipe: str
    sources: list[DataSource]
    facts: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Figures beside each other and how to read them, or the command that would make them.

    `small` figures stand closer.
    """

    title: str
    caption: str
    panels: list[Panel]
    command: str
    small: bool = False


def reconstruction_sheet(pictures: Reconstructions) -> dict[str, str | int]:
    """The pictures above their reconstructions as `image`, a data URI.

    Beside it `width`, in pixels, and `psnr`, the mean in dB.
    """
    values = psnr(_pixels(pictures.originals_NHWC), _pixels(pictures.decoded_NHWC)).tolist()
    image_HWC = sheet(
        {"original": pictures.originals_NHWC, "decoded": pictures.decoded_NHWC},
        [f"{value:.1f} dB" for value in values],
        scale=pixel_scale(pictures.originals_NHWC.shape[1]),
    )
    return {
        "image": png_uri(image_HWC),
        "width": image_HWC.shape[1],
        "psnr": f"{np.mean(values):.1f}",
    }


def _pixels(pictures_NHWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).double() / 255
