"""Label propagation: the labels of a video's first frame follow the features of the next ones.

Each token of a new frame looks up the tokens most like it in the frames before, and takes the mean
of their labels, weighted by likeness (Jabri et al. 2020, whose protocol the paper follows, §4.5;
Caron et al. 2021). Nothing is trained. Labels are soft: a channel for each object, the first one
for the background.

Letters: H W token grid, D width, C labels, F frames of the context; Q tokens that ask, K that are
asked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "PRESETS",
    "Context",
    "LabelTrack",
    "Preset",
    "Tile",
    "labels_of",
    "mask_of",
    "tiles",
    "transfer",
    "transfer_plainly",
]

TILE = 8  # tokens a side that ask together: with radius 12 they share a window of 32 × 32


@dataclass(frozen=True)
class Preset:
    """How labels are looked up.

    Attributes:
        frames: n, the last frames that are asked besides the first one, which always is.
        top_k: k, the tokens of all those frames together that a token takes labels from.
        temperature: τ; weights are the softmax of cosines / τ over the k.
        radius: of the window around a token's own place, in tokens.
        window: `circle`: nearer than the radius; `square`: rows and columns up to the radius.
        first_frame: whether the window holds there too, or all of it is asked.
        padded: before n frames have passed, the first one stands for those that are missing.
        ties: tokens as like as the k-th: all are kept, or exactly k.
        first_labels: how the first mask comes to the token grid.
        stretch: each label's map is stretched to 0..1 before the highest wins.
    """

    frames: int
    top_k: int
    temperature: float
    radius: int
    window: Literal["circle", "square"]
    first_frame: Literal["everywhere", "windowed"]
    padded: bool
    ties: Literal["cut", "keep"]
    first_labels: Literal["bilinear", "nearest"]
    stretch: bool


PRESETS = {
    # github ajabri/videowalk: README (arguments), code/test.py, code/utils/test_utils.py
    "crw": Preset(
        frames=20, top_k=10, temperature=0.05, radius=12, window="circle",
        first_frame="everywhere", padded=True, ties="cut", first_labels="bilinear", stretch=False,
    ),
    # github facebookresearch/dino: eval_video_segmentation.py
    "dino": Preset(
        frames=7, top_k=5, temperature=0.1, radius=12, window="square",
        first_frame="windowed", padded=False, ties="keep", first_labels="nearest", stretch=True,
    ),
}  # fmt: skip


class Context(NamedTuple):
    """The frames that are asked, the first one first: unit features and labels of each."""

    features_HWD: list[Tensor]
    labels_HWC: list[Tensor]


class Tile(NamedTuple):
    """Tokens that ask together, and the rectangle that holds all their windows.

    Attributes:
        rows: of the tokens.
        columns: likewise.
        near_rows: of the rectangle.
        near_columns: likewise.
        far_QK: bool, True where a token of the rectangle is outside the window of one that asks.
    """

    rows: slice
    columns: slice
    near_rows: slice
    near_columns: slice
    far_QK: Tensor


class LabelTrack:
    """The labels of one video by one kind of features; they stay on the features' device.

    Memory is that of n + 1 frames of features and labels, and of one tile's likenesses.

    Args:
        first_HWD: features of the first frame, of any length.
        labels_HWC: its labels.
        preset: how labels are looked up.
        tiles: of this grid and preset; tracks may share them.
    """

    def __init__(
        self, first_HWD: Tensor, labels_HWC: Tensor, preset: Preset, tiles: list[Tile]
    ) -> None:
        self._preset = preset
        self._tiles = tiles
        self._first = functional.normalize(first_HWD, dim=-1), labels_HWC
        copies = preset.frames if preset.padded else 0
        self._last: deque[tuple[Tensor, Tensor]] = deque([self._first] * copies, preset.frames)

    def follow(self, features_HWD: Tensor) -> Tensor:
        """The labels `HWC` of the next frame."""
        unit_HWD = functional.normalize(features_HWD, dim=-1)
        features, labels = zip(self._first, *self._last, strict=True)
        context = Context(list(features), list(labels))
        labels_HWC = transfer(unit_HWD, context, self._preset, self._tiles)
        self._last.append((unit_HWD, labels_HWC))
        return labels_HWC


def tiles(height: int, width: int, preset: Preset, device: torch.device) -> list[Tile]:
    """The grid cut into tiles of TILE × TILE tokens."""
    cut = [
        (_cut(top, height, preset.radius), _cut(left, width, preset.radius))
        for top in range(0, height, TILE)
        for left in range(0, width, TILE)
    ]
    return [
        Tile(
            rows,
            columns,
            near_rows,
            near_columns,
            _far(_places(rows, columns, device), _places(near_rows, near_columns, device), preset),
        )
        for (rows, near_rows), (columns, near_columns) in cut
    ]


def transfer(query_HWD: Tensor, context: Context, preset: Preset, tiles: list[Tile]) -> Tensor:
    """The labels `HWC` of a frame, looked up tile by tile in the tokens near each.

    Equal to `transfer_plainly` but for ties and rounding; its memory is that of one tile, and it
    skips what lies far from all tokens of the tile: five sixths of the work at 60 × 107 tokens.

    Args:
        query_HWD: unit features of the frame.
        context: of frames of the same grid.
        preset: how labels are looked up.
        tiles: of this grid and preset.
    """
    *grid, channels = context.labels_HWC[0].shape
    found_HWC = query_HWD.new_empty(*grid, channels)
    whole = preset.first_frame == "everywhere"
    near = Context(*(frames[1:] if whole else frames for frames in context))
    for tile in tiles:
        query_QD = query_HWD[tile.rows, tile.columns].flatten(0, 1)
        likeness_QK = _near_likeness(query_QD, near.features_HWD, tile)
        labels_KC = _window(near.labels_HWC, tile)
        if whole:
            first_QK = query_QD @ context.features_HWD[0].flatten(0, 1).T
            likeness_QK = torch.cat((first_QK, likeness_QK), dim=1)
            labels_KC = torch.cat((context.labels_HWC[0].flatten(0, 1), labels_KC))
        labels_QC = _mean_of_most_alike(likeness_QK, labels_KC, preset)
        shape = found_HWC[tile.rows, tile.columns].shape
        found_HWC[tile.rows, tile.columns] = labels_QC.view(shape)
    return found_HWC


def transfer_plainly(query_HWD: Tensor, context: Context, preset: Preset) -> Tensor:
    """What `transfer` returns: every token against every token of the context, H·W × F·H·W."""
    height, width, _ = query_HWD.shape
    all_rows, all_columns = slice(0, height), slice(0, width)
    places_L2 = _places(all_rows, all_columns, query_HWD.device)
    far_LL = _far(places_L2, places_L2, preset)
    blocks = []
    for index, features_HWD in enumerate(context.features_HWD):
        likeness_LL = query_HWD.flatten(0, 1) @ features_HWD.flatten(0, 1).T
        if index > 0 or preset.first_frame == "windowed":
            likeness_LL.masked_fill_(far_LL, -torch.inf)
        blocks.append(likeness_LL)
    labels_KC = torch.cat([labels_HWC.flatten(0, 1) for labels_HWC in context.labels_HWC])
    return _mean_of_most_alike(torch.cat(blocks, 1), labels_KC, preset).view(height, width, -1)


def labels_of(ids_HW: Tensor, num_objects: int, grid: tuple[int, int], preset: Preset) -> Tensor:
    """Labels `HWC` on a token grid of a mask in pixels: C = 1 + num_objects."""
    one_hot_CHW = functional.one_hot(ids_HW.long(), 1 + num_objects).permute(2, 0, 1).float()
    mode = "nearest-exact" if preset.first_labels == "nearest" else "bilinear"
    small_CHW = functional.interpolate(one_hot_CHW[None], size=grid, mode=mode)[0]
    return small_CHW.permute(1, 2, 0).contiguous()


def mask_of(labels_HWC: Tensor, side: int, size: tuple[int, int], preset: Preset) -> Tensor:
    """The mask that soft labels stand for: ids `HW` uint8 on the labels' device.

    As in both published codes labels are enlarged to the picture that the model saw, the highest
    wins, and the mask takes its full size by the nearest pixel.

    Args:
        labels_HWC: on the token grid.
        side: of the square picture that the model saw.
        size: height and width of the mask.
        preset: whether the labels are stretched.
    """
    labels_CHW = labels_HWC.permute(2, 0, 1)
    large_CHW = functional.interpolate(labels_CHW[None], size=(side, side), mode="bilinear")[0]
    if preset.stretch:
        large_CHW = _stretched(large_CHW)
    ids_HW = large_CHW.argmax(0)
    return functional.interpolate(
        ids_HW[None, None].to(torch.uint8), size=size, mode="nearest-exact"
    )[0, 0]


def _cut(start: int, size: int, radius: int) -> tuple[slice, slice]:
    """The tokens of a tile from `start` on, and those within the radius of any of them."""
    end = min(start + TILE, size)
    return slice(start, end), slice(max(start - radius, 0), min(end + radius, size))


def _places(rows: slice, columns: slice, device: torch.device) -> Tensor:
    """Row and column of each token of a rectangle, in raster order: `[L, 2]`."""
    return torch.cartesian_prod(
        torch.arange(rows.start, rows.stop, device=device),
        torch.arange(columns.start, columns.stop, device=device),
    )


def _far(query_Q2: Tensor, key_K2: Tensor, preset: Preset) -> Tensor:
    """Whether a key lies outside the window of a query: bool QK."""
    apart_QK2 = (query_Q2[:, None] - key_K2[None]).abs()
    if preset.window == "square":
        return apart_QK2.amax(-1) > preset.radius
    return apart_QK2.square().sum(-1) >= preset.radius**2


def _window(frames: Iterable[Tensor], tile: Tile) -> Tensor:
    """The tokens of the tile's rectangle in each frame, one frame after the other: `[K, ...]`."""
    cut = [frame[tile.near_rows, tile.near_columns] for frame in frames]
    return torch.stack(cut).flatten(0, 2)


