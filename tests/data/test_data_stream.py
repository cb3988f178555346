import io

import numpy as np
import pytest
from toy_data import (
    picture_dataset,
    png,
    random_picture,
    token_dataset,
    video_dataset,
    write_dataset,
)

from toto.data.config import ClipConfig
from toto.data.decode import iterate_video
from toto.data.order import MAX_ATTEMPTS
from toto.data.stream import SourceStream, Stream, StreamSource
from toto.data.units import Units
from toto.errors import DataError

CLIP = ClipConfig(frames=4, stride=2, resolution=8)


def one(stream, number, source=0, position=0):
    """One sequence of one dataset."""
    return stream.sequences([number], source=source, positions=[position])[0]


def locate(units, shard, unit, jitter):
    sample, start = units.locate(np.array([shard]), np.array([unit]), np.array([jitter]))
    return sample.item(), start.item()


def numbers(sequence):
    """What the pictures of a sequence show: their number."""
    return [int(frame[0, 0, 0]) for frame in sequence.frames]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return picture_dataset(tmp_path_factory.mktemp("pictures") / "d", 21, shard_samples=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return video_dataset(tmp_path_factory.mktemp("videos") / "d", [9, 16, 31, 50], shard_samples=3)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return token_dataset(tmp_path_factory.mktemp("tokens") / "d", [20, 7, 33], resolution=8)


def test_slots_divide_each_video(videos):
    units = Units(videos, frames=4, stride=2)
    assert units.per_shard.tolist() == [1 + 2 + 3, 6]


def slot_of(frames, start, length=8):
    """The slot of a video of `frames` that a clip from `start` on lies in."""
    slots = max(1, frames // length)
    return max(slot for slot in range(slots) if slot * frames // slots <= start)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999999])
def test_clips_stay_in_their_slot(videos, jitter):
    units = Units(videos, frames=4, stride=2)
    located = [
        locate(units, shard, unit, jitter)
        for shard, count in enumerate(units.per_shard)
        for unit in range(count)
    ]
    expected = [
        (sample, slot) for sample, slots in enumerate((1, 2, 3, 6)) for slot in range(slots)
    ]
    found = [(sample, slot_of(videos.frames(sample), start)) for sample, start in located]
    ends = [
        (slot_of(videos.frames(sample), start + CLIP.span - 1), start + CLIP.span)
        for sample, start in located
    ]
    assert found == expected
    assert [slot for slot, _ in ends] == [slot for _, slot in expected]
    assert all(end <= videos.frames(s) for (_, end), (s, _) in zip(ends, located, strict=True))


def test_jitter_reaches_every_start_of_a_slot(tmp_path):
    units = Units(token_dataset(tmp_path / "d", [13]), frames=4, stride=2)
    starts = {locate(units, 0, 0, i / 100)[1] for i in range(100)}
    assert starts == set(range(13 - CLIP.span + 1))


def test_short_videos_are_counted_and_the_first_is_named(tmp_path):
    dataset = token_dataset(tmp_path / "d", [30, 6, 7, 5])
    with pytest.raises(
        DataError, match=r"2 of 4 videos .* 7 frames\. Lower.*--fix:\n  1: 6 frames\n  3: 5"
    ):
        Units(dataset, frames=4, stride=2)


def test_an_epoch_of_videos_holds_every_slot_once(tokens):
    stream = SourceStream.shuffled(tokens, CLIP, seed=0, name="a")
    drawn = [one(stream, n, 0, n).frames for n in range(stream.num_units)]
    slots = []
    for frames in drawn:
        sample, place = divmod(int(frames[0, 0, 0]), 1000)
        slots.append((sample, slot_of((20, 7, 33)[sample], place // 4)))
    assert sorted(slots) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_an_epoch_of_pictures_holds_each_once(pictures):
    stream = SourceStream.shuffled(pictures, CLIP, seed=0, name="a")
    assert stream.sequences_per_epoch == 5
    drawn = [n for i in range(21) for n in numbers(one(stream, i, 0, i))]
    for epoch in range(4):
        assert sorted(drawn[21 * epoch : 21 * epoch + 21]) == list(range(21))
    assert drawn[:21] != drawn[21:42]


def test_a_video_sequence_is_a_strided_clip_under_one_crop(videos):
    clip = ClipConfig(frames=4, stride=2, resolution=32)
    stream = SourceStream.shuffled(videos, clip, seed=0, name="a")
    whole = [np.stack(list(iterate_video(videos.read(sample)))) for sample in range(4)]
    for number in range(6):
        frames = one(stream, number, 0, 0).frames
        assert frames.shape == (4, 32, 32, 3)
        assert any(
            np.array_equal(frames, video[start::2][:4, :, x : x + 32])
            for video in whole
            for start in range(len(video) - 6)
            for x in range(17)
        )


def test_a_token_sequence_is_a_strided_slice(tokens):
    stream = SourceStream.shuffled(tokens, CLIP, seed=0, name="a")
    frames = one(stream, 3, 0, 0).frames
    assert frames.shape == (4, 2, 2)
    assert np.diff(frames[:, 0, 0].astype(int)).tolist() == [8, 8, 8]


def test_a_sequence_says_what_it_is(pictures):
    stream = SourceStream.shuffled(pictures, CLIP, seed=0, name="a")
    sequence = one(stream, 2, 5, 77)
    assert (sequence.source, sequence.position, sequence.is_image) == (5, 77, True)
    assert sequence.label == numbers(sequence)[0] % 3
    assert (sequence.drawn, sequence.broken) == (4, ())


def mixed(pictures, videos, seed=0):
    sources = [StreamSource("p", pictures, 0.25), StreamSource("v", videos, 0.75, stride=1)]
    return Stream(sources, CLIP, seed)


def test_the_stream_is_a_function_of_seed_and_position(pictures, videos):
    positions = [0, 1, 2, 3, 17, 10**12]
    forward = {p: mixed(pictures, videos).sequences([p])[0] for p in positions}
    other_way = mixed(pictures, videos)
    for position in reversed(positions):
        again = other_way.sequences([position])[0]
        assert np.array_equal(again.frames, forward[position].frames)
        assert again.source == forward[position].source
    changed = mixed(pictures, videos, seed=1).sequences([10**12])[0]
    assert not np.array_equal(changed.frames, forward[10**12].frames)


def test_sources_of_a_stream_alternate_and_count_on(pictures, videos):
    stream = mixed(pictures, videos)
    alone = SourceStream.shuffled(pictures, CLIP, seed=0, name="p")
    drawn = [stream.sequences([position])[0] for position in range(16)]
    assert [s.source for s in drawn].count(0) == 4
    of_pictures = [s for s in drawn if s.source == 0]
    for number, sequence in enumerate(of_pictures):
        assert numbers(sequence) == numbers(one(alone, number, 0, 0))


def test_a_source_may_have_a_stride_of_its_own(tokens):
    stream = Stream([StreamSource("t", tokens, stride=1)], CLIP, 0)
    assert np.diff(stream.sequences([0])[0].frames[:, 0, 0].astype(int)).tolist() == [4, 4, 4]


def test_raw_and_tokens_do_not_mix(pictures, tokens):
    with pytest.raises(DataError, match=r"p: raw, t: tokens.*Tokenize them all"):
        Stream([StreamSource("p", pictures), StreamSource("t", tokens)], CLIP, 0).require_one_form()


def test_tokens_of_another_resolution_are_refused(tokens):
    with pytest.raises(DataError, match=r"8 px frames, and clip\.resolution is 16"):
        Stream([StreamSource("t", tokens)], CLIP.model_copy(update={"resolution": 16}), 0)


def test_evaluation_is_in_order_and_repeats_few_pictures(tmp_path):
    stream = SourceStream.in_order(picture_dataset(tmp_path / "d", 3), CLIP)
    assert stream.sequences_per_epoch == 1
    assert numbers(one(stream, 0, 0, 0)) == [0, 1, 2, 0]


def test_evaluation_crops_the_centre(tmp_path):
    picture = random_picture(0, 8, 20)
    dataset = write_dataset(tmp_path / "d", [(png(picture), 1, -1)], kind="images", extension="png")
    clip = ClipConfig(frames=1, stride=1, resolution=8)
    sequence = one(SourceStream.in_order(dataset, clip), 0, 0, 0)
    assert np.array_equal(sequence.frames[0], picture[:, 6:14])


@pytest.fixture
def partly_broken(tmp_path):
    return picture_dataset(tmp_path / "broken", 20, broken={3, 8})


def test_a_broken_unit_is_replaced_and_named(partly_broken):
    def epoch():
        stream = SourceStream.shuffled(partly_broken, CLIP, seed=0, name="a")
        return [one(stream, n, 0, n) for n in range(5)]

    drawn = epoch()
    shown = [n for sequence in drawn for n in numbers(sequence)]
    assert set(range(20)) - {3, 8} <= set(shown)
    assert {3, 8}.isdisjoint(shown)
    failures = [failure for sequence in drawn for failure in sequence.broken]
    assert {failure.split(":")[0] for failure in failures} == {"broken/000003", "broken/000008"}
    assert sum(sequence.drawn for sequence in drawn) == 20 + len(failures)
    assert [numbers(sequence) for sequence in epoch()] == [numbers(s) for s in drawn]


def test_nothing_but_broken_units_stops(tmp_path):
    dataset = picture_dataset(tmp_path / "d", 3, broken={0, 1, 2})
    stream = SourceStream.shuffled(dataset, CLIP, seed=0, name="a")
    with pytest.raises(DataError, match=f"drew {MAX_ATTEMPTS} and could decode none"):
        one(stream, 0, 0, 0)


def test_evaluation_replaces_nothing(partly_broken):
    stream = SourceStream.in_order(partly_broken, CLIP)
    one(stream, 1, 0, 0)
    with pytest.raises(DataError, match="broken/000003"):
        one(stream, 0, 0, 0)


def test_tokens_of_pictures_pack_like_pictures(tmp_path):
    from toto.data.index import Dataset
    from toto.data.manifest import TokenInfo
    from toto.data.shards import DatasetWriter

    info = TokenInfo(tokenizer={}, fingerprint="", resolution=8, grid=(1, 1))
    with DatasetWriter(tmp_path / "d", kind="images", form="tokens", tokens=info) as writer:
        for number in range(8):
            file = io.BytesIO()
            np.save(file, np.full((1, 1, 1), number, "<u2"))
            writer.add(f"{number}", "npy", file.getvalue(), origin="")
    stream = SourceStream.in_order(Dataset.open(tmp_path / "d"), CLIP)
    assert one(stream, 1, 0, 0).frames.ravel().tolist() == [4, 5, 6, 7]
