"""Ctrl-C and SIGTERM as a request that the loop honours between two steps."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEARD = b"\nstopping: this step is finished and saved; the same signal again ends it at once\n"


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; the next one acts as usual.

    Python delivers signals to the main thread; in any other nothing is installed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._owner = os.getpid()
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a forked loader process hears the terminal's Ctrl-C too; the run ends it
        self.requested = True
        self._restore()
        os.write(2, _HEARD)  # print is not safe inside a handler

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
