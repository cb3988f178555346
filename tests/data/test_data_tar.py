import hashlib

import pytest
import webdataset

from toto.data.tar import TarFileWriter, tar_size


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
