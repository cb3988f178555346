"""Text from elsewhere neither acts on a terminal nor stops the program that prints it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto.analysis.page import write_page
from toto.terminal import one_line, plain

# An escape sequence, a window title, a carriage return, C1's CSI, a bidirectional override.
NASTY = "a\x1b[31mred\x1b]0;title\x07\rback\x9b2J\u202egnp.exe\u2066\udcff\u2028end"
DANGEROUS = "\x1b\x07\r\x9b\u202e\u2066\udcff\u2028"
TOTO = [sys.executable, "-m", "toto.cli"]


def test_what_a_terminal_acts_on_is_shown_as_an_escape():
    shown = plain(NASTY)
    assert not set(shown) & set(DANGEROUS)
    assert shown.startswith(r"a\x1b[31mred\x1b]0;title\x07\rback\x9b2J\u202egnp")
    assert r"\xff" in shown  # the byte that the file name has
    assert plain("two\nlines\tand a tab: é 字 🎞") == "two\nlines\tand a tab: é 字 🎞"
    assert one_line("two\nlines\t") == r"two\nlines\t"


@given(st.text())
def test_any_text_becomes_printable_and_encodable(text):
    shown = plain(text)
    shown.encode()
    assert plain(shown) == shown
    assert not any(char < " " and char not in "\n\t" for char in shown)


def toto(*arguments: object, env: dict[str, str] | None = None, **streams):
    return subprocess.run(
        [*TOTO, *map(os.fsencode, map(str, arguments))],
        env=os.environ | {"COLUMNS": "200"} | (env or {}),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
    )


def test_an_error_message_shows_control_characters_and_sends_none():
    done = toto("show", NASTY)
    assert done.returncode == 2
    assert plain(NASTY).split("\n")[0].encode() in done.stderr
    assert not set(done.stderr.decode()) & set(DANGEROUS)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_encoding_that_lacks_a_character_raises_nothing(encoding):
    done = toto("plan", "quickstart", env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    done.stdout.decode(encoding)
    done = toto("show", "字\udcff", env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 2
    assert rb"\u5b57\xff" in done.stderr


def test_a_pipe_whose_reader_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = toto("list", "recipes", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_an_output_whose_disk_is_full_is_reported_on_the_other():
    with open("/dev/full", "wb") as full:
        done = toto("list", "recipes", stdout=full)
    assert done.stderr.startswith(b"standard output cannot be written any more, and is lost:")
    assert b"Traceback" not in done.stderr


def test_closed_descriptors_are_not_taken_by_files():
    program = (
        "import os, sys\n"
        "os.close(1); os.close(2); sys.stdout = sys.stderr = None\n"
        "from toto.terminal import guarded_output\n"
        "with guarded_output():\n"
        "    print('lost', flush=True)\n"
        "    assert os.open(os.devnull, os.O_RDONLY) > 2\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


UNKNOWN = """
import sys
from toto.cli import main
def fail():
    raise {error}
main.app.command("fail")(fail)
sys.argv = ["toto", "fail"]
main.main()
"""


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("BrokenPipeError(32, 'of a socket')", b"BrokenPipeError"),  # typer: exit 1, silently
        ("EOFError('cut short')", b"EOFError: cut short"),  # typer: "Aborted."
        ("ValueError('\\x1b[31m')", rb"ValueError: \x1b[31m"),
    ],
)
def test_an_unknown_error_has_a_traceback_that_is_safe_to_show(error, shown):
    program = [sys.executable, "-c", UNKNOWN.format(error=error)]
    done = subprocess.run(program, capture_output=True)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert shown in done.stderr
    assert b"\x1b" not in done.stderr


def test_ctrl_c_ends_any_command_with_130():
    program = [sys.executable, "-c", UNKNOWN.format(error="KeyboardInterrupt")]
    done = subprocess.run(program, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_log_line_shows_control_characters():
    program = (
        "import logging\n"
        "from toto.terminal import guarded_output\n"
        "with guarded_output():\n"
        "    logging.getLogger('toto').warning('%s cannot be decoded', 'a\\x1b[2J.png')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.stderr == b"a\\x1b[2J.png cannot be decoded\n"


def test_a_page_shows_control_characters(tmp_path):
    from jinja2 import DictLoader

    from toto.analysis import page

    loader = DictLoader({"t.html": "<title>{{ title }}</title>"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "PackageLoader", lambda *args: loader)
        write_page(tmp_path / "a.html", "t.html", {"title": NASTY + "<b>"})
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert not set(text) & set(DANGEROUS)
    assert "&lt;b&gt;" in text
