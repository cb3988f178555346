"""Tar files of one form: fixed time and owner, so that equal samples give equal bytes.

What comes out is to the byte what `webdataset.TarWriter` writes, and where each payload lies in it.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TarFileWriter", "require_tar_end", "tar_size"]

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


def require_tar_end(path: Path, end: int) -> None:
    """Refuse a tar that does not end where its members do, which `tarfile` takes for a whole one.

    Args:
        path: of the tar.
        end: behind its last member.

    Raises:
        tarfile.ReadError: it was cut between two members or in a header, or more follows its end.
    """
    with path.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError("it is cut short, or the mark of its end is missing")
        while rest := file.read(BUFFER):
            if any(rest):
                raise tarfile.ReadError(
                    "more follows the mark of its end, as after `cat a.tar b.tar`; use "
                    "tar --concatenate, or keep the tars apart"
                )


def tar_size(size: int) -> int:
    """Bytes that a file of `size` bytes takes in a tar, its header included."""
    return BLOCK + -(-size // BLOCK) * BLOCK
