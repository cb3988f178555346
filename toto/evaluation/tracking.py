"""Tracking: masks that follow the features of a frozen model through a video (paper §4.5).

A frame is read as a sequence of its own, so that its features know nothing of the frames before;
all layers come from one pass of the model, and labels are propagated for each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from toto.data.transforms import squeeze
from toto.errors import RunError
from toto.evaluation.propagation import LabelTrack, Preset, labels_of, mask_of, tiles
from toto.evaluation.tracking_metrics import SequenceScorer, scored_frames
from toto.tokenizers.base import PatchGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from toto.data.davis import DavisSequence, Ids
    from toto.data.decode import Frame
    from toto.evaluation.tracking_metrics import ObjectScore
    from toto.model import AutoregressiveModel
    from toto.tokenizers.base import Tokenizer

__all__ = ["FrameFeatures", "score_copies", "score_masks", "track"]


@dataclass(frozen=True)
class FrameFeatures:
    """Reads the features of single frames from a frozen model.

    Attributes:
        model: in evaluation mode, as is the tokenizer, on the same device; its mask is one for
            frames of this resolution.
        tokenizer: of the model; it runs in fp32.
        layers: resolved, 0..L.
        resolution: side of the square that a frame is squeezed to.
        start: what the sequence of one frame begins with.
        precision: of the model's pass.
    """

    model: AutoregressiveModel
    tokenizer: Tokenizer
    layers: Sequence[int]
    resolution: int
    start: Literal["image", "video"]
    precision: Literal["fp32", "bf16"]

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def read(self, picture_HWC: Frame) -> dict[int, Tensor]:
        """Features of a frame after each layer, `{layer: HWD}`, fp32.

        Raises:
            RunError: features that are not finite.
        """
        pixels_RRC = torch.from_numpy(squeeze(picture_HWC[None], self.resolution)[0])
        pixels_1CRR = pixels_RRC.to(self.device).permute(2, 0, 1)[None].float() / 255
        grid = self.tokenizer.encode(pixels_1CRR)
        tokens = grid.patches_BHWC if isinstance(grid, PatchGrid) else grid.codes_BHW
        is_image_B = torch.full((1,), self.start == "image", device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.model.features(tokens[:, None], is_image_B, self.layers)
        features = {layer: found[layer][0].float() for layer in self.layers}
        for layer, x_LD in features.items():
            if not bool(x_LD.isfinite().all()):
                raise RunError(
                    f"features of layer {layer} are not finite. Track with an earlier checkpoint"
                )
        return {layer: x_LD.view(*tokens.shape[1:3], -1) for layer, x_LD in features.items()}


@torch.no_grad()
def track(
    sequence: DavisSequence, features: FrameFeatures, preset: Preset
) -> Iterator[dict[int, Ids]]:
    """The masks of frames 1, 2, …, by layer, from the annotation of frame 0 alone.

    One frame is in memory at a time, beside the preset's last frames of features of each layer.

    Raises:
        DataError: a file that cannot be read, or a first annotation without objects.
        RunError: features that are not finite.
    """
    objects, first_HW = sequence.num_objects(), torch.from_numpy(sequence.truth(0))
    first = features.read(sequence.picture(0))
    height, width = next(iter(first.values())).shape[:2]
    labels_HWC = labels_of(first_HW.to(features.device), objects, (height, width), preset)
    shared = tiles(height, width, preset, features.device)
    tracks = {
        layer: LabelTrack(x_HWD, labels_HWC, preset, shared) for layer, x_HWD in first.items()
    }
    size = (first_HW.shape[0], first_HW.shape[1])
    for index in range(1, len(sequence)):
        masks = {
            layer: mask_of(tracks[layer].follow(x_HWD), features.resolution, size, preset)
            for layer, x_HWD in features.read(sequence.picture(index)).items()
        }
        yield {layer: mask_HW.cpu().numpy() for layer, mask_HW in masks.items()}


def score_masks(
    sequence: DavisSequence, found: Callable[[int], tuple[Ids, str]]
) -> list[ObjectScore]:
    """The scores of a sequence's objects.

    Args:
        sequence: the truth.
        found: number of a frame → its mask, and where that is from, for errors.

    Raises:
        DataError: files that cannot be read, or masks that do not fit the annotations.
    """
    scorer = SequenceScorer(sequence.name, sequence.num_objects())
    for index in scored_frames(sequence.name, len(sequence)):
        scorer.add(sequence.truth(index), *found(index))
    return scorer.scores()


def score_copies(sequence: DavisSequence) -> list[ObjectScore]:
    """The scores of a tracker that believes nothing moves: the first mask in every frame.

    Raises:
        DataError: files that cannot be read.
    """
    first_HW = sequence.truth(0)
    return score_masks(sequence, lambda index: (first_HW, str(sequence.annotations[0])))
