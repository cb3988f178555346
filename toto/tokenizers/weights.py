"""Where a tokenizer's weights come from, and the files they are kept in.

A file is safetensors; its metadata holds the config of the tokenizer it belongs to, without the
`weights` field, as JSON under `tokenizer`.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from toto.errors import CheckpointError
from toto.files import disk_errors, replacing
from toto.registry import unknown_name
from toto.tokenizers.official import official_name, weights_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from toto.tokenizers.base import Tokenizer

__all__ = [
    "SHIPPED",
    "load_weights",
    "random_seed",
    "read_identity",
    "save_checked_weights",
    "save_weights",
    "shipped_weights",
    "tensor_differences",
]

SHIPPED = "toto:"
"""What the names of weights that come with toto begin with."""

RANDOM = "random:"
METADATA_KEY = "tokenizer"
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
    path.write_bytes(save(tensors, metadata={METADATA_KEY: _identity(tokenizer)}))


def load_weights(tokenizer: Tokenizer, source: str) -> None:
    """Fill the tokenizer from `toto:NAME`, `official:NAME` or a .safetensors file, strictly.

    A relative path is relative to the working directory.

    Raises:
        CheckpointError: there is no such file or name, or it belongs to another tokenizer.
    """
    path = _find(source)
    with _opened(path) as file:
        made_for = _read_made_for(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
        identity = _read_made_for(file, path)
    if identity is None:
        raise CheckpointError(
            f"{path} does not say which tokenizer it belongs to. Name a recipe whose tokenizer "
            f"has `weights: {source}` and its sizes"
        )
    return identity


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


def _read_made_for(file: Any, path: Path) -> dict[str, Any] | None:
    """What an open file says of the tokenizer it belongs to, or None."""
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        made_for = json.loads(text)
    except ValueError:
        made_for = None
    if isinstance(made_for, dict):
        return made_for
    raise CheckpointError(
        f"{path} says {text!r} of its tokenizer, which is no config as toto writes it. Give a file "
        "that toto wrote, or write the tensors anew without metadata"
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
    differences = tensor_differences(tokenizer, tensors)
    identity = _identity(tokenizer)
    if made_for in (None, json.loads(identity)) and not differences:
        return
    theirs = "a tokenizer that it does not name" if made_for is None else json.dumps(made_for)
    raise CheckpointError(
        f"{path} holds the weights of another tokenizer. It was made for {theirs}, this one is "
        f"{identity}. "
        f"{differences or 'all tensors fit'}. Write the file's sizes in the recipe, or give other "
        "weights"
    )


def _form(tensor: Tensor) -> str:
    """Shape, and what is not plain fp32: `64×3×4×4`, `8 int64`, `4×4 float32 sparse_coo`."""
    words = ["×".join(map(str, tensor.shape)) or "scalar"]
    dense = tensor.layout == torch.strided
    if not dense or tensor.dtype != torch.float32:
        words.append(str(tensor.dtype).removeprefix("torch."))
    if not dense:
        words.append(str(tensor.layout).removeprefix("torch."))
    return " ".join(words)
