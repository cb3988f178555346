"""The middle of each sample, whatever its length: of a packed dataset, or of loose files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.clip_files import kind_of_file
from toto.data.clips import read_clip
from toto.data.decode import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    UndecodableError,
    decode_clip,
    decode_image,
    inspect_media,
)
from toto.data.index import NO_LABEL
from toto.data.order import CENTRE
from toto.data.stream import DrawnSequence
from toto.data.transforms import square_cut
from toto.data.walk import walk
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.config import ClipConfig
    from toto.data.index import Dataset

__all__ = ["DatasetMiddles", "FileMiddles", "Middles", "media_files"]


class Middles(ABC):
    """One sequence of each sample: a picture, or at most `clip.frames` frames of a video."""

    def __init__(self, clip: ClipConfig) -> None:
        self.clip = clip

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def name(self, number: int) -> str:
        """What a user calls the sample."""

    @property
    def classes(self) -> Sequence[str]:
        """The name of each label; empty without labels."""
        return ()

    def label(self, number: int) -> int:
        """Return the sample's label, NO_LABEL without one."""
        return NO_LABEL

    @abstractmethod
    def identity(self, number: int) -> str:
        """Return text that changes when the sample's content may have changed."""

    @abstractmethod
    def most_frames(self, number: int) -> int:
        """The sample's sequence has no more."""

    @abstractmethod
    def read(self, number: int) -> DrawnSequence:
        """The sample's sequence, in its centre square.

        Raises:
            DataError: it cannot be read or decoded.
        """

    def _place(self, frames: int) -> ClipConfig:
        """The clip as long as a video of that many frames allows."""
        available = (frames - 1) // self.clip.stride + 1
        return self.clip.model_copy(update={"frames": min(self.clip.frames, available)})


class DatasetMiddles(Middles):
    """Of a packed dataset, pictures, videos or tokens; what is excluded is left out."""

    def __init__(self, dataset: Dataset, clip: ClipConfig) -> None:
        super().__init__(clip)
        self._dataset = dataset
        self._kept = dataset.kept().tolist()
        self._packing = dataset.manifest.fingerprint()

    def __len__(self) -> int:
        return len(self._kept)

    def name(self, number: int) -> str:
        """Its origin, and its key where that is unknown."""
        sample = self._kept[number]
        return self._dataset.origin(sample) or self._dataset.key(sample)

    def identity(self, number: int) -> str:
        """Of the packed files, whatever samples of them are excluded."""
        return f"{self._packing} {self._kept[number]}"

    @property
    def classes(self) -> Sequence[str]:
        """Of the dataset."""
        return self._dataset.classes

    def label(self, number: int) -> int:
        """Of the dataset's sample."""
        return self._dataset.label(self._kept[number])

    def most_frames(self, number: int) -> int:
        """See `Middles.most_frames`."""
        return self._place(self._dataset.frames(self._kept[number])).frames

    def read(self, number: int) -> DrawnSequence:
        """See `Middles.read`."""
        sample = self._kept[number]
        frames = self._dataset.frames(sample)
        clip = self._place(frames)
        return DrawnSequence(
            frames=read_clip(self._dataset, sample, (frames - clip.span) // 2, clip),
            is_image=self._dataset.kind == "images",
            source=0,
            position=number,
            label=self.label(number),
            drawn=1,
            broken=(),
        )


class FileMiddles(Middles):
    """Of loose files, pictures and videos.

    Args:
        root: names are relative to it.
        paths: the files.
        clip: see `Middles`.

    Raises:
        DataError: a file that is missing or by its ending neither.
    """

    def __init__(self, root: Path, paths: Sequence[Path], clip: ClipConfig) -> None:
        super().__init__(clip)
        self._root = root
        self._paths = list(paths)
        self._kinds = [kind_of_file(path) for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, number: int) -> str:
        """Its path below the root."""
        return self._paths[number].relative_to(self._root).as_posix()

    def identity(self, number: int) -> str:
        """Name, size and time of the last change."""
        status = self._paths[number].stat()
        return f"{self.name(number)} {status.st_size} {status.st_mtime_ns}"

    def most_frames(self, number: int) -> int:
        """See `Middles.most_frames`."""
        return 1 if self._kinds[number] == "images" else self.clip.frames

    def read(self, number: int) -> DrawnSequence:
        """See `Middles.read`."""
        path, kind = self._paths[number], self._kinds[number]
        try:
            payload = path.read_bytes()
            total = inspect_media(kind, payload).frames
            clip = self._place(total)
            start = (total - clip.span) // 2
            cut = square_cut(clip.resolution, crop_y=CENTRE, crop_x=CENTRE)
            frames = (
                cut(decode_image(payload)[None])
                if kind == "images"
                else decode_clip(payload, start, clip.frames, clip.stride, total=total, cut=cut)
            )
        except (OSError, UndecodableError) as error:
            raise DataError(
                f"{path}: {error}. Repair the file or remove it, and run the command again: "
                "finished files are kept"
            ) from error
        return DrawnSequence(
            frames=frames,
            is_image=kind == "images",
            source=0,
            position=number,
            label=NO_LABEL,
            drawn=1,
            broken=(),
        )


def media_files(root: Path) -> list[Path]:
    """Return all images and videos below a folder, sorted by path; hidden ones are left out.

    Raises:
        DataError: there is none, or a folder cannot be listed.
    """
    endings = {*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS}
    listed = walk(root)
    found = sorted(path for path in map(Path, listed.images + listed.videos) if path.is_file())
    if not found:
        raise DataError(
            f"{root} holds neither a packed dataset nor pictures or videos "
            f"({', '.join(sorted(endings))}). Name a folder, a file, or what `toto pack` made"
        )
    return found
