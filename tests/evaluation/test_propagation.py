from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from toto.evaluation import propagation
from toto.evaluation.propagation import (
    PRESETS,
    Context,
    LabelTrack,
    Preset,
    labels_of,
    mask_of,
    tiles,
    transfer,
    transfer_plainly,
)

CPU = torch.device("cpu")
GRIDS = [(4, 4), (9, 21), (30, 17)]


def video(frames: int, grid: tuple[int, int], width: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*grid, width, generator=generator) for _ in range(frames)]


def first_labels(grid: tuple[int, int], preset: Preset) -> Tensor:
    ids_HW = torch.zeros(64, 80, dtype=torch.uint8)
    ids_HW[10:40, 20:50] = 1
    ids_HW[30:60, 45:70] = 2
    return labels_of(ids_HW, 2, grid, preset)


def context_of(preset: Preset, grid: tuple[int, int], frames: int) -> Context:
    features = [normalize(x_HWD, dim=-1) for x_HWD in video(frames, grid)]
    labels = first_labels(grid, preset)
    return Context(features, [labels.roll(2 * t, dims=1) for t in range(frames)])


def by_hand(query_HWD: Tensor, context: Context, preset: Preset, row: int, column: int) -> Tensor:
    """The labels of one token, from the words of the protocols."""
    candidates = []
    for frame, features_HWD in enumerate(context.features_HWD):
        for y in range(features_HWD.shape[0]):
            for x in range(features_HWD.shape[1]):
                if preset.window == "circle":
                    near = math.hypot(y - row, x - column) < preset.radius
                else:
                    near = max(abs(y - row), abs(x - column)) <= preset.radius
                if near or (frame == 0 and preset.first_frame == "everywhere"):
                    likeness = float(query_HWD[row, column] @ features_HWD[y, x])
                    candidates.append((likeness, context.labels_HWC[frame][y, x]))
    candidates.sort(key=lambda one: -one[0])
    weights = [math.exp(one[0] / preset.temperature) for one in candidates[: preset.top_k]]
    total = sum(weight * one[1] for weight, one in zip(weights, candidates, strict=False))
    return total / sum(weights)


def small(name: str, radius: int = 3) -> Preset:
    return dataclasses.replace(PRESETS[name], radius=radius)


@pytest.mark.parametrize("name", PRESETS)
def test_the_plain_path_is_the_protocol(name):
    preset, grid = small(name), (6, 9)
    context = context_of(preset, grid, 3)
    query_HWD = normalize(video(4, grid)[-1], dim=-1)
    found_HWC = transfer_plainly(query_HWD, context, preset)
    for place in ((0, 0), (3, 4), (5, 8)):
        torch.testing.assert_close(found_HWC[place], by_hand(query_HWD, context, preset, *place))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("radius", [2, 12])
@pytest.mark.parametrize("name", PRESETS)
def test_tiles_give_what_the_plain_path_gives(name, radius, grid):
    preset = small(name, radius)
    context = context_of(preset, grid, 4)
    query_HWD = normalize(video(5, grid)[-1], dim=-1)
    fast_HWC = transfer(query_HWD, context, preset, tiles(*grid, preset, CPU))
    torch.testing.assert_close(fast_HWC, transfer_plainly(query_HWD, context, preset))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PRESETS)
def test_a_track_stays_on_the_gpu(name):
    """No copy to the host between frames: CUDA would say that it waited."""
    preset, grid, gpu = PRESETS[name], (20, 30), torch.device("cuda")
    frames, labels_HWC = video(4, grid), first_labels(grid, preset)
    of_cpu = LabelTrack(frames[0], labels_HWC, preset, tiles(*grid, preset, CPU))
    cut = tiles(*grid, preset, gpu)
    of_gpu = LabelTrack(frames[0].to(gpu), labels_HWC.to(gpu), preset, cut)
    for x_HWD in frames[1:]:
        x_gpu_HWD = x_HWD.to(gpu)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found_HWC = of_gpu.follow(x_gpu_HWD)
            mask_HW = mask_of(found_HWC, 160, (48, 80), preset)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert mask_HW.device.type == "cuda"
        torch.testing.assert_close(found_HWC.cpu(), of_cpu.follow(x_HWD), rtol=1e-3, atol=1e-4)


def test_tiles_cover_the_grid_once_and_share_small_windows():
    preset, seen_HW = small("crw", 12), torch.zeros(60, 107)
    for tile in tiles(60, 107, preset, CPU):
        seen_HW[tile.rows, tile.columns] += 1
        assert tile.far_QK.shape[1] <= (propagation.TILE + 24) ** 2
    assert bool((seen_HW == 1).all())


@pytest.mark.parametrize("name", PRESETS)
def test_a_track_asks_the_first_frame_and_the_last_n(name):
    preset, grid = dataclasses.replace(small(name), frames=2), (5, 6)
    frames, labels_HWC = video(6, grid), first_labels((5, 6), PRESETS[name])
    track = LabelTrack(frames[0], labels_HWC, preset, tiles(*grid, preset, CPU))
    unit = [normalize(x_HWD, dim=-1) for x_HWD in frames]
    found = [labels_HWC]
    for t in range(1, len(frames)):
        last = [max(s, 0) if preset.padded else s for s in (t - 2, t - 1)]
        asked = [0, *(s for s in last if s > 0 or preset.padded)]
        context = Context([unit[s] for s in asked], [found[s] for s in asked])
        found.append(transfer_plainly(unit[t], context, preset))
        torch.testing.assert_close(track.follow(frames[t]), found[t])


