"""Checkpoints that describe themselves: `RUN/checkpoints/step-00000500/`.

    model.safetensors       the trainable part, by parameter name
    optimizer.safetensors   "<parameter>.<slot>", see optim.py
    checkpoint.json         CheckpointMeta

A checkpoint is written under a temporary name, synced and renamed, so a folder of that name is
whole. `checkpoints/latest` holds the name of the one to go on from; it is replaced after that.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toto.errors import CheckpointError, RunError
from toto.files import PARTIAL, sync, write_atomic
from toto.registry import Config
from toto.training.engine import EngineState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = [
    "CheckpointMeta",
    "check_tensors",
    "complete_checkpoints",
    "find_checkpoint",
    "load_state",
    "load_weights",
    "read_meta",
    "remove_after",
    "save_checkpoint",
    "unshared_tensors",
]

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
META_FILE = "checkpoint.json"
FOLDER = "checkpoints"
LATEST = "latest"
NAMES_SHOWN = 5


class CheckpointMeta(Config):
    """checkpoint.json: what the tensors beside it are, and what they were made by and for.

    Attributes:
        format_version: of this layout.
        step: optimizer steps done.
        tokens: visual tokens seen.
        seconds: wall time of the run so far, interruptions left out.
        recipe: the resolved recipe as plain JSON.
        tokenizer: fingerprint of the tokenizer that the weights belong to; None without one.
        target_tokenizer: likewise of the one whose codes patch inputs predict; None without one.
        data: fingerprint of each source's training dataset.
        versions: of toto, torch and Python; the machine and its threads.
        files: size in bytes of each file beside this one.
    """

    format_version: Literal[1] = 1
    step: NonNegativeInt
    tokens: NonNegativeInt
    seconds: NonNegativeFloat
    recipe: dict[str, Any]
    tokenizer: str | None
    target_tokenizer: str | None = None
    data: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str | int]
    files: dict[str, NonNegativeInt] = Field(default_factory=dict)


def save_checkpoint(folder: Path, state: EngineState, meta: CheckpointMeta, *, keep: int) -> Path:
    """Save into `folder` (a run's `checkpoints/`) and keep the newest `keep` of them.

    Returns:
        The folder of the new checkpoint.

    Raises:
        RunError: the disk is full or refuses. What was half written is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_partial(folder)
    target = folder / f"step-{meta.step:08d}"
    partial = folder / (target.name + PARTIAL)
    try:
        _write(partial, state, meta)
        if target.exists():  # a save that was killed before it moved `latest`
            shutil.rmtree(target)
        partial.rename(target)
        sync(folder)
        write_atomic(folder / LATEST, target.name + "\n")
    except (OSError, SafetensorError) as error:
        _remove_partial(folder)
        raise RunError(_not_saved(folder, state, meta, error)) from error
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: a run (its latest), a `checkpoints/`, or a checkpoint.

    Raises:
        CheckpointError: nothing there, or nothing complete.
    """
    if (path / META_FILE).is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no run at {path}. {_runs_beside(path)}")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    complete = complete_checkpoints(folder)
    if not complete:
        raise CheckpointError(
            f"{path} has no complete checkpoint: a run writes its first after training.save_every "
            f"steps. Let it run that far. {_runs_beside(path)}"
        )
    latest = folder / LATEST
    if latest.is_file():
        named = folder / latest.read_text(encoding="utf-8").strip()
        if named in complete:
            return named
    return complete[-1]


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a `checkpoints/` folder, oldest first."""
    return sorted(
        path.parent
        for path in folder.glob(f"step-*/{META_FILE}")
        if not path.parent.name.endswith(PARTIAL)
    )


def remove_after(checkpoint: Path) -> None:
    """Remove what a run left beyond the checkpoint it goes on from: later and half-written ones."""
    _remove_partial(checkpoint.parent)
    for other in complete_checkpoints(checkpoint.parent):
        if other.name > checkpoint.name:
            shutil.rmtree(other)


def read_meta(checkpoint: Path) -> CheckpointMeta:
    """What a checkpoint says of itself; its files are checked for presence and size.

    Raises:
        CheckpointError: a file that is missing, cut off or of another version of the format.
    """
    path = checkpoint / META_FILE
    try:
        meta = CheckpointMeta.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        _refuse(checkpoint, f"it has no {META_FILE}")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        _refuse(checkpoint, f"{META_FILE} is not readable: {where} {first['msg']}")
    for name, size in meta.files.items():
        file = checkpoint / name
        if not file.is_file():
            _refuse(checkpoint, f"{name} is missing")
        if file.stat().st_size != size:
            found = file.stat().st_size
            _refuse(checkpoint, f"{name} has {found:,} bytes where {size:,} were written")
    return meta


def load_state(checkpoint: Path) -> EngineState:
    """Weights and optimizer state, on the CPU.

    Raises:
        CheckpointError: see `read_meta`; or a file that is no safetensors file.
    """
    meta = read_meta(checkpoint)
    model = _load(checkpoint, MODEL_FILE)
    return EngineState(meta.step, model, _load(checkpoint, OPTIMIZER_FILE))


def load_weights(checkpoint: Path, module: nn.Module) -> CheckpointMeta:
    """Copy a checkpoint's weights into `module`, strictly.

    Raises:
        CheckpointError: see `read_meta`; or names or shapes differ, each one named.
    """
    meta = read_meta(checkpoint)
    found = _load(checkpoint, MODEL_FILE)
    check_tensors(unshared_tensors(module), found, f"weights of {checkpoint}")
    # What is shared under a second name is filled through its first.
    module.load_state_dict(found, strict=False)
    return meta


def unshared_tensors(module: nn.Module) -> dict[str, Tensor]:
    """`state_dict()` with each tensor under its first name only: safetensors holds no aliases."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors whose names or shapes are not the expected ones.

    Raises:
        CheckpointError: with the first differences of each sort by name.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    sorts = {"missing": missing, "not of this model": unexpected, "of another shape": shapes}
    lines = [
        f"  {len(names)} {sort}: " + ", ".join(names[:NAMES_SHOWN]) + ", …" * (len(names) > 5)
        for sort, names in sorts.items()
        if names
    ]
    if lines:
        raise CheckpointError(
            "\n".join([f"{what} do not fit this model:", *lines])
            + "\nGive the recipe that the checkpoint was trained with, or another checkpoint"
        )


def _write(partial: Path, state: EngineState, meta: CheckpointMeta) -> None:
    partial.mkdir()
    for name, tensors in ((MODEL_FILE, state.model), (OPTIMIZER_FILE, state.optimizer)):
        file = partial / name
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        sync(file)
    sizes = {name: (partial / name).stat().st_size for name in (MODEL_FILE, OPTIMIZER_FILE)}
    whole = meta.model_copy(update={"files": sizes})
    write_atomic(partial / META_FILE, whole.model_dump_json(indent=1) + "\n")


def _remove_partial(folder: Path) -> None:
    for leftover in folder.glob(f"*{PARTIAL}"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _not_saved(folder: Path, state: EngineState, meta: CheckpointMeta, error: Exception) -> str:
    tensors = [*state.model.values(), *state.optimizer.values()]
    needed = sum(tensor.nbytes for tensor in tensors) / 1e6
    free = shutil.disk_usage(folder).free / 1e6
    good = complete_checkpoints(folder)
    stands = (
        f"{good[-1]} stands, and only the steps since are lost"
        if good
        else "there is no earlier checkpoint"
    )
    return (
        f"the checkpoint of step {meta.step} could not be saved in {folder}: {error}. It needs "
        f"{needed:,.1f} MB, the disk has {free:,.1f} MB free; {stands}. Make room, then go on "
        "with --resume"
    )


def _load(checkpoint: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(checkpoint / name)
    except (OSError, SafetensorError) as error:
        _refuse(checkpoint, f"{name} cannot be read: {error}")


def _refuse(checkpoint: Path, what: str) -> NoReturn:
    others = [path for path in complete_checkpoints(checkpoint.parent) if path != checkpoint]
    mend = f"{others[-1]} is another of the run" if others else "Its run has no other checkpoint"
    raise CheckpointError(f"the checkpoint {checkpoint} is broken: {what}. {mend}")


def _runs_beside(path: Path) -> str:
    parent = path.parent
    runs = sorted(
        str(other)
        for other in (parent.iterdir() if parent.is_dir() else ())
        if other != path and complete_checkpoints(other / FOLDER)
    )
    if not runs:
        return "There is no other run beside it; `toto train RECIPE` makes one"
    return "Runs with a checkpoint beside it: " + ", ".join(runs)
