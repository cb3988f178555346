"""The same steps at any number of ranks: positions, batches and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_data import picture_dataset, video_dataset

from toto.data.config import ClipConfig
from toto.data.loader import evaluation_batches, training_batches
from toto.data.ranks import micro_batches, share
from toto.data.stream import Stream, StreamSource

CLIP = ClipConfig(frames=4, stride=2, resolution=8)
BATCH, MICRO = 7, 2


@given(step=st.integers(0, 10**12), batch=st.integers(1, 600), world=st.integers(1, 70))
def test_shares_make_up_the_step(step, batch, world):
    shares = [share(step, batch, rank=rank, world=world) for rank in range(world)]
    assert [p for positions in shares for p in positions] == list(
        range(step * batch, (step + 1) * batch)
    )
    sizes = {len(positions) for positions in shares}
    assert sizes <= {batch // world, -(-batch // world)}
    assert max(sizes) <= micro_batches(batch, 4, world=world) * 4


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    sources = [
        StreamSource("p", picture_dataset(folder / "p", 21, shard_samples=4, broken={3, 8}), 1),
        StreamSource("v", video_dataset(folder / "v", [9, 16, 31]), 2),
    ]
    return Stream(sources, CLIP, 0)


def load(stream, *, rank=0, world=1, workers=0, micro=MICRO):
    return list(
        training_batches(
            stream,
            batch_sequences=BATCH,
            micro_batch=micro,
            workers=workers,
            start_step=1,
            stop_step=3,
            rank=rank,
            world=world,
        )
    )


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_global_batches_are_the_same(stream, world, workers):
    (plain,) = zip(*[iter(load(stream, micro=BATCH))] * 2, strict=True)
    ranks = [load(stream, rank=rank, world=world, workers=workers) for rank in range(world)]
    for step in range(2):
        counts = {len(steps[step]) for steps in ranks}
        assert counts == {micro_batches(BATCH, MICRO, world=world)}
        parts = [batch for steps in ranks for batch in steps[step] if not batch.padding]
        (whole,) = plain[step]
        for name in ("pixels_BTCHW", "position_B", "source_B", "label_B"):
            together = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(together, getattr(whole, name)), name


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_gradient_is_the_same(stream, world):
    """Each rank sums its micro-batches by their targets over those of all: padding weighs 0."""

    def gradient(batches, total):
        weight = torch.linspace(0.1, 1, 8 * 8, dtype=torch.float64, requires_grad=True)
        for batch in batches:
            targets = 0 if batch.padding else len(batch)
            flat = batch.pixels_BTCHW.double().flatten(3).mean((1, 2)) / 255
            loss = ((flat @ weight) ** 2).mean()
            (loss * targets / total).backward()
        return weight.grad

    plain = gradient(load(stream)[0], BATCH)
    ranks = [load(stream, rank=rank, world=world)[0] for rank in range(world)]
    summed = sum(gradient(batches, BATCH) for batches in ranks)
    torch.testing.assert_close(summed, plain, rtol=1e-12, atol=0)


def test_broken_units_are_told_of_with_step_and_source(stream):
    told = []
    list(
        training_batches(
            stream, batch_sequences=BATCH, micro_batch=MICRO, workers=0, start_step=0,
            stop_step=5, max_broken=1.0, on_broken=told.append,
        )
    )  # fmt: skip
    assert {broken.source for broken in told} == {0}
    assert {broken.what.split(":")[0] for broken in told} == {"p/000003", "p/000008"}
    assert all(0 <= broken.step < 5 for broken in told)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_evaluation_batches_are_dealt_whole_and_as_many_to_each_rank(tmp_path, world):
    dataset = picture_dataset(tmp_path / "p", 40)

    def batches(rank, ranks):
        found = evaluation_batches(
            dataset, CLIP, micro_batch=MICRO, count=9, rank=rank, world=ranks
        )
        return list(found)

    whole = batches(0, 1)
    assert [len(batch) for batch in whole] == [2, 2, 2, 2, 1]
    dealt = [batches(rank, world) for rank in range(world)]
    assert {len(own) for own in dealt} == {-(-5 // world)}
    real = sorted(
        (batch for own in dealt for batch in own if not batch.padding),
        key=lambda batch: batch.position_B[0].item(),
    )
    assert len(real) == 5
    for ours, theirs in zip(real, whole, strict=True):
        assert torch.equal(ours.position_B, theirs.position_B)
        assert torch.equal(ours.pixels_BTCHW, theirs.pixels_BTCHW)
