"""Checkpoints that describe themselves: `RUN/checkpoints/step-00000500/`.

    model.safetensors                       the trainable part, by parameter name
    optimizer-00000-of-00002.safetensors    rank 0's share: "<parameter>.<slot>", see optim.py
    optimizer-00001-of-00002.safetensors    rank 1's; together they are the whole optimizer
    checkpoint.json                         CheckpointMeta

A checkpoint is written under a temporary name, synced and renamed (checkpoint_writer.py), so a
folder of that name is whole. `checkpoints/latest` holds the name of the one to go on from; it is
replaced after that. Which rank wrote what does not matter for reading.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from toto.checksums import sha256_of, verification_skipped
from toto.errors import CheckpointError
from toto.files import PARTIAL
from toto.registry import Config
from toto.training.checkpoint_folder import FOLDER, META_FILE, complete_checkpoints
from toto.training.engine import EngineState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = [
    "MODEL_FILE",
    "CheckpointMeta",
    "FileRecord",
    "check_tensors",
    "discard",
    "find_checkpoint",
    "load_state",
    "load_weights",
    "read_meta",
    "remove_after",
    "remove_partial",
    "tensor_names",
    "unshared_tensors",
    "verify",
    "verify_weights",
]

MODEL_FILE = "model.safetensors"
LATEST = "latest"
NAMES_SHOWN = 5
OLD = f".old{PARTIAL}"


class FileRecord(Config):
    """A file beside checkpoint.json.

    Attributes:
        size: in bytes.
        sha256: of its content, in hexadecimal; None in format 1, which wrote the size alone.
    """

    size: NonNegativeInt
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, value: Any) -> Any:
        return {"size": value} if isinstance(value, int) else value

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of a file as it is now.

        Raises:
            OSError: the file cannot be read.
        """
        return cls(size=path.stat().st_size, sha256=sha256_of(path))


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
        files: the files beside this one: the model's and the optimizer's.
    """

    identity_fields: ClassVar[frozenset[str]] = frozenset(
        {"format_version", "target_tokenizer", "data", "files"}
    )

    format_version: Literal[1, 2] = 2
    step: NonNegativeInt
    tokens: NonNegativeInt
    seconds: NonNegativeFloat
    recipe: dict[str, Any]
    tokenizer: str | None
    target_tokenizer: str | None = None
    data: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str | int]
    files: dict[str, FileRecord] = Field(default_factory=dict)


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


def remove_after(checkpoint: Path) -> None:
    """Remove what a run left beyond the checkpoint it goes on from: later and half-written ones."""
    remove_partial(checkpoint.parent)
    for other in complete_checkpoints(checkpoint.parent):
        if other.name > checkpoint.name:
            discard(other)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half written in a `checkpoints/` folder."""
    for leftover in folder.glob(f"*{PARTIAL}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=leftover.name.endswith(OLD))
        else:
            leftover.unlink()


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; at no moment does half of one look whole.

    NFS does not let go of a file that another process reads: what stays has the name of something
    half, and `remove_partial` tries again when the run goes on.
    """
    going = checkpoint.with_name(checkpoint.name + OLD)
    checkpoint.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def read_meta(checkpoint: Path) -> CheckpointMeta:
    """What a checkpoint says of itself; its files are checked for presence and size.

    Raises:
        CheckpointError: a file that is missing, cut off or of another version of the format.
    """
    return _checked(checkpoint, _with_sizes)


def verify(checkpoint: Path) -> None:
    """Read every file of a checkpoint and compare it with the checksum it was written with.

    Once per process and file; files of format 1 have a size alone. With `TOTO_SKIP_CHECKSUMS` set
    sizes alone are compared, and a warning says so.

    Raises:
        CheckpointError: see `read_meta`; or a file whose content has changed. It names the file
            and the newest other checkpoint that is as it was written.
    """
    _checked(checkpoint, _with_checksums)


def verify_weights(checkpoint: Path) -> CheckpointMeta:
    """Return `read_meta` of a checkpoint whose model file is as it was written; see `verify`.

    What reads a model but no optimizer state need not hash the latter, which is twice as large.

    Raises:
        CheckpointError: as `verify`.
    """
    return _checked(checkpoint, _with_weights)


def load_state(checkpoint: Path) -> EngineState:
    """Return the weights and the whole optimizer state, on the CPU, whatever ranks wrote them.

    This checks sizes alone: a run of many ranks lets one of them `verify` the files first.

    Raises:
        CheckpointError: see `read_meta`; or a file that is no safetensors file.
    """
    meta = read_meta(checkpoint)
    model = _load(checkpoint, MODEL_FILE)
    optimizer: dict[str, Tensor] = {}
    for name in meta.files:
        if name != MODEL_FILE:
            optimizer |= _load(checkpoint, name)
    return EngineState(meta.step, model, optimizer)


def load_weights(
    checkpoint: Path, module: nn.Module, *, beside: str | None = None
) -> CheckpointMeta:
    """Copy a checkpoint's weights into `module`, strictly, after `verify_weights`.

    Args:
        checkpoint: whose weights.
        module: what they are of.
        beside: what the names of other weights begin with, which are left out.

    Raises:
        CheckpointError: see `verify`; or names or shapes differ, each one named.
    """
    meta = verify_weights(checkpoint)
    found = _load(checkpoint, MODEL_FILE)
    if beside is not None:
        found = {name: found[name] for name in found if not name.startswith(beside)}
    check_tensors(unshared_tensors(module), found, f"weights of {checkpoint}")
    # What is shared under a second name is filled through its first.
    module.load_state_dict(found, strict=False)
    return meta


def tensor_names(checkpoint: Path, *, prefix: str) -> list[str]:
    """Return the names of a checkpoint's weights that begin with `prefix`, sorted.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    try:
        with safe_open(checkpoint / MODEL_FILE, framework="pt") as file:
            return sorted(name for name in file.keys() if name.startswith(prefix))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        fault = f"{MODEL_FILE} cannot be read: {error}"
        raise CheckpointError(_broken(checkpoint, fault, _with_sizes)) from error


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


class _FaultError(Exception):
    """What is wrong with a checkpoint's files."""


def _checked(checkpoint: Path, check: Callable[[Path], CheckpointMeta]) -> CheckpointMeta:
    try:
        return check(checkpoint)
    except _FaultError as fault:
        raise CheckpointError(_broken(checkpoint, str(fault), check)) from fault


def _with_sizes(checkpoint: Path) -> CheckpointMeta:
    path = checkpoint / META_FILE
    try:
        meta = CheckpointMeta.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise _FaultError(f"it has no {META_FILE}") from error
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _FaultError(f"{META_FILE} is not readable: {where} {first['msg']}") from invalid
    for name, record in meta.files.items():
        file = checkpoint / name
        if not file.is_file():
            raise _FaultError(f"{name} is missing")
        found = file.stat().st_size
        if found != record.size:
            raise _FaultError(f"{name} has {found:,} bytes where {record.size:,} were written")
    return meta


def _with_weights(checkpoint: Path) -> CheckpointMeta:
    meta = _with_sizes(checkpoint)
    model = {name: record for name, record in meta.files.items() if name == MODEL_FILE}
    _require_written_content(checkpoint, model)
    return meta


def _with_checksums(checkpoint: Path) -> CheckpointMeta:
    meta = _with_sizes(checkpoint)
    _require_written_content(checkpoint, meta.files)
    return meta


def _require_written_content(checkpoint: Path, records: Mapping[str, FileRecord]) -> None:
    if verification_skipped(str(checkpoint)):
        return
    for name, record in records.items():
        if record.sha256 is None:  # format 1
            continue
        try:
            found = FileRecord.of(checkpoint / name)
        except OSError as error:
            raise _FaultError(f"{name} cannot be read: {error}") from error
        if found != record:
            raise _FaultError(f"the content of {name} is not what was written (sha256 differs)")


def _load(checkpoint: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(checkpoint / name)
    except (OSError, SafetensorError) as error:
        fault = f"{name} cannot be read: {error}"
        raise CheckpointError(_broken(checkpoint, fault, _with_sizes)) from error


def _broken(checkpoint: Path, fault: str, check: Callable[[Path], CheckpointMeta]) -> str:
    others = [path for path in complete_checkpoints(checkpoint.parent) if path != checkpoint]
    good = next((other for other in reversed(others) if _passes(other, check)), None)
    mend = (
        f"{good} is another of the run; to go on from it remove the broken folder"
        if good
        else "Its run has no other checkpoint"
    )
    return f"the checkpoint {checkpoint} is broken: {fault}. {mend}"


def _passes(checkpoint: Path, check: Callable[[Path], CheckpointMeta]) -> bool:
    try:
        check(checkpoint)
    except _FaultError:
        return False
    return True


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
