"""Damage to a packed dataset: every flipped bit is found, at the latest by doctor."""

import json
import os
import shutil

import numpy as np
import pytest
from toy_data import (
    edit_manifest,
    picture_dataset,
    png,
    token_dataset,
    video_dataset,
    without_checksums,
    write_dataset,
)

from toto.data.columns import COLUMNS, column_file
from toto.data.config import ClipConfig
from toto.data.doctor import changed_shards, examine
from toto.data.index import Dataset
from toto.data.stream import SourceStream
from toto.errors import DataError, UndecodableError
from toto.jobs.doctor import examine_dataset

CLIP = ClipConfig(frames=2, stride=1, resolution=32)


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def set_value(dataset, name, sample, value):
    """Change one value of a column, as a packer with a fault would have written it."""
    values = np.fromfile(dataset.folder / column_file(name), COLUMNS[name])
    values[sample] = value
    values.tofile(dataset.folder / column_file(name))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Ten labelled videos of tokens in three shards."""
    out = tmp_path_factory.mktemp("packed") / "d"
    picture_dataset(out, 10, shard_samples=4)
    return out


@pytest.fixture
def dataset(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "d")
    return Dataset.open(tmp_path / "d")


@pytest.mark.parametrize("name", COLUMNS)
def test_every_flipped_byte_of_a_column_is_refused_at_open(dataset, name):
    path = dataset.folder / column_file(name)
    for place in range(path.stat().st_size):
        flip(path, place, place % 8)
        with pytest.raises(DataError, match=rf"{path.name}: the part of shard-0000\d\.tar is not"):
            Dataset.open(dataset.folder)
        flip(path, place, place % 8)
    Dataset.open(dataset.folder)


def test_a_large_dataset_is_verified_shard_by_shard(dataset, monkeypatch):
    monkeypatch.setattr("toto.data.columns.SMALL", 3)
    flip(dataset.folder / "label.i32", 4 * 9)
    opened = Dataset.open(dataset.folder)
    assert opened.label(7) == 1
    with pytest.raises(DataError, match=r"the part of shard-00002\.tar is not what was packed"):
        opened.label(8)
    with pytest.raises(DataError, match=r"the part of shard-00002\.tar is not what was packed"):
        opened.labels(0, 10)


def test_every_flipped_byte_of_a_manifest_is_refused(dataset):
    path = dataset.folder / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        flip(path, place)
        try:
            same = json.loads(path.read_bytes()) == json.loads(content)  # white space
        except ValueError:
            same = False
        if not same:
            with pytest.raises(DataError):
                Dataset.open(dataset.folder)
        path.write_bytes(content)


def test_a_changed_list_of_originals_is_refused(dataset):
    flip(dataset.folder / "files.jsonl", 1)
    with pytest.raises(DataError, match=r"files\.jsonl is not what was packed"):
        list(dataset.origins())


@pytest.mark.parametrize("place", range(28))
def test_a_flipped_byte_of_a_shard_is_named_by_doctor(dataset, place):
    path = dataset.folder / "shard-00001.tar"
    flip(path, place * (path.stat().st_size - 1) // 27)
    assert changed_shards(dataset) == {1: "shard-00001.tar has another checksum"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", 3, "label 3 of sample 5, and the dataset has 3 classes"),
        ("label", -2, "label -2 of sample 5"),
        ("frames", 0, "frames 0 of sample 5, and a sample has at least one frame"),
        ("offset", 2**40, "offset 1,099,511,627,776 of sample 5"),
        ("offset", 513, "offset 513 of sample 5"),
        ("size", 2**40, "size 1,099,511,627,776 of sample 5"),
    ],
)
def test_impossible_values_of_an_older_dataset_are_refused_at_open(dataset, name, value, message):
    old = without_checksums(dataset)
    set_value(old, name, 5, value)
    with pytest.raises(DataError, match=message):
        Dataset.open(old.folder)


@pytest.mark.parametrize(("name", "value"), [("label", 0), ("size", 7), ("offset", 512)])
def test_doctor_compares_the_index_of_an_older_dataset_with_the_tar(dataset, name, value, capsys):
    old = without_checksums(dataset)
    set_value(old, name, 5, value)
    old = Dataset.open(old.folder)
    found = examine(old, CLIP, {})
    assert [(finding.sample, finding.ailment) for finding in found] == [(5, "index")]
    assert f"{name} {value} in the index, " in found[0].detail
    listing = old.folder.parent / "list"
    assert not examine_dataset(
        old.folder, frames=1, stride=1, like=None, fix=False, listing=listing
    )
    printed = capsys.readouterr().out
    assert (
        "manifest.json, offset.u64, size.u64, frames.u32, label.i32, files.jsonl have no" in printed
    )
    assert "the index and the tar disagree" in printed


def test_the_fingerprint_does_not_depend_on_the_checksums(dataset):
    before = dataset.fingerprint()
    assert without_checksums(dataset).fingerprint() == before


def test_an_unreadable_header_is_one_samples_fault(tmp_path):
    payloads = [png(np.full((8, 8, 3), n, np.uint8)) for n in range(3)]
    samples = [(payloads[0], 1, -1), (b"no picture", 1, -1), (payloads[2], 1, -1)]
    dataset = write_dataset(tmp_path / "d", samples, kind="images", extension="png")
    flip(tmp_path / "d/shard-00000.tar", int(dataset._store.column("offset", 1, 2)[0]) - 400)
    stream = SourceStream.in_order(dataset, CLIP)
    with pytest.raises(UndecodableError, match="its header in the tar is damaged"):
        dataset.key(1)
    with pytest.raises(DataError, match="d/sample 1: no JPEG, PNG or WebP"):
        stream.sequences([0], source=0, positions=[0])


@pytest.mark.parametrize("make", [token_dataset, video_dataset])
def test_a_shard_cut_while_it_is_mapped_does_not_end_the_process(tmp_path, make):
    dataset = make(tmp_path / "d", [4, 4, 4])
    clip = CLIP
    stream = SourceStream.shuffled(dataset, clip, seed=0, name="s")
    stream.sequences([0], source=0, positions=[0])
    os.truncate(tmp_path / "d/shard-00000.tar", 520)
    with pytest.raises(DataError, match="its shard was cut to 520 bytes after it was opened"):
        stream.sequences([1], source=0, positions=[1])


def test_a_code_that_the_tokenizer_lacks_is_replaced(tmp_path):
    dataset = token_dataset(tmp_path / "d", [4, 4, 4])  # codes from 2000 on in the last
    info = dataset.manifest.model_dump(mode="json")["tokens"]
    tokenizer = {"name": "dvae", "num_codes": 1100, "weights": None}
    edit_manifest(tmp_path / "d", tokens=info | {"tokenizer": tokenizer})
    dataset = Dataset.open(tmp_path / "d")
    with pytest.raises(UndecodableError, match=r"code 2003, .* codes from 0 to 1099"):
        dataset.read_codes(2, 0, 1, 1)
    stream = SourceStream.shuffled(dataset, CLIP, seed=0, name="s")
    drawn = stream.sequences(range(6), source=0, positions=range(6))
    broken = [what for sequence in drawn for what in sequence.broken]
    assert broken
    assert all("d/000002: it holds the code 20" in what for what in broken)


def test_a_missing_column_is_a_named_error(dataset, monkeypatch):
    monkeypatch.setattr("toto.data.columns.SMALL", 3)
    opened = Dataset.open(dataset.folder)
    (dataset.folder / "size.u64").unlink()
    with pytest.raises(DataError, match=r"size\.u64 cannot be read: No such file"):
        opened.read(0)
