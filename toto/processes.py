"""Child processes: how one ended, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with_parent", "exit_text"]

PR_SET_PDEATHSIG = 1  # man prctl


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process once its parent is gone, however that ended. Linux alone.

    Args:
        parent: the process that started this one; it may be gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def exit_text(exit_code: int) -> str:
    """Return what an exit code says, negative for a signal: "SIGKILL", "exit code 3"."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as the kernel does when memory runs out" if name == "SIGKILL" else name
