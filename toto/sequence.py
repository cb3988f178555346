"""How frames become one sequence: special ids, lengths, and where each frame stands.

A sequence is `start, T·H·W visual tokens in raster order frame by frame, end` (paper §3.4).
Inputs drop the last element, targets the first, so both are `T·H·W + 1` long: input 0 is the
start, input 1+i and target i belong to visual token i, and the last target is the end.

Axis letters, here and everywhere: B batch, T frames, H W token grid, L sequence, D width,
N heads, K head size, V vocabulary, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "END_ID",
    "IMAGE_START_ID",
    "NUM_SPECIAL_IDS",
    "PAD_ID",
    "VIDEO_START_ID",
    "SequenceLayout",
]

# The paper's own ids 1, 2 and 3 (§3.4); visual ids follow after them, so that none collides.
PAD_ID = 0
VIDEO_START_ID = 1
END_ID = 2
IMAGE_START_ID = 3
NUM_SPECIAL_IDS = 4


@dataclass(frozen=True)
class SequenceLayout:
    """The shape of one sequence: `frames` grids of `height` × `width` tokens."""

    frames: int
    height: int
    width: int

    @property
    def tokens_per_frame(self) -> int:
        """H·W."""
        return self.height * self.width

    @property
    def num_visual(self) -> int:
        """T·H·W: the visual tokens, which the paper's "4096" counts."""
        return self.frames * self.tokens_per_frame

    @property
    def length(self) -> int:
        """Inputs and targets of one sequence: the visual tokens and one special."""
        return self.num_visual + 1

    def num_targets(self, output: Literal["codes", "patches"]) -> int:
        """Targets of one sequence: the visual tokens, and for codes the end, which is an id."""
        return self.length if output == "codes" else self.num_visual

    def frame_of_visual(self, index: int) -> int:
        """The frame that visual token `index` belongs to."""
        return index // self.tokens_per_frame

    def start_ids(self, is_image_B: Tensor) -> Tensor:
        """The start id of each sequence: `is_image_B` bool → int64 B."""
        return is_image_B.long() * (IMAGE_START_ID - VIDEO_START_ID) + VIDEO_START_ID

    def inputs(self, codes_BTHW: Tensor, is_image_B: Tensor) -> Tensor:
        """Codes of a tokenizer (int64, from 0) → input ids `BL`: start, then visual ids."""
        ids_BL = codes_BTHW.new_empty(codes_BTHW.shape[0], self.length)
        ids_BL[:, 0] = self.start_ids(is_image_B)
        ids_BL[:, 1:] = codes_BTHW.flatten(1) + NUM_SPECIAL_IDS
        return ids_BL

    def targets(self, codes_BTHW: Tensor) -> Tensor:
        """Codes of a tokenizer (int64, from 0) → target ids `BL`: visual ids, then the end."""
        ids_BL = codes_BTHW.new_empty(codes_BTHW.shape[0], self.length)
        ids_BL[:, :-1] = codes_BTHW.flatten(1) + NUM_SPECIAL_IDS
        ids_BL[:, -1] = END_ID
        return ids_BL

    def visual_to_grid(self, x_BLD: Tensor) -> Tensor:
        """`[B, T·H·W, ...]` → `[B, T, H, W, ...]`."""
        batch, _, *rest = x_BLD.shape
        return x_BLD.reshape(batch, self.frames, self.height, self.width, *rest)