def _near_likeness(query_QD: Tensor, frames: list[Tensor], tile: Tile) -> Tensor:
    """Cosines with the tokens of the rectangle, -inf outside each window; QK."""
    likeness_QK = query_QD @ _window(frames, tile).T
    by_frame_QFK = likeness_QK.view(len(query_QD), len(frames), -1)
    by_frame_QFK.masked_fill_(tile.far_QK[:, None], -torch.inf)
    return likeness_QK


def _mean_of_most_alike(likeness_QK: Tensor, labels_KC: Tensor, preset: Preset) -> Tensor:
    """The labels of the k most alike, weighted by their likeness: QC."""
    best = likeness_QK.topk(min(preset.top_k, likeness_QK.shape[1]), dim=1)
    if preset.ties == "cut":
        weights_Qk = (best.values / preset.temperature).softmax(1)
        return (weights_Qk[..., None] * labels_KC[best.indices]).sum(1)
    least_Q1 = best.values[:, -1:]
    kept_QK = likeness_QK.masked_fill(likeness_QK < least_Q1, -torch.inf)
    return (kept_QK / preset.temperature).softmax(1) @ labels_KC


def _stretched(labels_CHW: Tensor) -> Tensor:
    """Each label's map to 0..1; one that is 0 everywhere stays so."""
    low_C11 = labels_CHW.amin((1, 2), keepdim=True)
    high_C11 = labels_CHW.amax((1, 2), keepdim=True)
    span_C11 = torch.where(high_C11 > low_C11, high_C11 - low_C11, 1.0)
    return torch.where(high_C11 > 0, (labels_CHW - low_C11) / span_C11, labels_CHW)
