import json
import os
import signal

import numpy as np
import pytest
from toy_data import (
    Codec,
    encode,
    moving_frames,
    picture_dataset,
    png,
    random_picture,
    token_dataset,
    without_checksums,
    write_dataset,
)

from toto.data.config import ClipConfig
from toto.data.decode import UndecodableError, inspect_media
from toto.data.doctor import (
    PAPER_SIZES,
    PaperSize,
    changed_shards,
    examine,
    exclude,
    unlike_paper,
)
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.stream import SourceStream
from toto.errors import DataError

CLIP = ClipConfig(frames=4, stride=2, resolution=8)
INTRA = Codec("mp4", "mjpeg", pixels="yuvj420p")


def findings(dataset, workers=1):
    changed = changed_shards(dataset, workers=workers)
    return examine(dataset, CLIP, changed, workers=workers)


def ailments(dataset, workers=1):
    return [(finding.sample, finding.ailment) for finding in findings(dataset, workers)]


@pytest.fixture
def pictures(tmp_path):
    """Sample 2 is no picture, 4 repeats 1, 5 has no label."""
    samples = [(png(random_picture(n)), 1, n % 2) for n in range(6)]
    samples[2] = (b"no picture", 1, 0)
    samples[4] = samples[1]
    samples[5] = (samples[5][0], 1, -1)
    return write_dataset(tmp_path / "d", samples, kind="images", extension="png", shard_samples=4)


