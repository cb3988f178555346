"""A folder of pictures or of videos to a dataset, byte for byte."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from toto.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, UndecodableError, count_frames
from toto.data.index import NO_LABEL
from toto.data.manifest import Kind, SkippedFile
from toto.data.progress import Progress, silent
from toto.data.shards import DatasetWriter
from toto.errors import DataError

__all__ = ["PackReport", "make_key", "pack_folder"]

LISTED_FILES = 20


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        path: the dataset.
        kind: images or videos.
        num_samples: pictures or videos.
        num_frames: decoded frames of all samples.
        num_bytes: of the files.
        num_shards: tar files.
        classes: names of the labels; empty without.
        skipped: files that were left out because they cannot be decoded.
        ignored: files in the folder that are neither pictures nor videos.
    """

    path: Path
    kind: Kind
    num_samples: int
    num_frames: int
    num_bytes: int
    num_shards: int
    classes: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    ignored: int


@dataclass(frozen=True)
class _Found:
    """The files to pack, relative to their folder."""

    kind: Kind
    files: list[Path]
    ignored: int


def pack_folder(
    src: Path, out: Path, *, skip_broken: bool = False, progress: Progress = silent
) -> PackReport:
    """Pack the pictures (jpg, png, webp) or videos (mp4, mov, mkv, webm, avi) under `src`.

    Files are found in all sub-folders, hidden ones left out, links to folders not followed. Where
    every file lies in a sub-folder, the first-level folders are the classes, sorted. Samples are
    ordered by a hash of their paths, so that each shard is a fair part of the whole, whatever the
    classes. Every file is checked: pictures are decoded, of videos the first and the last frame.

    Args:
        src: the folder.
        out: the dataset's folder; must not exist yet.
        skip_broken: leave out files that cannot be decoded, and name them in the manifest.
        progress: called after each file.

    Raises:
        DataError: nothing to pack, pictures and videos mixed, `out` exists, or files cannot be
            decoded; nothing is left at `out` then.
    """
    found = _find_files(src)
    classes = _classes(found.files)
    label_of = {name: label for label, name in enumerate(classes)}
    broken: list[SkippedFile] = []
    with DatasetWriter(out, kind=found.kind, form="raw", classes=classes) as writer:
        for number, path in enumerate(found.files):
            try:
                payload = (src / path).read_bytes()
                frames = count_frames(found.kind, payload)
            except (OSError, UndecodableError) as error:
                broken.append(SkippedFile(path=_shown(path), reason=str(error)))
            else:
                writer.add(
                    make_key(number, path.stem),
                    path.suffix[1:].lower(),
                    payload,
                    origin=_shown(path),
                    frames=frames,
                    label=label_of.get(_shown(path.parts[0]), NO_LABEL),
                )
            progress(number + 1, len(found.files))
        if broken and not skip_broken:
            raise DataError(_broken_message(src, broken))
        writer.skipped = broken
    return PackReport(
        path=out,
        kind=found.kind,
        num_samples=writer.num_samples,
        num_frames=writer.num_frames,
        num_bytes=writer.num_bytes,
        num_shards=writer.num_shards,
        classes=classes,
        skipped=tuple(broken),
        ignored=found.ignored,
    )


def make_key(number: int, stem: str) -> str:
    """A WebDataset key, unique by its number: `000012_cafe_2` for sample 12, `café 2`."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return f"{number:06d}_" + re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:60]


def _find_files(src: Path) -> _Found:
    if not src.is_dir():
        raise DataError(f"no folder at {src}. Give the folder of the pictures or videos")
    images: list[Path] = []
    videos: list[Path] = []
    ignored = 0
    for folder, subfolders, names in os.walk(src):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = (Path(folder) / name).relative_to(src)
            extension = path.suffix[1:].lower()
            if name.startswith("."):
                continue
            if extension in IMAGE_EXTENSIONS:
                images.append(path)
            elif extension in VIDEO_EXTENSIONS:
                videos.append(path)
            else:
                ignored += 1
    if images and videos:
        raise DataError(
            f"{src} holds {len(images)} pictures (such as {_shown(min(images))}) and "
            f"{len(videos)} videos (such as {_shown(min(videos))}). Move them into two folders "
            "and pack them apart"
        )
    if not images and not videos:
        known = " ".join(sorted(IMAGE_EXTENSIONS | VIDEO_EXTENSIONS))
        raise DataError(
            f"{src} holds no pictures and no videos ({ignored} other files). "
            f"toto packs files that end in: {known}"
        )
    files = sorted(images or videos, key=_hash)
    return _Found("images" if images else "videos", files, ignored)


def _shown(path: Path | str) -> str:
    """The path as text, also where its name is not valid UTF-8: such bytes read `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _hash(path: Path) -> bytes:
    return blake2b(os.fsencode(path.as_posix()), digest_size=16).digest()


def _classes(files: list[Path]) -> tuple[str, ...]:
    """The first-level folders; none where a file lies beside them."""
    if any(len(path.parts) == 1 for path in files):
        return ()
    return tuple(sorted({_shown(path.parts[0]) for path in files}))


def _broken_message(src: Path, broken: list[SkippedFile]) -> str:
    lines = [f"  {file.path}: {file.reason}" for file in broken[:LISTED_FILES]]
    if len(broken) > LISTED_FILES:
        lines.append(f"  and {len(broken) - LISTED_FILES} more")
    noun = "file" if len(broken) == 1 else "files"
    return "\n".join(
        [
            f"{src}: {len(broken)} {noun} cannot be decoded. Remove them, or leave them out with "
            "--skip-broken",
            *lines,
        ]
    )
