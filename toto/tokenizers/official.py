"""The published weights: where they are, and where `toto weights get` puts them. No torch here.

Addresses: the dVAE's from the notebook of openai/DALL-E; those of VQGAN are in the folders that the
README of CompVis/taming-transformers names, the file of 1024 codes as in
lucidrains/DALLE-pytorch:dalle_pytorch/vae.py, that of 16384 and both sizes as in
nerdyrodent/VQGAN-CLIP:download_models.sh. Nobody publishes digests: the first download's are
recorded, and later ones are held to them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toto.errors import CheckpointError
from toto.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "OFFICIAL",
    "PREFIX",
    "OfficialFile",
    "OfficialWeights",
    "Received",
    "official_name",
    "read_record",
    "record_path",
    "weights_path",
    "write_record",
]

PREFIX = "official:"
HOME_VARIABLE = "TOTO_HOME"


@dataclass(frozen=True)
class OfficialFile:
    """A file as its authors publish it.

    Attributes:
        name: that it has in a folder.
        address: of the authors.
        size: as sources say it, or None where none does.
    """

    name: str
    address: str
    size: str | None = None


@dataclass(frozen=True)
class OfficialWeights:
    """The weights of one published tokenizer.

    Attributes:
        tokenizer: its name in a recipe.
        title: what it is.
        licence: that the authors give.
        files: in the order in which they are converted.
        sizes: the fields of its config that differ from the defaults.
    """

    tokenizer: str
    title: str
    licence: str
    files: tuple[OfficialFile, ...]
    sizes: Mapping[str, Any] = field(default_factory=dict)


_HEIBOX = "https://heibox.uni-heidelberg.de"
_TAMING_LICENCE = "MIT (the repository's; the files carry none of their own)"

OFFICIAL: dict[str, OfficialWeights] = {
    "dvae": OfficialWeights(
        "dvae",
        "the discrete VAE of DALL-E, 8192 codes",
        "Modified MIT, github.com/openai/DALL-E/blob/master/LICENSE",
        (
            OfficialFile("encoder.pkl", "https://cdn.openai.com/dall-e/encoder.pkl"),
            OfficialFile("decoder.pkl", "https://cdn.openai.com/dall-e/decoder.pkl"),
        ),
    ),
    "vqgan-1024": OfficialWeights(
        "vqgan",
        "VQGAN on ImageNet, 1024 codes",
        _TAMING_LICENCE,
        (OfficialFile("last.ckpt", f"{_HEIBOX}/f/140747ba53464f49b476/?dl=1", "958 MB"),),
        {"num_codes": 1024},
    ),
    "vqgan-16384": OfficialWeights(
        "vqgan",
        "VQGAN on ImageNet, 16384 codes",
        _TAMING_LICENCE,
        (
            OfficialFile(
                "last.ckpt",
                f"{_HEIBOX}/d/a7530b09fed84f80a887/files/?p=%2Fckpts%2Flast.ckpt&dl=1",
                "980 MB",
            ),
        ),
    ),
}


def official_name(weights: str | None) -> str | None:
    """NAME of `official:NAME`, or None for every other source of weights."""
    if weights is None or not weights.startswith(PREFIX):
        return None
    return weights.removeprefix(PREFIX)


def weights_path(name: str) -> Path:
    """The file that `official:NAME` means; it need not be there.

    It lies in `$TOTO_HOME/weights`, or `~/.cache/toto/weights`.
    """
    home = os.environ.get(HOME_VARIABLE)
    folder = Path(home).expanduser() if home else Path.home() / ".cache" / "toto"
    return folder / "weights" / f"{name}.safetensors"


def record_path(name: str) -> Path:
    """The file beside the weights that says what they were made of."""
    return weights_path(name).with_suffix(".json")


@dataclass(frozen=True)
class Received:
    """What came as one official file: SHA-256 as hexadecimal digits, bytes, and from where."""

    sha256: str
    size: int
    source: str


def read_record(name: str) -> dict[str, Received]:
    """What was received for these weights before, by file; empty if nothing was.

    Raises:
        CheckpointError: the record is damaged.
    """
    path = record_path(name)
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {file: Received(**received) for file, received in raw.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. Remove it, and compare the digests of the next "
            f"`toto weights get {name}` with those that you know"
        ) from error


def write_record(name: str, files: Mapping[str, Received]) -> None:
    """Keep what was received for these weights.

    Raises:
        OSError: the disk is full or refuses.
    """
    raw = {file: vars(received) for file, received in files.items()}
    write_atomic(record_path(name), json.dumps(raw, indent=2) + "\n")