def test_a_sound_dataset_has_no_findings(tmp_path):
    assert ailments(picture_dataset(tmp_path / "d", 20, shard_samples=6)) == []
    assert ailments(token_dataset(tmp_path / "t", [20, 7])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_each_ailment_is_found(pictures, workers):
    expected = [(2, "undecodable"), (4, "duplicate"), (5, "unlabelled")]
    assert ailments(pictures, workers=workers) == expected
    duplicate = findings(pictures)[1]
    assert (duplicate.file, duplicate.detail) == ("4.png", "the same bytes as 1.png")


def test_three_copies_name_the_first(tmp_path):
    samples = [(png(random_picture(0)), 1, -1)] * 3
    dataset = write_dataset(tmp_path / "d", samples, kind="images", extension="png")
    details = [finding.detail for finding in findings(dataset)]
    assert details == ["the same bytes as 0.png"] * 2


def test_short_and_lying_videos_are_found(tmp_path):
    videos = [encode_h264(moving_frames(length), fps=25) for length in (9, 5, 8)]
    samples = [(videos[0], 9, -1), (videos[1], 5, -1), (videos[2], 20, -1)]
    dataset = write_dataset(tmp_path / "d", samples, kind="videos", extension="mp4")
    assert ailments(dataset) == [(1, "short"), (2, "undecodable")]
    assert "8 frames, and the index says 20" in findings(dataset)[1].detail


def test_a_video_damaged_in_the_middle_is_found(tmp_path):
    content = bytearray(encode(moving_frames(60), INTRA))
    content[len(content) // 2 - 700 : len(content) // 2 + 700] = bytes(1400)
    with pytest.raises(UndecodableError):  # and packing refuses it by the same rule
        inspect_media("videos", bytes(content))
    samples = [(encode(moving_frames(60), INTRA), 60, -1), (bytes(content), 60, -1)]
    dataset = write_dataset(tmp_path / "d", samples, kind="videos", extension="mp4")
    assert ailments(dataset) == [(1, "undecodable")]


class Deadly(Dataset):
    """The process dies over sample 2."""

    def __reduce__(self):
        return Deadly, (self._store,)

    def read(self, i):
        if i == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().read(i)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_of_the_decoder_costs_its_sample_alone(tmp_path, workers):
    samples = [(png(random_picture(n)), 1, -1) for n in (0, 1, 2, 1, 4, 0)]
    dataset = write_dataset(
        tmp_path / "d", samples, kind="images", extension="png", shard_samples=4
    )
    calls = []
    found = examine(
        Deadly(dataset._store), CLIP, {}, workers=workers, progress=lambda *c: calls.append(c)
    )
    assert [(finding.sample, finding.detail) for finding in found] == [
        (2, "the decoder crashed (signal 11)"),
        (3, "the same bytes as 1.png"),
        (5, "the same bytes as 0.png"),
    ]
    assert calls == [(6, 6)]


def test_origins_that_are_no_text_are_listed_so(tmp_path):
    dataset = without_checksums(picture_dataset(tmp_path / "d", 2, broken=[1]))
    (tmp_path / "d/files.jsonl").write_text('"0.png"\n"caf\\udce9.png"\n')
    (finding,) = findings(dataset)
    assert finding.file == r"caf\udce9.png"
    assert exclude(dataset, [finding]) == 1


SEPARATORS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""What str.splitlines splits at and JSON lines do not."""


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_file_name_with_a_line_separator_can_be_excluded(tmp_path, separator):
    dataset = without_checksums(picture_dataset(tmp_path / "d", 3, broken=[1, 2]))
    names = ["0.png", f"one{separator}two.png", "2.png"]
    (tmp_path / "d/files.jsonl").write_text("".join(json.dumps(name) + "\n" for name in names))
    first, second = findings(dataset)
    assert exclude(dataset, [first]) == 1
    assert Dataset.open(tmp_path / "d").excluded.tolist() == [1]
    assert exclude(dataset, [second]) == 2
    assert Dataset.open(tmp_path / "d").excluded.tolist() == [1, 2]


def test_exclusions_may_be_edited_on_windows(tmp_path):
    path = picture_dataset(tmp_path / "d", 3).folder / "excluded.jsonl"
    path.write_bytes('\ufeff{"sample": 2}\r\n\r\n{"sample": 0}'.encode())
    assert Dataset.open(tmp_path / "d").excluded.tolist() == [0, 2]


@pytest.mark.parametrize("content", ["damaged\n", '{"sample": 9}\n'])
def test_damaged_exclusions_can_be_made_anew(tmp_path, content):
    path = picture_dataset(tmp_path / "d", 2).folder / "excluded.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"Remove {path}, then toto doctor --fix"):
        Dataset.open(tmp_path / "d")


def test_a_sample_passed_over_hides_no_duplicate(tmp_path):
    samples = [(png(random_picture(0)), 1, label) for label in (0, -1, 0)]
    dataset = write_dataset(tmp_path / "d", samples, kind="images", extension="png")
    assert ailments(dataset) == [(1, "unlabelled"), (2, "duplicate")]


def test_an_index_of_another_packing_is_refused(tmp_path):
    dataset = without_checksums(picture_dataset(tmp_path / "d", 4))
    np.array([5], "<u8").tofile(tmp_path / "x")
    with (tmp_path / "d/size.u64").open("r+b") as file:
        file.seek(3 * 8)
        file.write((tmp_path / "x").read_bytes())
    with pytest.raises(DataError, match="are of different packings"):
        findings(dataset)


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_shard_that_is_gone_or_changed_is_missing(tmp_path, damage):
    dataset = picture_dataset(tmp_path / "d", 8, shard_samples=4)
    path = tmp_path / "d" / "shard-00001.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "changed" else content[:-1])
    assert ailments(dataset) == [(sample, "missing") for sample in range(4, 8)]


def test_excluded_samples_leave_the_stream_and_are_passed_over(pictures):
    assert exclude(pictures, findings(pictures)) == 3
    dataset = Dataset.open(pictures.path)
    assert dataset.excluded.tolist() == [2, 4, 5]
    assert findings(dataset) == []
    stream = SourceStream.shuffled(dataset, CLIP, seed=0, name="a")
    assert stream.num_units == 3
    places = stream.draw(np.arange(3 * 50))
    for epoch in places.sample_N.reshape(-1, 3).tolist():
        assert sorted(epoch) == [0, 1, 3]
    lines = (pictures.folder / "excluded.jsonl").read_text().splitlines()
    assert [json.loads(line)["ailment"] for line in lines] == [
        "undecodable", "duplicate", "unlabelled",
    ]  # fmt: skip
    assert exclude(dataset, []) == 3


def test_sizes_are_compared_with_the_paper(tmp_path, monkeypatch):
    dataset = picture_dataset(tmp_path / "d", 10)
    monkeypatch.setitem(PAPER_SIZES, "imagenet", PaperSize(images=10))
    assert unlike_paper(dataset, "imagenet") is None
    monkeypatch.setitem(PAPER_SIZES, "imagenet", PaperSize(images=20))
    assert "10.0 images, and the paper's Table 2 has 20 (50.0%)" in unlike_paper(
        dataset, "imagenet"
    )
    assert PAPER_SIZES["kinetics600"].hours * 3600 * 30 * 256 == pytest.approx(41.36e9, rel=1e-3)
