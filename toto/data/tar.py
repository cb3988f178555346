"""Tar files of one form: fixed time and owner, so that equal samples give equal bytes.

What comes out is to the byte what `webdataset.TarWriter` writes, and where each payload lies in it.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TarFileWriter", "tar_size"]

BLOCK = tarfile.BLOCKSIZE
END = 2 * BLOCK
READ_ONLY = 0o444
BUFFER = 2**20


class TarFileWriter:
    """A tar under way; counts and hashes what is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=BUFFER)
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, name: str, payload: bytes) -> int:
        """Append one file and return where its content begins in the tar.

        Args:
            name: in the tar, fewer than 100 bytes.
            payload: its content.

        Raises:
            OSError: the disk is full or refuses.
        """
        header = tarfile.TarInfo(name)
        header.size = len(payload)
        header.mode = READ_ONLY
        self._write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        offset = self.size
        self._write(payload)
        self._write(bytes(-len(payload) % BLOCK))
        return offset

    def close(self) -> str:
        """Write the end of the tar and return the sha256 of the whole."""
        self._write(bytes(END + -(self.size + END) % tarfile.RECORDSIZE))
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close what will be removed."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
        self._file.write(data)


def tar_size(size: int) -> int:
    """Bytes that a file of `size` bytes takes in a tar, its header included."""
    return BLOCK + -(-size // BLOCK) * BLOCK
