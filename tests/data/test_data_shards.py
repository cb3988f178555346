import pickle
import shutil

import numpy as np
import pytest
import webdataset
from toy_data import (
    edit_manifest,
    picture_dataset,
    png,
    random_picture,
    token_dataset,
    write_dataset,
)

from toto.data.index import Dataset
from toto.data.shards import DatasetWriter
from toto.data.tar import TarFileWriter
from toto.errors import DataError, RunError


@pytest.fixture
def samples():
    return [(png(random_picture(n, 5 + n, 9)), 1, n % 2) for n in range(7)]


def test_every_sample_reads_back_across_shards(tmp_path, samples):
    dataset = write_dataset(
        tmp_path / "d", samples, kind="images", extension="png", shard_samples=3
    )
    assert [shard.samples for shard in dataset.manifest.shards] == [3, 3, 1]
    assert dataset.shard_starts.tolist() == [0, 3, 6, 7]
    for i, (payload, frames, label) in enumerate(samples):
        assert bytes(dataset.read(i)) == payload
        assert (dataset.frames(i), dataset.label(i), dataset.key(i)) == (frames, label, f"{i:06d}")
        assert dataset.origin(i) == f"{i}.png"


def test_webdataset_reads_the_shards(tmp_path, samples):
    write_dataset(tmp_path / "d", samples, kind="images", extension="png", shard_samples=4)
    urls = [str(tmp_path / "d" / f"shard-0000{shard}.tar") for shard in range(2)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(s["__key__"], s["png"], int(s["cls"])) for s in read] == [
        (f"{i:06d}", payload, label) for i, (payload, _, label) in enumerate(samples)
    ]


def test_shards_close_before_they_grow_too_large(tmp_path):
    with DatasetWriter(tmp_path / "d", kind="images", form="raw", max_shard_bytes=5_000) as writer:
        for number, size in enumerate((2_000, 2_000, 2_000, 9_000, 10)):
            writer.add(f"k{number}", "png", bytes(size), origin="")
    dataset = Dataset.open(tmp_path / "d")
    assert [shard.samples for shard in dataset.manifest.shards] == [2, 1, 1, 1]
    assert [len(dataset.read(i)) for i in range(5)] == [2_000, 2_000, 2_000, 9_000, 10]


def test_equal_samples_give_equal_bytes(tmp_path, samples):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, samples, kind="images", extension="png")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write_one_and_stop():
        with DatasetWriter(tmp_path / "d", kind="images", form="raw") as writer:
            writer.add("a", "png", b"x", origin="a.png")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_one_and_stop()
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_samples_is_refused(tmp_path):
    with (
        pytest.raises(DataError, match="no sample"),
        DatasetWriter(tmp_path / "d", kind="images", form="raw"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="exists already"):
        DatasetWriter(tmp_path / "d", kind="images", form="raw")


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "ä", "x" * 81])
def test_keys_that_webdataset_would_misread_are_refused(tmp_path, key):
    with (
        pytest.raises(ValueError, match="key"),
        DatasetWriter(tmp_path / "d", kind="images", form="raw") as writer,
    ):
        writer.add(key, "png", b"x", origin="")


def test_codes_are_the_slice_of_the_npy(tmp_path):
    dataset = token_dataset(tmp_path / "d", [5, 40, 9])
    for sample, length in enumerate((5, 40, 9)):
        whole = np.arange(length * 4).reshape(length, 2, 2) + sample * 1000
        for start, count, stride in ((0, length, 1), (1, 2, 3), (length - 1, 1, 7)):
            codes = dataset.read_codes(sample, start, count, stride)
            assert codes.dtype == np.uint16
            assert np.array_equal(codes, whole[start::stride][:count])
            assert not codes.flags.owndata