def test_ties_are_kept_or_cut():
    """One feature everywhere: DINO's rule takes the whole window, CRW's ten tokens of it."""
    grid = (5, 5)
    ones_HWD = normalize(torch.ones(*grid, 4), dim=-1)
    labels_HWC = torch.rand(*grid, 2, generator=torch.Generator().manual_seed(0))
    keep, cut = (
        transfer_plainly(ones_HWD, Context([ones_HWD], [labels_HWC]), PRESETS[name])
        for name in ("dino", "crw")
    )
    torch.testing.assert_close(keep, labels_HWC.mean((0, 1)).expand(5, 5, 2))
    assert not torch.allclose(cut, keep)


@pytest.mark.parametrize("name", PRESETS)
def test_a_moving_object_is_followed(name):
    """Features that name the place they come from: the labels move with them."""
    preset, grid = PRESETS[name], (12, 16)
    start_HWD = video(1, grid, 24)[0]
    ids_HW = torch.zeros(96, 128, dtype=torch.uint8)
    ids_HW[16:48, 24:64] = 1
    labels_HWC = labels_of(ids_HW, 1, grid, preset)
    track = LabelTrack(start_HWD, labels_HWC, preset, tiles(*grid, preset, CPU))
    for t in range(1, 5):
        followed_HWC = track.follow(start_HWD.roll(t, dims=1))
    mask_HW = mask_of(followed_HWC, 96, (96, 128), preset)
    wanted_HW = ids_HW.roll(4 * 8, dims=1)
    both = ((mask_HW == 1) & (wanted_HW == 1)).sum() / ((mask_HW == 1) | (wanted_HW == 1)).sum()
    assert float(both) > 0.85


def test_several_objects_keep_their_ids_at_full_size():
    preset, ids_HW = PRESETS["crw"], torch.zeros(48, 80, dtype=torch.uint8)
    ids_HW[8:24, 10:30] = 1
    ids_HW[24:40, 40:70] = 2
    mask_HW = mask_of(labels_of(ids_HW, 2, (24, 24), preset), 192, (48, 80), preset)
    assert mask_HW.dtype == torch.uint8
    assert float((mask_HW == ids_HW).float().mean()) > 0.95
    assert mask_HW.unique().tolist() == [0, 1, 2]


def test_stretching_leaves_an_empty_map_empty_and_is_finite():
    labels_HWC = torch.zeros(4, 4, 3)
    labels_HWC[..., 0] = 0.3  # flat
    labels_HWC[1, 1, 1] = 0.2
    stretched_CHW = propagation._stretched(labels_HWC.permute(2, 0, 1))
    assert stretched_CHW.amax((1, 2)).tolist() == [0.0, 1.0, 0.0]


def test_the_presets_are_those_of_the_papers():
    crw, dino = PRESETS["crw"], PRESETS["dino"]
    assert (crw.frames, crw.top_k, crw.temperature, crw.radius) == (20, 10, 0.05, 12)
    assert (dino.frames, dino.top_k, dino.temperature, dino.radius) == (7, 5, 0.1, 12)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("crw", [(0, 11), (8, 8), (7, 9)], [(0, 12), (12, 0), (9, 8)]),
        ("dino", [(0, 12), (12, 12)], [(0, 13), (13, 0)]),
    ],
)
def test_a_token_at_the_edge_of_the_window(name, inside, outside):
    """CRW's window is `D < radius`, DINO's has 2 · radius + 1 rows; all but one token differ."""
    preset = dataclasses.replace(PRESETS[name], first_frame="windowed")
    for places, taken in ((inside, True), (outside, False)):
        for place in places:
            features_HWD = torch.tensor([-1.0, 0.0]).repeat(14, 14, 1)
            features_HWD[place] = torch.tensor([1.0, 0.0])
            labels_HWC = torch.tensor([1.0, 0.0]).repeat(14, 14, 1)
            labels_HWC[place] = torch.tensor([0.0, 1.0])
            query_HWD = torch.tensor([1.0, 0.0]).repeat(14, 14, 1)
            context = Context([features_HWD], [labels_HWC])
            cut = tiles(14, 14, preset, CPU)
            for found_HWC in (
                transfer(query_HWD, context, preset, cut),
                transfer_plainly(query_HWD, context, preset),
            ):
                assert (float(found_HWC[0, 0, 1]) > 0.99) == taken, place


def test_first_labels_are_soft_for_crw_and_hard_for_dino():
    """Of 4 pixels a token CRW takes the mean of the middle two, DINO (Pillow's NEAREST) one."""
    ids_HW = torch.zeros(4, 8, dtype=torch.uint8)
    ids_HW[:, 2:] = 1
    soft, hard = (labels_of(ids_HW, 1, (1, 2), PRESETS[name]) for name in ("crw", "dino"))
    assert soft[0].tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert hard[0].tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_labels_are_enlarged_to_the_square_before_the_mask_is_taken():
    """A square of 4 pixels, so that the mask of 16 × 24 shows blocks of 4 × 6, not a diagonal."""
    labels_HWC = torch.tensor([[[1.0, 0.0], [0.6, 0.4]], [[0.6, 0.4], [0.0, 1.0]]])
    found_HW = mask_of(labels_HWC, 4, (16, 24), PRESETS["crw"])
    # Bilinear weights of 4 pixels over 2 tokens are 1, 3/4, 1/4, 0 of the first one.
    weight_S2 = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    square_SSC = torch.einsum("sh,tw,hwc->stc", weight_S2, weight_S2, labels_HWC)
    want_HW = square_SSC.argmax(-1).repeat_interleave(4, 0).repeat_interleave(6, 1)
    assert torch.equal(found_HW.long(), want_HW)
    direct_CHW = torch.nn.functional.interpolate(
        labels_HWC.permute(2, 0, 1)[None], size=(16, 24), mode="bilinear"
    )[0]
    assert not torch.equal(direct_CHW.argmax(0), want_HW), "the data can tell"
