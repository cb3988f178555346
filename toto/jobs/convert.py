"""`toto tokenizer convert`: published weights become one safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.errors import UserError
from toto.files import disk_errors, require_writable, sole_writer
from toto.jobs.console import say
from toto.tokenizers.convert import Converted, convert
from toto.tokenizers.weights import save_checked_weights
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["convert_weights", "save_converted"]

SUFFIX = ".safetensors"


def convert_weights(files: Sequence[Path], out: Path) -> None:
    """Convert published files, and say what they are and how a recipe names them.

    Raises:
        CheckpointError: a file cannot be read without running it, is something else, or its
            tensors are not those of one tokenizer.
        UserError: recipes could not name `out`.
        RunError: the disk is full or refuses.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: recipes name {SUFFIX} files. Write --out {out.stem}{SUFFIX}")
    require_writable(out, "Name another file with --out")
    with sole_writer(out):
        save_converted(convert(files), out, weights=str(out))


def save_converted(converted: Converted, path: Path, *, weights: str) -> None:
    """Write a converted tokenizer to a file that appears once a tokenizer was built from it.

    Args:
        converted: the tokenizer.
        path: of the file; its folder is made.
        weights: how a recipe names the file.

    Raises:
        RunError: the disk is full or refuses.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = save_checked_weights(converted.tokenizer, path)
    config = tokenizer.config
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    say(f"{path}: {config.registered_name}, {count / 1e6:.1f}M parameters")
    for part, tensors in sorted(converted.ignored.items()):
        say(f"  ignored: {part}, {number_of(tensors, 'tensor')}")
    sizes = config.model_dump(mode="json", exclude={"weights"}, exclude_defaults=True)
    fields = ", ".join(f"{key}: {value}" for key, value in (sizes | {"weights": weights}).items())
    say(f"  tokenizer {config.registered_name} {tokenizer.fingerprint()[:12]}")
    say(f"  in a recipe: tokenizer: {{{fields}}}")
