"""What reaches a terminal, a pipe or a log: text that can neither act on it nor stop the program.

Text comes from file names, recipes and error messages of other libraries. `plain` makes it safe to
show; `guarded_output` makes writing it safe.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import unicodedata
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "guarded_output",
    "is_stdout_lost",
    "make_console",
    "one_line",
    "plain",
    "print_lines",
    "report_unexpected",
]

# Control, format (bidirectional overrides, zero width), surrogate, line and paragraph separator.
_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# The last two are format characters that Persian, Indic scripts and emoji are written with.
_KEPT = "\n\t\u200c\u200d"
# The reader of a pipe has gone, or the terminal has.
_NO_READER = (errno.EPIPE, errno.EIO)


def plain(text: str) -> str:
    r"""Return the text with every character that a terminal or a browser acts on as an escape.

    Those are escape sequences, carriage returns and other control characters, bidirectional
    overrides, line separators, and the surrogates that stand for undecodable bytes of a file name.
    A newline and a tab stay.
    """
    return text.translate(_ESCAPES)


def one_line(text: str) -> str:
    r"""Return the text as `plain` does, with "\n" and "\t" as escapes too: a cell of a table."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


class _Escapes(dict[int, str]):
    """What `str.translate` puts in the place of each character; learned as characters come up."""

    def __missing__(self, number: int) -> str:
        self[number] = shown = _shown(chr(number))
        return shown


def _shown(char: str) -> str:
    if char in _KEPT or unicodedata.category(char) not in _UNSAFE:
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:  # an undecodable byte, as os.fsdecode gives it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


_ESCAPES = _Escapes()


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: no markup, no emoji names, no line breaks."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_lines(console: Console, text: str, *, label: str = "") -> None:
    """Print a message, made safe by `plain`.

    Args:
        console: where to.
        text: one line or several.
        label: printed in front of it, in red.
    """
    shown = Text.assemble((f"{label}: ", "bold red") if label else "", plain(text))
    console.print(shown, soft_wrap=True)


def report_unexpected(error: BaseException) -> None:
    """Print the traceback of an error that toto does not know, to standard error."""
    sys.stderr.write(plain("".join(traceback.format_exception(error))))
    sys.stderr.flush()


@contextmanager
def guarded_output() -> Iterator[None]:
    """Let standard output and error raise nothing, and logs and warnings show text that is safe.

    What the encoding lacks is written as an escape. Once nothing reads an output any more (a closed
    pipe, a dead terminal), or its disk is full, what is written there is lost, and the program
    continues; only the second is reported, on the other output.
    """
    _open_standard_descriptors()
    formatter = logging.lastResort.formatter if logging.lastResort else None
    before = sys.stdout, sys.stderr, warnings.formatwarning
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PlainFormatter())
    warnings.formatwarning = lambda *args, **kwargs: plain(before[2](*args, **kwargs))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr, warnings.formatwarning = before
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(formatter)


def is_stdout_lost() -> bool:
    """Return whether nothing reads standard output any more, for commands that do nothing else."""
    return isinstance(sys.stdout, _Output) and sys.stdout.is_lost


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Output:
    """A text stream that loses what cannot be written instead of raising; else like its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_lost = False
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        """Connect the stream's descriptor to nothing: its buffer, and C libraries, write too."""
        self.is_lost = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)
        if error.errno not in _NO_READER:
            other = sys.stderr if self is sys.stdout else sys.stdout
            name = "standard output" if self is sys.stdout else "standard error"
            other.write(f"{name} cannot be written any more, and is lost: {error}\n")


def _open_standard_descriptors() -> None:
    """Give a program that was started with closed outputs (`>&-`) ones that lead nowhere.

    The next file that is opened would otherwise get the number 1 or 2, and with it the messages.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            while os.open(os.devnull, os.O_RDWR) < descriptor:
                continue  # a lower number that is closed too; it stays open for the same reason
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
