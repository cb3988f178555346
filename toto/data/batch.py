"""What the loader hands to a task."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

if TYPE_CHECKING:
    import torch

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """B sequences of T frames, as pixels or as a tokenizer's codes: exactly one of the two is set.

    Attributes:
        pixels_BTCHW: uint8 RGB frames, square.
        codes_BTHW: int64 codes from 0, without the offset of the special ids.
        is_image_B: bool; True for T separate images, False for T frames of one video.
        source_B: int64 index into the recipe's sources.
        position_B: int64 global position in the stream, which names the sample.
        label_B: int64 class of the first frame's sample, -1 without a label.
        padding: it only repeats a sequence, so that all ranks run as many micro-batches, and has
            no targets.
        label_BT: int64 class of each frame's sample; None: all frames are of the first's sample.
    """

    pixels_BTCHW: Tensor | None
    codes_BTHW: Tensor | None
    is_image_B: Tensor
    source_B: Tensor
    position_B: Tensor
    label_B: Tensor
    padding: bool = False
    label_BT: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.pixels_BTCHW is None) == (self.codes_BTHW is None):
            raise ValueError("a Batch holds pixels or codes, one of the two")

    def __len__(self) -> int:
        return len(self.is_image_B)

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def frame_labels(self) -> Tensor:
        """Class of each frame's sample, int64 `BT`, -1 without a label."""
        if self.label_BT is not None:
            return self.label_BT
        return self.label_B[:, None].expand(-1, self.frames().shape[1])

    def frames(self) -> Tensor:
        """Whichever of pixels and codes is set; both begin with `BT`."""
        frames = self.pixels_BTCHW if self.pixels_BTCHW is not None else self.codes_BTHW
        assert frames is not None
        return frames
