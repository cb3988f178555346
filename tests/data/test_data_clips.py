import json

import pytest
from toy_data import picture_dataset, png, random_picture, token_dataset, write_dataset

from toto.data import clips
from toto.data.clips import FrameList, LabelledDataset
from toto.data.config import ClipConfig
from toto.data.index import Dataset
from toto.errors import DataError

CLIP = ClipConfig(frames=4, stride=2, resolution=16)


def positions(labelled):
    batches = labelled.batches(range(len(labelled)), 2)
    return [sample for batch in batches for sample in batch.position_B.tolist()]


def test_excluded_and_unlabelled_samples_are_left_out(tmp_path):
    samples = [(png(random_picture(n)), 1, -1 if n == 4 else n % 2) for n in range(6)]
    write_dataset(tmp_path / "d", samples, kind="images", extension="png")
    (tmp_path / "d/excluded.jsonl").write_text('{"sample": 2}\n')
    labelled = LabelledDataset(Dataset.open(tmp_path / "d"), CLIP)
    assert positions(labelled) == [0, 1, 3, 5]


def test_a_dataset_without_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no labels"):
        LabelledDataset(token_dataset(tmp_path / "d", [20]), CLIP)
    assert len(LabelledDataset(picture_dataset(tmp_path / "p", 5), CLIP)) == 5


def test_labelled_images_begin_with_the_image_start(tmp_path):
    samples = [(png(random_picture(n)), 1, n % 2) for n in range(3)]
    write_dataset(tmp_path / "images", samples, kind="images", extension="png")
    images = LabelledDataset(Dataset.open(tmp_path / "images"), CLIP)
    assert [batch.is_image_B.tolist() for batch in images.batches(range(3), 2)] == [
        [True, True], [True],
    ]  # fmt: skip


def frame_list(folder, lengths, *, excluded=()):
    token_dataset(folder, lengths, shard_samples=2)
    lines = "".join(json.dumps({"sample": sample}) + "\n" for sample in excluded)
    (folder / "excluded.jsonl").write_text(lines)
    return FrameList(Dataset.open(folder))


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_all_frames_are_spread_in_order_without_the_excluded(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(clips, "PIECE", piece)
    lengths = [3, 1, 4, 2, 5]
    frames = frame_list(tmp_path / "d", lengths, excluded=[2, 4])
    expected = [(i, frame) for i in (0, 1, 3) for frame in range(lengths[i])]
    assert len(frames) == 6
    for count in (6, 7, 1000):
        assert list(frames.spread(count)) == expected


def test_some_frames_are_the_middles_of_equal_parts(tmp_path):
    frames = frame_list(tmp_path / "d", [4] * 8)
    assert list(frames.spread(8)) == [(sample, 2) for sample in range(8)]
    assert list(frames.spread(3)) == [(1, 1), (4, 0), (6, 2)]
    assert list(frames.spread(1)) == [(4, 0)]
    chosen = list(frames.spread(31))
    assert sorted(set(chosen)) == chosen
    assert len(chosen) == 31


def test_pictures_are_one_frame_each(tmp_path):
    frames = FrameList(picture_dataset(tmp_path / "p", 5, shard_samples=2))
    assert list(frames.spread(5)) == [(sample, 0) for sample in range(5)]


def test_frames_of_an_excluded_dataset_are_refused(tmp_path):
    with pytest.raises(DataError, match="every sample is excluded"):
        frame_list(tmp_path / "d", [2], excluded=[0])
