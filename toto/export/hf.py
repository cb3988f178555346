"""A trained model as a directory that transformers loads, and back.

The directory holds model.safetensors, config.json, toto.json (what toto knows of the model) and a
model card, README.md. Ids there are toto's: a code of the tokenizer is its id less 4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toto.errors import CheckpointError, UserError
from toto.export.layout import family_of, from_theirs, to_theirs
from toto.files import disk_errors, replacing, write_atomic
from toto.layers.masks import CAUSAL
from toto.sequence import END_ID, IMAGE_START_ID, NUM_SPECIAL_IDS, PAD_ID, VIDEO_START_ID

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from toto.model import AutoregressiveModel

__all__ = ["RECORD", "WEIGHTS", "ModelRecord", "read_fingerprint", "read_model", "write_model"]

WEIGHTS = "model.safetensors"
RECORD = "toto.json"
CARD = "card.md"


@dataclass(frozen=True)
class ModelRecord:
    """What toto writes of a model beside the weights, in plain JSON values.

    Attributes:
        backbone: its config.
        tokenizer: config of the tokenizer whose codes the ids are.
        fingerprint: of that tokenizer.
        resolution: side of a frame in pixels.
        frames: of a sequence, T.
        grid: tokens of a frame, (H, W).
        step: optimizer steps that the model has seen.
    """

    backbone: dict[str, Any]
    tokenizer: dict[str, Any]
    fingerprint: str
    resolution: int
    frames: int
    grid: tuple[int, int]
    step: int


def write_model(model: AutoregressiveModel, record: ModelRecord, out: Path) -> None:
    """Write the directory.

    Raises:
        UserError: the folder holds something or is a file, or transformers has no such model.
        RunError: the disk is full or refuses.
    """
    config = model.backbone.config
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Name a new folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty. Name a new folder")
    if model.mask != CAUSAL:
        raise UserError("transformers' classes are causal, and this model was trained otherwise")
    if config.mup_base_width is not None:  # at the base width too: scores are over K, not √K
        raise UserError("models under µP scale their scores and logits, which transformers' do not")
    state = model.state_dict()
    if "interface.embedding.weight" not in state or record.tokenizer.get("name") == "patch":
        raise UserError("patch inputs have no ids, which transformers' classes take")
    height, width = record.grid
    family = family_of(
        config,
        vocab_size=len(state["interface.embedding.weight"]),
        length=record.frames * height * width + 2,
    )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        texts = {
            "config.json": family.config,
            "generation_config.json": {"bos_token_id": VIDEO_START_ID, "do_sample": True},
            RECORD: record.__dict__,
        }
        for name, content in texts.items():
            write_atomic(out / name, json.dumps(content, indent=2) + "\n")
        write_atomic(out / "README.md", _card(record, family.config["architectures"][0]))
        # Last: a directory without weights is seen to be unfinished.
        with replacing(out / WEIGHTS) as unfinished:
            save_file(to_theirs(state, family), unfinished, metadata={"format": "pt"})


def read_model(folder: Path, model: AutoregressiveModel) -> dict[str, Tensor]:
    """The `state_dict()` of `model` from a directory of transformers, of toto's making or not.

    Args:
        folder: with model.safetensors.
        model: what it shall fit.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
        UserError: transformers has no such model, or its tensors do not fit.
    """
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    embedding = model.state_dict()["interface.embedding.weight"]
    family = family_of(model.backbone.config, vocab_size=len(embedding), length=2)
    return from_theirs(tensors, family)


def read_fingerprint(folder: Path) -> str | None:
    """Of the tokenizer whose codes a directory's model takes; None where toto did not write it.

    Raises:
        CheckpointError: toto.json is there and cannot be read.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def _card(record: ModelRecord, architecture: str) -> str:
    text = resources.files("toto.export").joinpath(CARD).read_text(encoding="utf-8")
    ids = {"video_start": VIDEO_START_ID, "end": END_ID, "image_start": IMAGE_START_ID}
    card: str = Template(text, keep_trailing_newline=True).render(
        record=record,
        architecture=architecture,
        tokens=record.frames * record.grid[0] * record.grid[1],
        ids=ids | {"pad": PAD_ID, "first_code": NUM_SPECIAL_IDS},
        tokenizer=json.dumps(record.tokenizer, indent=2),
    )
    return card
