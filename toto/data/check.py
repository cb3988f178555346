"""Whether a file that is to be packed can be decoded, and how many frames it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.data.decode import MediaInfo, UndecodableError, inspect_media
from toto.data.index import NO_LABEL

if TYPE_CHECKING:
    from toto.data.manifest import Kind

__all__ = ["SourceFile", "check_file"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An encoded picture or video: a file, or a stretch of a tar.

    Attributes:
        path: of the file, or of the tar.
        origin: its path as text, relative to what is packed, for keys and messages.
        size: in bytes.
        offset: where it begins in `path`.
        changed: time of the last change of `path`, in ns.
        label: class, or -1.
    """

    path: str
    origin: str
    size: int
    offset: int = 0
    changed: int = 0
    label: int = NO_LABEL

    @property
    def extension(self) -> str:
        """In small letters, without its dot."""
        return self.origin.rpartition(".")[2].lower()

    @property
    def stem(self) -> str:
        """The name without folders and extension."""
        return self.origin.rpartition("/")[2].rpartition(".")[0]

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UndecodableError: it cannot be read, or ends too early.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                if self.offset:
                    file.seek(self.offset)
                payload = file.read(self.size)
                # The system may give less at a time than it was asked for.
                while len(payload) < self.size and (more := file.read(self.size - len(payload))):
                    payload += more
        except OSError as error:
            raise UndecodableError(str(error)) from error
        if len(payload) != self.size:
            raise UndecodableError(f"{len(payload)} bytes, where there should be {self.size}")
        return payload


def check_file(kind: Kind, file: SourceFile) -> MediaInfo | str:
    """Return what decoding the whole file shows, or why it cannot be decoded."""
    try:
        return inspect_media(kind, file.read())
    except UndecodableError as error:
        return str(error)
