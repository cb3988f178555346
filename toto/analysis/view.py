"""A page of a dataset's samples: what a person should see before a month of GPU is spent on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toto.analysis.page import png_uri, write_page
from toto.generation.media import pixel_scale, sheet

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ViewContent", "ViewedSample", "write_view"]


@dataclass(frozen=True)
class ViewedSample:
    """One sample.

    Attributes:
        title: its key and label.
        frames_THWC: uint8 RGB, after crop and stride; of a picture there is one.
        frame_names: one above each frame; none of a picture.
    """

    title: str
    frames_THWC: NDArray[np.uint8]
    frame_names: list[str]


@dataclass(frozen=True)
class ViewContent:
    """All that the page shows.

    Attributes:
        name: of the dataset.
        facts: sizes worth reading first.
        caption: how the samples were cut, and what the frames are.
        samples: in the order in which training would draw them.
        classes: name → number of samples; empty without labels.
    """

    name: str
    facts: dict[str, str]
    caption: str
    samples: list[ViewedSample]
    classes: dict[str, int] = field(default_factory=dict)


def write_view(out: Path, content: ViewContent) -> None:
    """Write the page to `out`.

    Raises:
        RunError: the disk is full or refuses.
    """
    clips = [_shown(one, _strip(one)) for one in content.samples if one.frame_names]
    pictures = [_shown(one, one.frames_THWC[0]) for one in content.samples if not one.frame_names]
    classes = [[name, f"{count:,}"] for name, count in content.classes.items()]
    write_page(
        out,
        "view.html",
        {"content": content, "clips": clips, "pictures": pictures, "classes": classes},
    )


def _strip(sample: ViewedSample) -> NDArray[np.uint8]:
    scale = pixel_scale(sample.frames_THWC.shape[1], target=96)
    return sheet({"": sample.frames_THWC}, sample.frame_names, scale=scale)


def _shown(sample: ViewedSample, image_HWC: NDArray[np.uint8]) -> dict[str, str | int]:
    return {"title": sample.title, "image": png_uri(image_HWC), "width": image_HWC.shape[1]}
