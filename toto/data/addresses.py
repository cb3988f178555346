"""Where datasets lie: folders, and addresses, which have `://` in them and which fsspec opens."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import Any

import braceexpand
import fsspec

from toto.data.config import Paths, listed
from toto.errors import DataError

__all__ = ["expand", "filesystem", "is_remote", "place", "spelled_out"]


def is_remote(address: str | Path) -> bool:
    """Whether this is an address rather than a path of this machine."""
    return isinstance(address, str) and "://" in address


def place(root: str, path: str) -> str:
    """`path` relative to `root`; an address or an absolute path stands for itself."""
    if is_remote(path):
        return path
    if is_remote(root):
        return path if Path(path).is_absolute() else f"{root.rstrip('/')}/{path}"
    return str(Path(root) / path)


def filesystem(address: str, stall_seconds: float) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path in it.

    Args:
        address: with a scheme.
        stall_seconds: after which a silent HTTP connection is closed.

    Raises:
        DataError: fsspec does not know the scheme, or lacks the package for it.
    """
    options: dict[str, Any] = {}
    try:
        if address.split("://")[0] in ("http", "https"):
            import aiohttp

            # Without this, aiohttp ends any fetch after five minutes, however well it goes.
            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(total=None, sock_read=stall_seconds)
            }
        return fsspec.core.url_to_fs(address, **options)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{address} cannot be opened: {error}. HTTP needs: pip install 'toto[remote]'; "
            "an object store needs its fsspec package, such as s3fs or gcsfs"
        ) from error


def expand(paths: Paths, root: str, stall_seconds: float) -> list[str]:
    """The folders or addresses that a source names, in order.

    A list gives its entries one after the other; `{00..03}` and `{a,b}` give one each; then `*`
    gives the names that match, sorted. Other characters stand for themselves.

    Raises:
        DataError: a pattern matches nothing, or its place does not answer.
    """
    found: list[str] = []
    for name in spelled_out(paths):
        address = place(root, name)
        found += _matches(address, stall_seconds) if "*" in name else [address]
    return found


def spelled_out(paths: Paths) -> list[str]:
    """The paths with their ranges and choices written out; `*` stays.

    Raises:
        DataError: a brace without its other one.
    """
    return [name for path in listed(paths) for name in _braces(path)]


def _braces(path: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(path, escape=False))
    except ValueError as error:
        raise DataError(
            f"{path}: {error}. Write ranges as {{00..03}}, choices as {{a,b}}"
        ) from None


def _matches(pattern: str, stall_seconds: float) -> list[str]:
    literal = pattern.replace("[", "[[]").replace("?", "[?]")
    if is_remote(pattern):
        system, path = filesystem(literal, stall_seconds)
        try:
            found = [system.unstrip_protocol(match.rstrip("/")) for match in system.glob(path)]
        # The packages behind fsspec raise errors of their own, which have nothing in common.
        except Exception as error:
            raise DataError(
                f"{pattern} cannot be listed: {error}. Name the datasets one by one: "
                "path: [part-00, part-01]"
            ) from error
    else:
        found = glob(literal)
    if not found:
        raise DataError(
            f"no dataset matches {pattern}. Correct the pattern, or pack datasets there"
        )
    return sorted(set(found))