@pytest.mark.parametrize(("start", "count", "stride"), [(0, 6, 1), (4, 2, 1), (-1, 2, 1)])
def test_codes_beyond_the_sample_are_refused(tmp_path, start, count, stride):
    with pytest.raises(DataError, match="has 5 frames"):
        token_dataset(tmp_path / "d", [5]).read_codes(0, start, count, stride)


def test_raw_shards_have_no_codes(tmp_path):
    with pytest.raises(DataError, match="toto tokenize"):
        picture_dataset(tmp_path / "d", 2).read_codes(0, 0, 1, 1)


def test_a_dataset_pickles_as_its_path(tmp_path):
    dataset = picture_dataset(tmp_path / "d", 3)
    dataset.read(0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert bytes(copy.read(2)) == bytes(dataset.read(2))
    assert copy.name == "d"


def test_a_missing_dataset_says_how_to_pack_one(tmp_path):
    with pytest.raises(DataError, match=r"no dataset at .*toto pack SRC"):
        Dataset.open(tmp_path / "none")


def test_a_folder_without_manifest_is_refused(tmp_path):
    picture_dataset(tmp_path / "d", 2)
    (tmp_path / "d" / "manifest.json").unlink()
    with pytest.raises(DataError, match="did not finish"):
        Dataset.open(tmp_path / "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version 1, and this toto reads 2 and 3"),
        ({"kind": "sounds"}, "damaged"),
        ({"shards": [{"name": "../x.tar", "samples": 2, "bytes": 1, "sha256": ""}]}, "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, changes, message):
    picture_dataset(tmp_path / "d", 2)
    edit_manifest(tmp_path / "d", **changes)
    with pytest.raises(DataError, match=message):
        Dataset.open(tmp_path / "d")


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    picture_dataset(tmp_path / "d", 2)
    (tmp_path / "d" / "manifest.json").write_text("[1")
    with pytest.raises(DataError, match="damaged"):
        Dataset.open(tmp_path / "d")


def test_an_index_of_another_dataset_is_refused(tmp_path):
    picture_dataset(tmp_path / "a", 2)
    picture_dataset(tmp_path / "b", 3)
    shutil.copy(tmp_path / "b" / "offset.u64", tmp_path / "a" / "offset.u64")
    with pytest.raises(DataError, match="does not hold the 2 samples"):
        Dataset.open(tmp_path / "a")


@pytest.mark.parametrize("content", [None, b"", b"nonsense, of another size"])
def test_a_damaged_index_is_refused(tmp_path, content):
    picture_dataset(tmp_path / "d", 2)
    path = tmp_path / "d" / "frames.u32"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"frames\.u32"):
        Dataset.open(tmp_path / "d")


def test_a_shard_cut_short_is_refused_when_it_is_read(tmp_path):
    dataset = picture_dataset(tmp_path / "d", 2)
    path = tmp_path / "d" / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match="700 bytes, and the manifest says"):
        dataset.read(0)


def test_a_missing_shard_is_named(tmp_path):
    dataset = picture_dataset(tmp_path / "d", 2)
    (tmp_path / "d" / "shard-00000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.tar"):
        dataset.read(0)


def test_a_full_disk_is_a_message_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TarFileWriter, "_write", full)

    def pack():
        with DatasetWriter(tmp_path / "d", kind="images", form="raw") as writer:
            writer.add("0", "png", b"payload", origin="0.png")

    with pytest.raises(RunError, match=r"d cannot be written: .*No space left"):
        pack()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        DatasetWriter(tmp_path / "file" / "d", kind="images", form="raw").__enter__()


def test_the_fingerprint_is_of_the_content(tmp_path):
    def pack(name, payload, classes=()):
        with DatasetWriter(tmp_path / name, kind="images", form="raw", classes=classes) as writer:
            writer.add("0", "png", payload, origin=name)
        return Dataset.open(tmp_path / name).manifest.fingerprint()

    first = pack("a", b"one")
    assert pack("b", b"one") == first
    assert len({first, pack("c", b"two"), pack("d", b"one", ("x",))}) == 3
