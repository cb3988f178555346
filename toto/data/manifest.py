"""The manifest of a packed dataset: what its shards hold, and the checksums of all its files.

It is written last, and the folder gets its name after that: where there is a manifest, the dataset
is whole. `excluded.jsonl` alone, which users edit, has no checksum.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from toto.data.columns import COLUMNS, column_file
from toto.errors import DataError
from toto.registry import Config

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FORMAT_VERSION",
    "Form",
    "Kind",
    "Manifest",
    "Orientation",
    "ShardEntry",
    "SkippedFile",
    "TokenInfo",
    "manifest_json",
    "parse_manifest",
    "read_manifest",
]

FORMAT_VERSION = 3
"""3 counts decoded frames and records the orientation; 2 counted packets, and ignored it."""
READABLE_VERSIONS = (2, 3)
MANIFEST_FILE = "manifest.json"

Kind = Literal["images", "videos"]
Form = Literal["raw", "tokens"]
Orientation = Literal["upright", "stored"]
"""`upright` applies EXIF orientation and display matrices; `stored` ignores them."""


class ShardEntry(Config):
    """One tar file."""

    name: str = Field(pattern=r"^shard-\d{5,}\.tar$")
    samples: PositiveInt
    bytes: PositiveInt
    sha256: str
    columns: dict[str, str] | None = Field(
        None, description="checksum of this shard's part of each column; see toto.data.columns"
    )

    @model_validator(mode="after")
    def _of_all_columns(self) -> Self:
        if self.columns is not None and self.columns.keys() != COLUMNS.keys():
            raise ValueError(f"checksums of {', '.join(self.columns)} instead of {list(COLUMNS)}")
        return self


class TokenInfo(Config):
    """What the codes of token shards mean."""

    identity_fields: ClassVar[frozenset[str]] = frozenset({"crops", "stride"})

    tokenizer: dict[str, Any] = Field(description="the tokenizer's Config as JSON")
    fingerprint: str
    resolution: PositiveInt = Field(description="side in pixels of the crops that were coded")
    grid: tuple[PositiveInt, PositiveInt] = Field(description="(H, W) tokens of a frame")
    crops: PositiveInt = Field(1, description="crops of each picture; the first is the centre one")
    stride: Literal[1] = Field(1, description="every decoded frame is there; clips apply theirs")


class SkippedFile(Config):
    """A file that was left out because it cannot be decoded."""

    path: str
    reason: str


class Manifest(Config):
    """The whole description; see the fields."""

    format_version: Literal[2, 3] = 3
    kind: Kind
    form: Form
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    classes: tuple[str, ...] = Field((), description="name of each label; empty without labels")
    tokens: TokenInfo | None = Field(None, description="for token shards")
    sources: tuple[str, ...] = Field(
        (), description="the originals that samples were made of, for telling splits apart"
    )
    skipped: tuple[SkippedFile, ...] = ()
    # The default is what every dataset of version 2 was read by, so that runs on it stay the same.
    orientation: Orientation = Field("stored", description="how readers of raw shards decode")
    turned: NonNegativeInt = Field(0, description="samples that `upright` turns or reflects")
    # Not of TokenInfo, which is a part of what it is a hash of, and is compared where tokens of
    # several datasets are joined.
    made_from: str = Field(
        "", description="for token shards: a hash of all that decides their bytes"
    )
    origins_sha256: str | None = Field(None, description="of files.jsonl")
    checksum: str | None = Field(
        None, description="SHA-256 of all other fields; see `manifest_json`"
    )

    @property
    def unprotected(self) -> tuple[str, ...]:
        """The files whose damage would not be noticed, as of datasets packed by an older toto."""
        columns = any(shard.columns is None for shard in self.shards)
        return (
            *((MANIFEST_FILE,) if self.checksum is None else ()),
            *((column_file(name) for name in COLUMNS) if columns else ()),
            *(("files.jsonl",) if self.origins_sha256 is None else ()),
        )

    @property
    def num_samples(self) -> int:
        """Pictures or videos in all shards."""
        return sum(shard.samples for shard in self.shards)

    def fingerprint(self) -> str:
        """Return a hash of what readers get: kind, form, labels, orientation, shards."""
        content = self.model_dump(mode="json", include={"kind", "form", "classes"})
        content["tokens"] = None if self.tokens is None else self.tokens.identity()
        content["shards"] = [shard.sha256 for shard in self.shards]
        # Numbers of frames are counted otherwise than by version 2, and with them the units.
        if self.kind == "videos" and self.form == "raw" and self.format_version > 2:
            content["format_version"] = self.format_version
        # Without such samples both orientations read the same pixels.
        if self.turned and self.orientation == "upright":
            content["orientation"] = self.orientation
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a dataset.

    Raises:
        DataError: there is no dataset, it is half-written, of another version, or damaged.
    """
    path = folder / MANIFEST_FILE
    if not folder.exists():
        raise DataError(f"no dataset at {folder}. Pack one: toto pack SRC {folder}")
    if not path.is_file():
        raise DataError(
            f"{folder} is no packed dataset, or one whose packing did not finish: it has no "
            f"{MANIFEST_FILE}. Pack the pictures or videos into another folder: toto pack SRC OUT"
        )
    return parse_manifest(path.read_bytes(), str(path))


def manifest_json(manifest: Manifest) -> str:
    """Return the text of a manifest with its checksum, which ignores order and white space."""
    content = json.loads(manifest.model_dump_json(exclude={"checksum"}))
    whole = manifest.model_copy(update={"checksum": _checksum(content)})
    return whole.model_dump_json(indent=1) + "\n"


def _checksum(content: dict[str, Any]) -> str:
    others = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Return the manifest in these bytes; `path` names them in messages.

    Raises:
        DataError: they are of another version, or damaged.
    """
    try:
        data = json.loads(content)
        version = data.get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}. Pack the dataset again") from error
    if version not in READABLE_VERSIONS:
        raise DataError(
            f"{path} is of format version {version}, and this toto reads "
            f"{' and '.join(str(known) for known in READABLE_VERSIONS)}. "
            "Update toto, or pack the dataset again"
        )
    written = data.get("checksum")
    if written is not None and written != _checksum(data):
        raise DataError(
            f"{path} is not what was packed (its checksum differs). Copy the whole dataset again, "
            "or pack it again"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {error}. Pack the dataset again") from error
