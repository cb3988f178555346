"""Where a tokenizer's weights come from, and the files they are kept in.

A file is safetensors; its metadata holds the config of the tokenizer it belongs to, without the
`weights` field, as JSON under `tokenizer`, and under `sha256` a checksum of that text and of all
tensors. Files of other programs and of earlier versions have no checksum.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from toto.checksums import verification_skipped
from toto.errors import CheckpointError
from toto.files import disk_errors, replacing
from toto.registry import Difference, differences, unknown_name
from toto.tensor_names import mixed_prefixes, without_wrappers
from toto.tokenizers.official import official_name, weights_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from toto.tokenizers.base import Tokenizer
    from toto.tokenizers.config import TokenizerConfig

__all__ = [
    "SHIPPED",
    "is_safetensors",
    "load_weights",
    "random_seed",
    "read_identity",
    "read_safetensors",
    "save_checked_weights",
    "save_weights",
    "shipped_weights",
    "tensor_differences",
]

SHIPPED = "toto:"
"""What the names of weights that come with toto begin with."""

RANDOM = "random:"
METADATA_KEY = "tokenizer"
CHECKSUM_KEY = "sha256"
LISTED_DIFFERENCES = 3


def random_seed(source: str | None) -> int | None:
    """SEED of `random:SEED`, or None for every other source of weights."""
    if source is None or not source.startswith(RANDOM):
        return None
    return int(source.removeprefix(RANDOM))


def shipped_weights() -> dict[str, Path]:
    """The weights that come with toto: name (as in `toto:NAME`) → file."""
    folder = Path(str(resources.files("toto.tokenizers.pretrained")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def save_weights(tokenizer: Tokenizer, path: Path) -> None:
    """Write every tensor of the tokenizer, and what it is, to a safetensors file.

    The file appears complete or not at all.

    Raises:
        RunError: the disk is full or refuses.
    """
    with disk_errors(path), replacing(path) as unfinished:
        _write(tokenizer, unfinished)


def save_checked_weights(tokenizer: Tokenizer, path: Path) -> Tokenizer:
    """`save_weights`, but the file appears only once a tokenizer was built from it, strictly.

    Returns:
        The tokenizer that was built from the file.

    Raises:
        RunError: the disk is full or refuses.
    """
    with disk_errors(path), replacing(path) as unfinished:
        _write(tokenizer, unfinished)
        return tokenizer.config.model_copy(update={"weights": str(unfinished)}).build()


def _write(tokenizer: Tokenizer, path: Path) -> None:
    # The layout in memory may be channels last; files are always in the plain order. Copies,
    # because safetensors refuses a tensor that stands under two names, as a tied weight does.
    tensors = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tokenizer.state_dict().items()
    }
    made_for = json.loads(_identity(tokenizer))
    # One entry: safetensors writes several in a random order, and equal weights are equal bytes.
    text = json.dumps(made_for | {CHECKSUM_KEY: _checksum(made_for, tensors)})
    path.write_bytes(save(tensors, metadata={METADATA_KEY: text}))


def _checksum(made_for: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of what a file of weights says and holds."""
    digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(tokenizer: Tokenizer, source: str) -> None:
    """Fill the tokenizer from `toto:NAME`, `official:NAME` or a .safetensors file, strictly.

    A relative path is relative to the working directory. A file that toto wrote names the config
    of its tokenizer, which is compared field by field. Of a file of another program nothing but
    names, shapes and number types can be compared: fields of the config that leave no trace there,
    such as the groups of VQGAN's GroupNorm, are taken as the recipe gives them.

    Raises:
        CheckpointError: there is no such file or name, it belongs to another tokenizer, or its
            content has changed since it was written.
    """
    path = _find(source)
    with _opened(path) as file:
        made_for, checksum = _read_made_for(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if checksum is not None and not verification_skipped(str(path)):
        _require_written_content(made_for or {}, tensors, checksum, path)
    tensors = without_wrappers(tensors, tokenizer.state_dict())
    _check(tokenizer, path, tensors, made_for)
    tokenizer.load_state_dict(tensors)


def read_identity(source: str) -> dict[str, Any]:
    """What the weights say of the tokenizer they belong to: its config without `weights`.

    Args:
        source: as `load_weights` takes it.

    Raises:
        CheckpointError: there is no such file or name, or it does not say.
    """
    path = _find(source)
    with _opened(path) as file:
        identity, _ = _read_made_for(file, path)
    if identity is None:
        raise CheckpointError(
            f"{path} does not say which tokenizer it belongs to. Name a recipe whose tokenizer "
            f"has `weights: {source}` and its sizes"
        )
    return identity


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: the length of its header, then JSON."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False  # the reader of the other format reports it


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        CheckpointError: it cannot be read.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}. Copy or train it again"
        ) from error


