"""Where datasets lie: folders, and addresses, which have `://` in them and which fsspec opens."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import braceexpand
import fsspec

from toto.data.config import Paths, listed
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import TraceConfig

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


def filesystem(
    address: str, stall_seconds: float, redirect_hosts: Sequence[str] = ()
) -> tuple[Any, str]:
    """Return the file system of fsspec for an address, and the path in it.

    Args:
        address: with a scheme.
        stall_seconds: after which a silent HTTP connection is closed.
        redirect_hosts: hosts that an HTTP server may redirect to, besides itself.

    Raises:
        DataError: fsspec does not know the scheme, or the package for it is missing.
    """
    options: dict[str, Any] = {}
    try:
        if address.split("://")[0] in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {
                # Without this, aiohttp ends any fetch after five minutes, however well it goes.
                "timeout": aiohttp.ClientTimeout(total=None, sock_read=stall_seconds),
                # A few compressed kilobytes can unpack to gigabytes: take what is sent as it is.
                "headers": {"Accept-Encoding": "identity"},
                "auto_decompress": False,
                "trace_configs": [_redirect_guard(redirect_hosts)],
            }
        return fsspec.core.url_to_fs(address, **options)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{address} cannot be opened: {error}. HTTP needs: pip install 'toto[remote]'; "
            "an object store needs its fsspec package, such as s3fs or gcsfs"
        ) from error


def _redirect_guard(allowed: Sequence[str]) -> TraceConfig:
    """Return a hook of aiohttp that refuses redirects to other hosts before they are followed.

    A server could otherwise make this machine ask any address that it can reach, such as a
    cloud's metadata service.
    """
    import aiohttp

    async def check(session: object, context: object, parameters: Any) -> None:
        headers = parameters.response.headers
        target = urljoin(str(parameters.url), headers.get("Location") or headers.get("URI") or "")
        source, host = urlsplit(str(parameters.url)).hostname, urlsplit(target).hostname
        if host != source and host not in allowed:
            raise DataError(
                f"{source} redirects to another host, {host}. If you trust it, add it to "
                "data.cache.redirect_hosts"
            )

    guard = aiohttp.TraceConfig()
    guard.on_request_redirect.append(check)
    return guard


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
