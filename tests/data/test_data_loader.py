import logging
import os
import signal

import pytest
import torch
from toy_data import picture_dataset, token_dataset, video_dataset

from toto.data.config import ClipConfig
from toto.data.loader import evaluation_batches, training_batches
from toto.data.stream import Stream, StreamSource
from toto.errors import DataError, RunError

CLIP = ClipConfig(frames=4, stride=2, resolution=8)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return picture_dataset(root / "p", 21, shard_samples=4), video_dataset(root / "v", [9, 30])


@pytest.fixture
def stream(datasets):
    pictures, videos = datasets
    return Stream([StreamSource("p", pictures, 1), StreamSource("v", videos, 2)], CLIP, 0)


def load(stream, *, workers=0, start=0, stop=4, micro=4, size=6, max_broken=0.01):
    steps = training_batches(
        stream,
        batch_sequences=size,
        micro_batch=micro,
        workers=workers,
        start_step=start,
        stop_step=stop,
        max_broken=max_broken,
    )
    return list(steps)


def assert_equal(one, other):
    assert len(one) == len(other)
    for batches, others in zip(one, other, strict=True):
        assert [len(batch) for batch in batches] == [len(batch) for batch in others]
        for batch, same in zip(batches, others, strict=True):
            for name in ("pixels_BTCHW", "is_image_B", "source_B", "position_B", "label_B"):
                assert torch.equal(getattr(batch, name), getattr(same, name)), name


def test_a_step_is_its_positions_in_micro_batches(stream):
    (first, second) = load(stream, stop=2)
    assert [len(batch) for batch in first] == [4, 2]
    assert torch.cat([b.position_B for b in first + second]).tolist() == list(range(12))
    assert torch.cat([b.source_B for b in first + second]).bincount().tolist() == [4, 8]
    batch = first[0]
    assert batch.pixels_BTCHW.shape == (4, 4, 3, 8, 8)
    assert batch.pixels_BTCHW.dtype == torch.uint8
    assert batch.codes_BTHW is None
    assert batch.is_image_B.tolist() == (batch.source_B == 0).tolist()
    drawn = stream.sequences([2])[0]
    assert torch.equal(
        batch.pixels_BTCHW[2], torch.from_numpy(drawn.frames.transpose(0, 3, 1, 2).copy())
    )


def test_every_picture_of_a_sequence_has_its_class(stream):
    for batch in (batch for step in load(stream, workers=1) for batch in step):
        colour_BT = batch.pixels_BTCHW[:, :, 0, 0, 0].long()
        label_BT = batch.frame_labels()
        assert torch.equal(label_BT[batch.is_image_B], colour_BT[batch.is_image_B] % 3)
        assert torch.equal(label_BT[:, 0], batch.label_B)
        assert label_BT[~batch.is_image_B].eq(-1).all()


def test_workers_change_nothing(stream):
    assert_equal(load(stream, workers=0), load(stream, workers=2))


def test_a_later_start_gives_the_same_steps(stream):
    assert_equal(load(stream)[2:], load(stream, start=2))


def test_micro_batches_change_nothing_but_the_cut(stream):
    whole = [batches[0] for batches in load(stream, micro=6)]
    pieces = [torch.cat([b.pixels_BTCHW for b in batches]) for batches in load(stream, micro=5)]
    assert all(torch.equal(w.pixels_BTCHW, p) for w, p in zip(whole, pieces, strict=True))


def test_loading_takes_no_random_numbers_of_the_run(stream):
    before = torch.get_rng_state()
    load(stream, stop=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_token_shards_give_codes(tmp_path):
    stream = Stream([StreamSource("t", token_dataset(tmp_path / "d", [30], resolution=8))], CLIP, 0)
    ((batch,),) = load(stream, stop=1, micro=6)
    assert batch.pixels_BTCHW is None
    assert batch.codes_BTHW.shape == (6, 4, 2, 2)
    assert batch.codes_BTHW.dtype == torch.int64
    assert not batch.is_image_B.any()


def broken_stream(tmp_path, broken):
    return Stream([StreamSource("p", picture_dataset(tmp_path / "d", 20, broken=broken))], CLIP, 0)


def test_broken_units_are_logged_once_each(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "toto.data"):
        load(broken_stream(tmp_path, {3}), stop=8)
    assert [record.message.split(":")[0] for record in caplog.records] == ["d/000003"]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_units_stop_the_run(tmp_path, workers):
    stream = broken_stream(tmp_path, {3, 4, 5, 6})
    with pytest.raises(DataError) as caught:
        load(stream, workers=workers, stop=40)
    message = str(caught.value)
    assert "11 of " in message or "12 of " in message or "13 of " in message
    assert "data.max_broken 0.01" in message
    for key in ("d/000003", "d/000004", "d/000005", "d/000006"):
        assert key in message


def test_none_broken_is_allowed_at_zero(tmp_path):
    with pytest.raises(DataError, match="d/000003"):
        load(broken_stream(tmp_path, {3}), stop=8, max_broken=0)


def test_an_error_of_a_worker_is_one_plain_message(tmp_path):
    stream = broken_stream(tmp_path, set(range(20)))
    with pytest.raises(DataError) as caught:
        load(stream, workers=1)
    assert "Traceback" not in str(caught.value)
    assert "could decode none" in str(caught.value)


def test_evaluation_covers_the_dataset_in_order(datasets):
    batches = list(evaluation_batches(datasets[0], CLIP, micro_batch=2, source=3))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat([b.position_B for b in batches]).tolist() == [0, 1, 2, 3, 4]
    shown = torch.cat([b.pixels_BTCHW[:, :, 0, 0, 0] for b in batches]).flatten()
    assert shown.tolist() == list(range(20))
    assert {int(s) for b in batches for s in b.source_B} == {3}


def test_fewer_evaluation_sequences_are_spread(datasets):
    (batch,) = evaluation_batches(datasets[0], CLIP, micro_batch=8, count=2)
    assert batch.position_B.tolist() == [0, 2]


def test_evaluation_takes_no_more_than_there_is(datasets):
    (batch,) = evaluation_batches(datasets[0], CLIP, micro_batch=8, count=100)
    assert len(batch) == 5


def test_a_loader_process_that_dies_is_a_message(stream, monkeypatch):
    def crash(positions):
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(stream, "sequences", crash)
    with pytest.raises(RunError, match=r"loader process 0 .* died \(SIGSEGV\).*toto doctor"):
        load(stream, workers=1)