def _require_written_content(
    made_for: dict[str, Any], tensors: dict[str, Tensor], checksum: str, path: Path
) -> None:
    """Compare the tensors, and what the file says of them, with the file's own checksum.

    Raises:
        CheckpointError: they are not what was written.
    """
    if _checksum(made_for, tensors) != checksum:
        raise CheckpointError(
            f"the content of {path} is not what was written (sha256 differs). Copy it again, or "
            "train or fetch the tokenizer again"
        )


def _read_made_for(file: Any, path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return what an open file says of its tokenizer, and its checksum; None where it has none."""
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None, None
    try:
        made_for = json.loads(text)
    except (ValueError, RecursionError):
        made_for = None
    if isinstance(made_for, dict):
        checksum = made_for.pop(CHECKSUM_KEY, None)
        return made_for, None if checksum is None else str(checksum)
    raise CheckpointError(
        f"{path} says {text!r} of its tokenizer, which is no config as toto writes it. Give a file "
        "that toto wrote, or save the tensors again without metadata"
    )


def _identity(tokenizer: Tokenizer) -> str:
    return tokenizer.config.model_dump_json(exclude={"weights"})


def _find(source: str) -> Path:
    if source.startswith(SHIPPED):
        name = source.removeprefix(SHIPPED)
        shipped = shipped_weights()
        if name not in shipped:
            raise CheckpointError(unknown_name("shipped weights", name, sorted(shipped)))
        return shipped[name]
    official = official_name(source)
    if official is not None:
        path = weights_path(official)
        if not path.is_file():
            raise CheckpointError(
                f"{source} is not at {path}. Fetch it once: toto weights get {official}"
            )
        return path
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(
            f"no weights at {path.absolute()}. A relative path starts at the working directory, or "
            "at a recipe's own folder where that has the file; "
            f"toto ships {', '.join(SHIPPED + name for name in shipped_weights()) or 'none'}"
        )
    return path


def tensor_differences(tokenizer: Tokenizer, tensors: dict[str, Tensor]) -> str:
    """The first tensors that a file lacks, has too many or in another form; empty if all fit."""
    wanted = {name: _form(tensor) for name, tensor in tokenizer.state_dict().items()}
    found = {name: _form(tensor) for name, tensor in tensors.items()}
    differences = [
        f"{name}: {found.get(name, 'missing')} in the file, {wanted.get(name, 'missing')} wanted"
        for name in [*wanted, *sorted(found.keys() - wanted.keys())]
        if found.get(name) != wanted.get(name)
    ]
    more = len(differences) - LISTED_DIFFERENCES
    return "; ".join(differences[:LISTED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _check(
    tokenizer: Tokenizer, path: Path, tensors: dict[str, Tensor], made_for: dict[str, Any] | None
) -> None:
    changed = [] if made_for is None else _changed_fields(tokenizer.config, made_for)
    lines = [
        f"  {change.field}: {json.dumps(change.theirs)} in the file, "
        f"{json.dumps(change.ours)} in the recipe"
        for change in changed
    ]
    unequal = tensor_differences(tokenizer, tensors)
    if not lines and not unequal:
        return
    if made_for is None:
        lines.append("  it does not say which tokenizer it was made for")
    lines.append(f"  tensors: {unequal or 'all fit'}")
    fix = "Write the file's values in the recipe's tokenizer, or give other weights"
    raise CheckpointError(
        "\n".join([f"{path} holds the weights of another tokenizer:", *lines])
        + f"\n{mixed_prefixes(tensors) or fix}"
    )


def _changed_fields(config: TokenizerConfig, made_for: dict[str, Any]) -> list[Difference]:
    """The differences to what a file says of its tokenizer; fields that it lacks are at default."""
    said = {key: value for key, value in made_for.items() if key != "weights"}
    if said.get("name") != config.registered_name:
        return [Difference("name", said.get("name"), config.registered_name)]
    try:
        theirs = type(config).model_validate(said)
    except ValidationError:
        ours = config.model_dump(mode="json", exclude={"weights"})
        return [
            Difference(field, said.get(field), ours.get(field))
            for field in [*ours, *(said.keys() - ours.keys())]
            if said.get(field) != ours.get(field)
        ]
    return [change for change in differences(theirs, config) if change.field != "weights"]


def _form(tensor: Tensor) -> str:
    """Shape, and what is not plain fp32: `64×3×4×4`, `8 int64`, `4×4 float32 sparse_coo`."""
    words = ["×".join(map(str, tensor.shape)) or "scalar"]
    dense = tensor.layout == torch.strided
    if not dense or tensor.dtype != torch.float32:
        words.append(str(tensor.dtype).removeprefix("torch."))
    if not dense:
        words.append(str(tensor.layout).removeprefix("torch."))
    return " ".join(words)
