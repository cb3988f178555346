"""A trained model as a directory that transformers loads, and back.

The directory holds model.safetensors, config.json, toto.json (what toto knows of the model) and a
model card, README.md. Ids there are toto's: a code of the tokenizer is its id less 4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toto.errors import CheckpointError, UserError
from toto.export.layout import changed_settings, family_of, from_theirs, to_theirs
from toto.files import replacing, write_atomic
from toto.folders import new_folder
from toto.layers.masks import CAUSAL
from toto.model import CodeInterface
from toto.sequence import END_ID, IMAGE_START_ID, NUM_SPECIAL_IDS, PAD_ID, VIDEO_START_ID

if TYPE_CHECKING:
    from torch import Tensor

    from toto.backbones.config import BackboneConfig
    from toto.export.layout import Family
    from toto.model import AutoregressiveModel

__all__ = [
    "RECORD",
    "WEIGHTS",
    "ModelRecord",
    "ModelThere",
    "read_model",
    "read_record",
    "write_model",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
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
    """Write the directory, which appears whole.

    Raises:
        UserError: the folder holds something or is a file, or transformers has no such model, no
            setting for one of its settings, or no place for one of its tensors.
        RunError: the disk is full or refuses.
    """
    config = model.backbone.config
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. Name a new folder")
    if out.exists() and any(path.name[0] != "." for path in out.iterdir()):
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
    tensors = to_theirs(state, family)
    with new_folder(out) as unfinished:
        texts = {
            CONFIG: family.config,
            "generation_config.json": {"bos_token_id": VIDEO_START_ID, "do_sample": True},
            RECORD: record.__dict__,
        }
        for name, content in texts.items():
            write_atomic(unfinished / name, json.dumps(content, indent=2) + "\n")
        write_atomic(unfinished / "README.md", _card(record, family.config["architectures"][0]))
        with replacing(unfinished / WEIGHTS) as weights:
            save_file(tensors, weights, metadata={"format": "pt"})


@dataclass(frozen=True)
class ModelThere:
    """A model of transformers that was read for a model of ours.

    Attributes:
        state: its weights, as the `state_dict()` of our model.
        changed: what is another in our model, on purpose, in words.
    """

    state: dict[str, Tensor]
    changed: list[str]


def read_model(folder: Path, model: AutoregressiveModel) -> ModelThere:
    """Read the weights of `model` from a directory of transformers, of toto's making or not.

    Args:
        folder: with config.json and model.safetensors, or the shards that its index names.
        model: what it shall fit, in every setting that decides what the weights compute.

    Raises:
        CheckpointError: a file is missing or cannot be read.
        UserError: transformers has no such model, config.json describes another function, or the
            tensors do not fit. Each difference is named.
    """
    ours = model.backbone.config
    embedding = model.state_dict().get("interface.embedding.weight")
    if embedding is None or not isinstance(model.interface, CodeInterface):
        raise UserError(f"{folder} takes ids, and this recipe's model takes patches")
    family = family_of(ours, vocab_size=len(embedding), length=2)
    theirs = _read_config(folder)
    changed = _require_same_function(theirs, folder, family, ours)
    return ModelThere(from_theirs(_read_tensors(folder), family, theirs), changed)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. It says what the weights next to it compute: the "
            "number of heads, for example, leaves no trace in their shapes. Copy it there"
        ) from error
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path} is no config of transformers: it holds no mapping")
    return theirs


def _require_same_function(
    theirs: dict[str, Any], folder: Path, family: Family, ours: BackboneConfig
) -> list[str]:
    """Refuse a config.json that describes another function than our backbone.

    Returns:
        The differences that fine-tuning makes on purpose, in words.
    """
    refused, allowed, fixes = [], [], []
    for setting, value in changed_settings(theirs, family):
        where = f" (backbone.{setting.ours})" if setting.ours else ""
        line = f"{setting.theirs}{where}: {value!r} in config.json, {setting.value!r} here"
        if setting.ours in ours.changed_by_finetuning:
            allowed.append(line)
            continue
        refused.append(line)
        if setting.ours:
            fixes.append(f"{setting.ours}: {value}")
    refused += [
        f"{key}: {theirs[key]!r} in config.json, which toto does not implement"
        for key in ("quantization_config", "auto_map")
        if theirs.get(key) is not None
    ]
    ids = {"pad_token_id": PAD_ID, "bos_token_id": VIDEO_START_ID, "eos_token_id": END_ID}
    refused += [
        f"{key}: {theirs[key]!r} in config.json, {id_!r} here"
        for key, id_ in ids.items()
        if theirs.get(key) not in (None, id_)
    ]
    if refused:
        fix = f"Write backbone: {{{', '.join(fixes)}}} in the recipe, or take" if fixes else "Take"
        raise UserError(
            f"{folder} describes another function than this recipe's backbone, in which its "
            "weights would compute something else:\n  "
            + "\n  ".join(refused)
            + f"\n{fix} another model"
        )
    return allowed


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Those of model.safetensors, or of the shards that its index names."""
    index = folder / INDEX
    names = [WEIGHTS]
    if index.is_file() and not (folder / WEIGHTS).is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted({Path(name).name for name in weight_map.values()})
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
        ) as error:  # fmt: skip
            raise CheckpointError(f"{index} cannot be read: {error!r}. Copy it again") from error
    elif not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise CheckpointError(
            f"no {folder / WEIGHTS}"
            + (
                f". {pickled[0]} is a pickle, which toto does not open. Write safetensors with "
                f"transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r})"
                f".save_pretrained({str(folder)!r})"
                if pickled
                else ". Name the folder that save_pretrained or `toto export hf` wrote"
            )
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
    return tensors


def read_record(folder: Path) -> ModelRecord | None:
    """Return what toto wrote of a directory's model; None where toto did not write it.

    Raises:
        CheckpointError: toto.json is there and cannot be read.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ModelRecord(**{field.name: raw[field.name] for field in fields(ModelRecord)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
