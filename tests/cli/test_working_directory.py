"""The working directory may be a stranger's: nothing of it is run that the user did not name."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

import pytest
from toto.cli.main import main

from toto.jobs import ablate, launcher
from toto.jobs.commits import commit_of

MODULES = ("typer", "rich", "yaml", "queue", "toto")


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A folder with files that are named like libraries; each leaves a trace when it is run."""
    # Set by any command that ran in this process before.
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in MODULES:
        trace = f"open({str(tmp_path / 'RUN')!r}, 'a').write({name!r})\n"
        (tmp_path / f"{name}.py").write_text(trace)
    return tmp_path


def assert_untouched(folder):
    assert not (folder / "RUN").exists(), (folder / "RUN").read_text()


def test_the_files_are_run_where_python_looks_into_the_folder(strange):
    subprocess.run([sys.executable, "-c", "import queue"], cwd=strange, check=True)
    assert (strange / "RUN").read_text() == "queue"


def test_python_m_imports_nothing_from_the_working_directory(strange):
    (strange / "toto.py").unlink()  # Python itself has imported `toto` before toto can say no
    words = ["-m", "toto.cli", "list", "heads"]
    subprocess.run([sys.executable, *words], cwd=strange, check=True, capture_output=True)
    assert_untouched(strange)


def test_ranks_import_nothing_from_the_working_directory(strange, monkeypatch):
    monkeypatch.chdir(strange)
    monkeypatch.setattr(sys, "argv", ["toto", "list", "heads"])
    assert launcher.launched(2)
    assert_untouched(strange)


def test_steps_of_ablate_import_nothing_from_the_working_directory(strange, monkeypatch):
    monkeypatch.chdir(strange)
    ablate._toto(["list", "heads"])
    assert_untouched(strange)


def test_workers_of_a_command_import_nothing_from_the_working_directory(strange, monkeypatch):
    """They start as `python -c`, which looks into the working directory first."""
    monkeypatch.setattr(sys, "argv", ["toto", "list", "heads"])
    with mock.patch.dict(os.environ):
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        subprocess.run([sys.executable, "-c", "import queue"], cwd=strange, check=True)
    assert_untouched(strange)


PROGRAMS = {
    "core.fsmonitor": "{}",
    "core.hooksPath": "hooks",
    "filter.own.clean": "{}; cat",
    "filter.own.required": "true",
    "filter.a=b.process": "{}",
}


@pytest.fixture
def checkout(tmp_path):
    """A repository whose configuration names programs for `git status` to run."""

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("one\n")
    (tmp_path / ".gitattributes").write_text("a.txt filter=own\nb.txt filter=a=b\n")
    git("add", ".")
    git("commit", "-qm", "first")
    trace = tmp_path / ".git/trace"
    trace.write_text(f"#!/bin/sh\necho $0 >> {tmp_path}/RUN\n")
    trace.chmod(0o755)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/post-index-change").symlink_to(trace)
    for name, value in PROGRAMS.items():
        git("config", name, value.format(trace))
    return tmp_path


def test_the_programs_are_run_by_git_status_itself(checkout):
    os.utime(checkout / "a.txt", (1, 1))  # so that git has to look into the file
    subprocess.run(["git", "status"], cwd=checkout, check=False, capture_output=True)
    assert (checkout / "RUN").exists()


@pytest.mark.parametrize("changed", [False, True])
def test_no_program_of_a_checkout_is_run_to_know_its_commit(checkout, changed):
    for name in ("a.txt", "b.txt"):
        (checkout / name).write_text("two\n" if changed else "one\n")
        os.utime(checkout / name, (1, 1))
    commit = commit_of(checkout)
    assert not (checkout / "RUN").exists(), (checkout / "RUN").read_text()
    assert commit is not None
    assert commit.folder == str(checkout)
    assert commit.dirty is changed
