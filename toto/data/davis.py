"""DAVIS (Pont-Tuset et al. 2017) as it is published: pictures, and a mask of objects for each.

    DIR/ImageSets/2017/val.txt           names of sequences, one a line
    DIR/JPEGImages/480p/NAME/00000.jpg
    DIR/Annotations/480p/NAME/00000.png  indexed PNG: 0 background, k object k, 255 void

Masks that a model found lie likewise: MASKS/NAME/00000.png.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from toto.data.decode import Frame, UndecodableError, decode_image, open_image, upright_size
from toto.data.listing import folders_in
from toto.data.walk import visible_entries
from toto.errors import DataError, UserError
from toto.files import disk_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "PALETTE",
    "DavisSequence",
    "Ids",
    "open_davis",
    "read_mask",
    "require_equal_sizes",
    "write_mask",
]

Ids = npt.NDArray[np.uint8]
"""The object of each pixel, `HW`; 0 is the background."""

FRAME_SUFFIXES = (".jpg", ".jpeg")
PICTURES, ANNOTATIONS, NAMES = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"
VOID = 255
INDEXED_MODES = ("P", "L")


def _palette() -> Ids:
    """The colours of PASCAL VOC, which DAVIS has too.

    Bits 0, 1 and 2 of an id are the highest bits of red, green and blue, the next three the ones
    below, and so on.
    """
    ids = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = ids >> (3 * place + channel) & 1
            colors[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colors


PALETTE = _palette()
"""RGB of each object id, `[256, 3]`."""


@dataclass(frozen=True)
class DavisSequence:
    """One video with an annotation for each frame; nothing is read before it is asked for."""

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]

    def __len__(self) -> int:
        """Its frames."""
        return len(self.frames)

    def mask_name(self, index: int) -> str:
        """Return the file name of a mask of frame `index`."""
        return f"{self.frames[index].stem}.png"

    def content_digest(self) -> str:
        """Return a SHA-256 of all frames and annotations, which changes when a file is repaired.

        Raises:
            DataError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for path in (*self.frames, *self.annotations):
            try:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}. Unpack DAVIS again") from error
        return digest.hexdigest()

    def picture(self, index: int) -> Frame:
        """Frame `index`, uint8 `HWC`.

        Raises:
            DataError: the file cannot be read or decoded.
        """
        path = self.frames[index]
        try:
            return decode_image(path.read_bytes())
        except (OSError, UndecodableError) as error:
            raise DataError(f"{path} cannot be read: {error}. Unpack DAVIS again") from error

    def truth(self, index: int) -> Ids:
        """The annotation of frame `index`; void counts as background, as the official code has it.

        Raises:
            DataError: the file cannot be read, or is no indexed PNG.
        """
        ids_HW = read_mask(self.annotations[index])
        return np.where(ids_HW == VOID, np.uint8(0), ids_HW)

    def num_objects(self) -> int:
        """Those of the first annotation, by its highest id.

        Raises:
            DataError: it has none.
        """
        objects = int(self.truth(0).max())
        if not objects:
            raise DataError(
                f"{self.annotations[0]}: no object (pixels are 0, or 255, which is void). In the "
                "2017 layout objects have the ids 1, 2, …"
            )
        return objects


def open_davis(root: Path, names: Sequence[str] = ()) -> list[DavisSequence]:
    """The sequences of these names; unless any are given, those that `val.txt` lists.

    Raises:
        UserError: no such sequence.
        DataError: a part of the layout is missing, or a frame has no annotation.
    """
    for part in (PICTURES, ANNOTATIONS):
        if not (root / part).is_dir():
            raise DataError(
                f"{root} holds no {part}. Give the folder of DAVIS 2017 that holds JPEGImages, "
                "Annotations and ImageSets (DAVIS-2017-trainval-480p.zip has it)"
            )
    return [_open_sequence(root, name) for name in dict.fromkeys(names or _listed(root))]


def _listed(root: Path) -> list[str]:
    path = root / NAMES
    if not path.is_file():
        raise DataError(
            f"{path} is missing, which lists the sequences. Put it back, or name them with "
            "--sequences"
        )
    # Some lists begin with a byte-order mark; str.splitlines would split names at U+2028.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise DataError(f"{path} lists no sequence. Put it back, or name them with --sequences")
    return names


