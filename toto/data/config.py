"""What a recipe says of its data. No torch here."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from toto.registry import Config

__all__ = [
    "TOGETHER",
    "CacheConfig",
    "ClipConfig",
    "DataConfig",
    "Decoder",
    "Paths",
    "SourceConfig",
    "listed",
]

TOGETHER = "all"
"""Under this name the evaluation of a tokenizer holds all sources together."""

Decoder = Literal["pyav", "torchcodec"]

Paths = str | tuple[str, ...]
"""One dataset, or several that are joined in this order."""


def listed(paths: Paths) -> tuple[str, ...]:
    """The paths as they are written, patterns and all."""
    return (paths,) if isinstance(paths, str) else paths


class ClipConfig(Config):
    """How a sequence is cut out of a source (paper §3.4: 16 frames, every 4th, 128 px)."""

    identity_fields: ClassVar[frozenset[str]] = frozenset({"frames", "stride", "resolution"})

    frames: PositiveInt = Field(16, description="T frames a sequence: of one video, or T images")
    stride: PositiveInt = Field(4, description="every stride-th decoded frame of a video")
    resolution: PositiveInt = Field(128, description="side of the square crop in pixels")

    @property
    def span(self) -> int:
        """Decoded frames that one clip covers."""
        return (self.frames - 1) * self.stride + 1


class SourceConfig(Config):
    """One dataset of the mixture."""

    path: Paths = Field(
        description="a packed dataset, relative to data.root: a folder or an address such as "
        "s3://bucket/it; several, joined in this order: a list, part-{00..03}, part-*"
    )
    validation: Paths | None = Field(None, description="the held-out dataset, never trained on")
    weight: PositiveFloat = Field(1.0, description="share of the sequences of every batch")
    stride: PositiveInt | None = Field(None, description="instead of clip.stride")


class CacheConfig(Config):
    """Where the shards of remote datasets are kept, and how they are fetched."""

    folder: str = Field("~/.cache/toto/shards", description="may serve many runs at once")
    max_gb: PositiveFloat = Field(
        100.0, description="of the whole folder; shards not used for longest make room"
    )
    ahead: NonNegativeInt = Field(
        2, description="shards that a process fetches at once before they are needed"
    )
    retries: NonNegativeInt = Field(5, description="of a fetch that failed, with growing pauses")
    stall_seconds: PositiveFloat = Field(
        30.0, description="a fetch that brings nothing for so long has failed"
    )
    redirect_hosts: tuple[str, ...] = Field(
        (), description="hosts that the server of a dataset may redirect to, such as a CDN's"
    )


class DataConfig(Config):
    """The mixture and how it is read."""

    root: str = Field("data", description="folder of the datasets, or its address")
    make: Literal["samples", "moving_digits"] | None = Field(
        None, description="make these datasets, of installed packages, where root lacks a source's"
    )
    tokens: Literal["in_run", "once"] = Field(
        "in_run",
        description="tokenize pictures in the run, or once before it into token shards under root",
    )
    sources: dict[str, SourceConfig] = Field(
        min_length=1, description="the datasets, each under a name of your choice"
    )
    cache: CacheConfig = Field(CacheConfig(), description="of remote datasets")
    workers: NonNegativeInt = Field(0, description="loader processes; the order does not depend")
    decoder: Decoder = Field(
        "pyav", description="of the training clips; `torchcodec` has to be installed"
    )
    verify: Literal["background", "off"] = Field(
        "background",
        description="compare the shards with their checksums: 256 MB before the first step, the "
        "rest while training",
    )
    max_broken: NonNegativeFloat = Field(
        0.01, le=1.0, description="share of undecodable units that stops the run"
    )
