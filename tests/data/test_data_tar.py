import hashlib
import json
import tarfile

import numpy as np
import pytest
import webdataset
from toy_data import video_dataset

from toto.data.index import Dataset
from toto.data.tar import TarFileWriter, tar_size
from toto.errors import DataError


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513], [10_240 - 512] * 3, [100_000, 7]])
def test_bytes_are_those_of_webdataset(tmp_path, sizes):
    with (tmp_path / "theirs").open("wb") as file:
        theirs = webdataset.TarWriter(
            file, user="", group="", mtime=0, encoder=False, compress=False
        )
        for number, size in enumerate(sizes):
            theirs.write({"__key__": f"{number:06d}_{'k' * 73}", "jpg": bytes([number]) * size})
        theirs.close()
    ours = TarFileWriter(tmp_path / "ours")
    for number, size in enumerate(sizes):
        before = ours.size
        offset = ours.add(f"{number:06d}_{'k' * 73}.jpg", bytes([number]) * size)
        assert (offset, ours.size) == (before + 512, before + tar_size(size))
    digest = ours.close()
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert ours.size == len(content)


@pytest.mark.parametrize("size", [8 * 2**30 - 1, 8 * 2**30])
def test_a_file_as_large_as_no_header_can_say_is_read(tmp_path, size):
    video_dataset(tmp_path / "d", [2])
    header = tarfile.TarInfo("000000.mp4")
    header.size = size
    head = header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    shard = tmp_path / "d/shard-00000.tar"
    with shard.open("wb") as file:  # all but the header is a hole
        file.write(head)
        file.truncate(len(head) + size)
    np.array([len(head)], "<u8").tofile(tmp_path / "d/offset.u64")
    np.array([size], "<u8").tofile(tmp_path / "d/size.u64")
    path = tmp_path / "d/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= {"bytes": len(head) + size, "columns": None}
    manifest["checksum"] = None
    path.write_text(json.dumps(manifest))
    dataset = Dataset.open(tmp_path / "d")
    assert len(dataset.read(0)) == size
    assert dataset.key(0) == "000000"
    np.array([size - 1], "<u8").tofile(tmp_path / "d/size.u64")
    with pytest.raises(DataError, match="different packings"):
        Dataset.open(tmp_path / "d").read(0)


class Huge(bytes):
    """As long as no header can say; what is written of it is nothing."""

    def __len__(self):
        return 8 * 2**30


def test_the_content_of_a_large_file_is_behind_both_its_headers(tmp_path):
    tar = TarFileWriter(tmp_path / "x.tar")
    offset = tar.add("000000.mp4", Huge())
    tar.close()
    with tarfile.open(tmp_path / "x.tar") as archive:
        member = archive.next()
    assert (member.offset_data, member.size) == (offset, 8 * 2**30)