def _open_sequence(root: Path, name: str) -> DavisSequence:
    if name in {"", ".", ".."} or "/" in name:
        raise UserError(f"sequence {name!r} is not the name of a folder in {root / PICTURES}")
    frames = _files(root / PICTURES / name, FRAME_SUFFIXES)
    if not frames:
        there = folders_in(root / PICTURES)
        raise UserError(
            f"sequence {name}: no frames in {root / PICTURES / name}. There are "
            f"{', '.join(there) or 'none at all'}"
        )
    annotations = _files(root / ANNOTATIONS / name, (".png",))
    if lost := sorted(annotations.keys() - frames.keys()):
        raise DataError(
            f"{annotations[lost[0]]} has no frame in {root / PICTURES / name}. Unpack DAVIS again, "
            "or leave the sequence out with --sequences"
        )
    for stem in frames:
        if stem not in annotations:
            raise DataError(
                f"{root / ANNOTATIONS / name / f'{stem}.png'} is missing: every frame needs its "
                "annotation, or nothing can be scored. Unpack DAVIS again, or leave the sequence "
                "out with --sequences"
            )
    order = sorted(frames, key=_place)
    return DavisSequence(
        name,
        tuple(frames[stem] for stem in order),
        tuple(annotations[stem] for stem in order),
    )


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files with these endings, in either case, by what comes before it; hidden ones are not.

    Raises:
        DataError: two files differ in their ending alone.
    """
    found: dict[str, Path] = {}
    for path in visible_entries(folder) if folder.is_dir() else ():
        if path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise DataError(
                f"{folder} holds both {found[path.stem].name} and {path.name}, and one of them is "
                "to be used. Move the other away"
            )
        found[path.stem] = path
    return found


def _place(stem: str) -> tuple[int, str]:
    """Numbers are in the order of their values: 2 comes before 10."""
    return (int(stem), stem) if stem.isascii() and stem.isdecimal() else (-1, stem)


def require_equal_sizes(sequences: Sequence[DavisSequence]) -> None:
    """Refuse annotations of another size than their frames, and frames of several sizes.

    The headers of all files are read, and no pixels.

    Raises:
        DataError: the sizes differ, or a file cannot be read.
    """
    for sequence in sequences:
        first = None
        for path, annotation in zip(sequence.frames, sequence.annotations, strict=True):
            size, annotated = _frame_size(path), _mask_size(annotation)
            first = first or size
            if annotated != size:
                raise DataError(
                    f"{annotation} is {_written(annotated)}, and its frame {path} is "
                    f"{_written(size)}. Resize the annotations to the size of the frames, by the "
                    "nearest pixel, or the frames to that of the annotations"
                )
            if size != first:
                raise DataError(
                    f"{path} is {_written(size)}, and the first frame of {sequence.name} is "
                    f"{_written(first)}. Bring all frames and annotations of it to one size"
                )


def _frame_size(path: Path) -> tuple[int, int]:
    """Width and height of a frame as decoded, which EXIF may turn."""
    try:
        return upright_size(path.read_bytes())
    except (OSError, UndecodableError) as error:
        raise DataError(f"{path} cannot be read: {error}. Unpack DAVIS again") from error


def _mask_size(path: Path) -> tuple[int, int]:
    """Width and height of an annotation."""
    try:
        # An annotation is taken as stored, and reading the EXIF data of a PNG would decode it.
        with open_image(path.read_bytes(), ("PNG",)) as image:
            return image.size
    except (OSError, UndecodableError) as error:
        raise DataError(f"{path} cannot be read: {error}. Unpack DAVIS again") from error


def _written(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def read_mask(path: Path) -> Ids:
    """The ids in an indexed PNG, `HW`.

    Raises:
        DataError: it is missing, broken, or holds colours instead of ids.
    """
    try:
        with open_image(path.read_bytes(), ("PNG",)) as image:
            if image.mode not in INDEXED_MODES:
                raise DataError(
                    f"{path} holds colours (mode {image.mode}), not ids. Write masks as indexed "
                    "PNG with the object's id in each pixel"
                )
            return np.array(image)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing. Masks are named as the frames are, MASKS/SEQUENCE/00000.png"
        ) from error
    except (OSError, UndecodableError) as error:
        raise DataError(f"{path} cannot be read: {error}. Write it again") from error


def write_mask(path: Path, ids_HW: Ids) -> None:
    """Write an indexed PNG with the colours of DAVIS; its folder is made if it is missing.

    There are thousands of them: that all are whole is up to whoever makes the folder above.

    Raises:
        RunError: the disk is full or refuses.
    """
    image = Image.fromarray(ids_HW)
    image.putpalette(PALETTE.tobytes())
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, format="PNG")
