"""`toto weights get`: published weights, fetched once, held to their digest, and converted."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.addresses import is_remote
from toto.data.config import CacheConfig
from toto.data.fetch import Remote, TooLongError
from toto.errors import CheckpointError, DataError, UserError
from toto.files import disk_errors, require_writable, resumed_folder, sole_writer
from toto.jobs.console import progress_bar, say
from toto.jobs.convert import save_converted
from toto.registry import unknown_name
from toto.tokenizers.config import TOKENIZERS
from toto.tokenizers.convert import convert
from toto.tokenizers.official import (
    OFFICIAL,
    PREFIX,
    Received,
    read_record,
    record_path,
    weights_path,
    write_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.tokenizers.config import TokenizerConfig
    from toto.tokenizers.convert import Converted
    from toto.tokenizers.official import OfficialFile

__all__ = ["get_weights"]

# Somebody waits for the outcome: an address that does not answer is said within seconds.
FETCHING = CacheConfig(retries=2)
LARGEST_BYTES = 4 * 2**30
"""No published file has a quarter of this."""


def get_weights(name: str, *, source: str | None) -> None:
    """Fetch and convert published weights, unless they are here and no source is given.

    Args:
        name: a key of OFFICIAL.
        source: instead of the published addresses: the address or path of a folder with the
            files, or of the file itself where there is only one.

    Raises:
        UserError: an unknown name.
        DataError: a file does not come, or is not there.
        CheckpointError: a file differs from the one received before, or is not what it should be.
        RunError: the disk is full or refuses.
    """
    if name not in OFFICIAL:
        raise UserError(unknown_name("official weights", name, sorted(OFFICIAL)))
    path = weights_path(name)
    if source is None and path.is_file():
        say(f"{path} is here already. To make it anew, remove it, or give --from")
        return
    before = read_record(name)
    with sole_writer(path):
        require_writable(path, "Set TOTO_HOME to a folder of yours")
        _bring_all(name, source, path, before)


def _bring_all(name: str, source: str | None, path: Path, before: dict[str, Received]) -> None:
    """Bring the files of published weights and convert them into `path`."""
    with _scratch_folder(path) as folder:
        files, received = [], {}
        for file in OFFICIAL[name].files:
            local, origin = _bring(name, file, source, folder)
            received[file.name] = _receive(local, origin)
            _require_same(name, received[file.name], before.get(file.name))
            files.append(local)
        converted = _convert(name, files, [of.source for of in received.values()])
        with disk_errors(path):
            write_record(name, received | before)
        save_converted(converted, path, weights=f"{PREFIX}{name}")


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """Make the folder that files are fetched into; one that a killed process left is removed."""
    scratch = path.with_name(f".fetching-{path.stem}")
    with disk_errors(path):
        if resumed_folder(scratch):
            shutil.rmtree(scratch)
            scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _bring(name: str, file: OfficialFile, source: str | None, folder: Path) -> tuple[Path, str]:
    """A published file on this machine, and where it came from; fetched ones lie in `folder`."""
    files = OFFICIAL[name].files
    if source is None:
        return _fetch(name, file, file.address, folder)
    if is_remote(source):
        is_file = len(files) == 1 and not source.endswith("/")
        address = source if is_file else f"{source.rstrip('/')}/{file.name}"
        return _fetch(name, file, address, folder)
    path = Path(source).expanduser().absolute()
    if len(files) > 1 and path.is_file():
        raise DataError(
            f"--from {source} is one file, and {name} is made of {_named(files)}. Give the folder "
            "that holds them"
        )
    path = path / file.name if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"no file {path}. Correct --from")
    return path, str(path)


def _fetch(name: str, file: OfficialFile, address: str, folder: Path) -> tuple[Path, str]:
    files = OFFICIAL[name].files
    what = "FILE" if len(files) == 1 else f"FOLDER, which holds {_named(files)}"
    mend = f"Or bring it here by other means: toto weights get {name} --from {what}"
    parent, _, last = address.rpartition("/")
    local = folder / file.name
    try:
        with progress_bar(f"fetching {address}", "bytes") as progress:
            Remote(parent, FETCHING, mend).fetch(
                last, local, limit=LARGEST_BYTES, progress=progress
            )
    except FileNotFoundError as error:
        raise DataError(f"{address}: the server has no such file. {mend}") from error
    except TooLongError as error:
        raise DataError(f"{address} is not {file.name}: {error}. {mend}") from error
    return local, address


def _named(files: Sequence[OfficialFile]) -> str:
    return " and ".join(file.name for file in files)


def _receive(path: Path, source: str) -> Received:
    """What this file is, said and to be recorded."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Correct --from") from error
    say(f"{source}: {size:,} bytes, SHA-256 {digest}")
    return Received(digest, size, source)


def _require_same(name: str, now: Received, before: Received | None) -> None:
    if before is None or before.sha256 == now.sha256:
        return
    record = record_path(name)
    raise CheckpointError(
        f"{now.source} is not the file that was received before. Its SHA-256 is {now.sha256}; that "
        f"of {before.source} was {before.sha256}, as {record} says. To take the new one all the "
        f"same, remove {record} and run the command again"
    )


def _convert(name: str, files: Sequence[Path], sources: Sequence[str]) -> Converted:
    """The tokenizer of the files, which has to be the one of that name."""
    try:
        converted = convert(files)
    except CheckpointError as error:
        # A fetched file is removed, so that its path alone would tell little.
        raise CheckpointError(f"{name} from {' and '.join(sources)}: {error}") from error
    official = OFFICIAL[name]
    wanted = TOKENIZERS.get(official.tokenizer)(**official.sizes)
    if converted.tokenizer.config != wanted:
        raise CheckpointError(
            f"{' and '.join(sources)}: {_sizes(converted.tokenizer.config)}, where {name} is "
            f"{_sizes(wanted)}. Give its own files, or `toto tokenizer convert` these"
        )
    return converted


def _sizes(config: TokenizerConfig) -> str:
    return config.model_dump_json(exclude={"weights"})
