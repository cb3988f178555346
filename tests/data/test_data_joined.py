import pickle

import numpy as np
import pytest
from flaky_server import serving
from hypothesis import given
from hypothesis import strategies as st
from toy_data import picture_dataset, token_dataset, video_dataset

from toto.data.config import CacheConfig, ClipConfig
from toto.data.index import Dataset
from toto.data.stream import Stream, StreamSource
from toto.errors import DataError
from toto.jobs.sources import open_dataset

LENGTHS = ([9, 30, 12], [50], [8, 8, 8, 8, 8])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("joined")
    for number, lengths in enumerate(LENGTHS):
        token_dataset(root / f"part-{number:02d}", lengths, resolution=8, shard_samples=2)
    return root


def names(dataset):
    """Codes begin at sample · 1000 in every part, so a part shows by the lengths."""
    return [
        (int(dataset.read_codes(i, 0, 1, 1)[0, 0, 0]), dataset.frames(i))
        for i in range(dataset.num_samples)
    ]


@pytest.mark.parametrize(
    ("paths", "order"),
    [
        ("part-{00..02}", [0, 1, 2]),
        ("part-{02,00}", [2, 0]),
        ("part-*", [0, 1, 2]),
        (("part-01", "part-00"), [1, 0]),
        (("part-0{1..2}", "part-00"), [1, 2, 0]),
        ("part-01", [1]),
    ],
)
@pytest.mark.parametrize("place", ["here", "http"])
def test_parts_are_joined_in_their_order(root, tmp_path, paths, order, place):
    expected = [(n * 1000, length) for part in order for n, length in enumerate(LENGTHS[part])]
    if place == "here":
        assert names(open_dataset(paths, root=str(root))) == expected
    else:
        with serving(root) as server:
            cache = CacheConfig(folder=str(tmp_path / "cache"))
            assert names(open_dataset(paths, root=server.address, cache=cache)) == expected


def test_a_joined_dataset_is_like_one(root):
    dataset = open_dataset("part-*", root=str(root))
    parts = [Dataset.open(root / f"part-{n:02d}") for n in range(3)]
    assert dataset.shard_starts.tolist() == [0, 2, 3, 4, 6, 8, 9]
    assert dataset.frame_counts(0, 9).tolist() == [n for lengths in LENGTHS for n in lengths]
    assert list(dataset.origins()) == [origin for part in parts for origin in part.origins()]
    assert [dataset.key(i) for i in (0, 3, 4)] == ["000000"] * 3
    assert dataset.name == "part-00+2"
    assert dataset.path == " + ".join(part.path for part in parts)
    assert names(pickle.loads(pickle.dumps(dataset))) == names(dataset)
    with pytest.raises(DataError, match="no single folder"):
        _ = dataset.folder


@given(st.integers(0, 8), st.integers(1, 9))
def test_columns_reach_over_the_parts(root, first, count):
    dataset = open_dataset("part-*", root=str(root))
    last = min(first + count, 9)
    every = [n for lengths in LENGTHS for n in lengths]
    assert dataset.frame_counts(first, last).tolist() == every[first:last]


def test_a_stream_draws_every_sample_of_every_part(root):
    dataset = open_dataset("part-*", root=str(root))
    source = Stream(
        [StreamSource("s", dataset)], ClipConfig(frames=4, stride=2, resolution=8), 0
    ).sources[0]
    drawn = source.draw(np.arange(source.num_units))
    assert np.unique(drawn.sample_N).tolist() == list(range(9))
    assert len(source.sequences(range(5), source=0, positions=range(5))) == 5


def test_exclusions_of_a_part_are_those_of_its_samples(tmp_path):
    for name in ("a", "b"):
        picture_dataset(tmp_path / name, 5)
    (tmp_path / "b" / "excluded.jsonl").write_text('{"sample": 3}\n')
    assert open_dataset("{a,b}", root=str(tmp_path)).excluded.tolist() == [8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: picture_dataset(out, 3), "their kind differ"),
        (lambda out: video_dataset(out, [9]), "their form differ"),
        (lambda out: token_dataset(out, [9], fingerprint="e" * 64), "tokenizer eeeeeeeeeeee at"),
        (lambda out: token_dataset(out, [9], resolution=8), "at 32 px and tokenizer .* at 8 px"),
    ],
)
def test_datasets_that_differ_are_not_joined(tmp_path, make, message):
    token_dataset(tmp_path / "a", [9])
    make(tmp_path / "b")
    with pytest.raises(DataError, match=message):
        open_dataset("{a,b}", root=str(tmp_path))


def test_classes_must_agree(tmp_path):
    picture_dataset(tmp_path / "a", 3)
    picture_dataset(tmp_path / "b", 2)
    with pytest.raises(DataError, match=r"classes differ \(3 classes and 2 classes\)"):
        open_dataset(["a", "b"], root=str(tmp_path))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("none-*", "no dataset matches"),
        ("part-{00..05}", r"no dataset at .*part-03"),
        ("part-{00..02", r"Write ranges as \{00\.\.03\}"),
    ],
)
def test_patterns_that_name_nothing_say_so(root, paths, message):
    with pytest.raises(DataError, match=message):
        open_dataset(paths, root=str(root))


@pytest.mark.parametrize("name", ["a[1]b", "a?b"])
def test_other_characters_stand_for_themselves(tmp_path, name):
    picture_dataset(tmp_path / name, 2)
    picture_dataset(tmp_path / "a1b", 3)
    assert open_dataset(name, root=str(tmp_path)).num_samples == 2
    assert open_dataset(f"{name}*", root=str(tmp_path)).num_samples == 2
