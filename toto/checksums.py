"""Checksums of files, computed once per process and file.

Hashing is the whole cost of trusting a file, and a command often needs the same checksum twice: to
verify a model and to record which model it used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SKIP_VARIABLE", "sha256_of", "verification_skipped"]

SKIP_VARIABLE = "TOTO_SKIP_CHECKSUMS"
"""An environment variable, so that it reaches every rank and worker of a command."""

# Two writes within the clock tick of a file system leave the same time, so what has just been
# written is not remembered.
SETTLED_NS = 2 * 10**9

logger = logging.getLogger(__name__)

_known: dict[tuple[str, int, int], str] = {}
_said: set[str] = set()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    It is computed once per process for each path, size and time of last change.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if key not in _known:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
                return digest
            _known[key] = digest
    return _known[key]


def verification_skipped(what: str) -> bool:
    """Return whether the user asked to skip verification, and log what is not verified, once.

    Args:
        what: a file or dataset, for the message.
    """
    if os.environ.get(SKIP_VARIABLE, "0") in ("", "0"):
        return False
    if what not in _said:
        _said.add(what)
        logger.warning("%s is set: the checksums of %s are not verified", SKIP_VARIABLE, what)
    return True
