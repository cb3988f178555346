"""Run `toto` as a user does, on the tiny datasets."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from toto.cli.main import main

from toto.recipe.yaml_reader import dump_yaml

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def write_recipe(folder: Path, recipe: dict, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(dump_yaml(recipe))
    return path


@dataclass(frozen=True)
class Outcome:
    stdout: str
    stderr: str


def toto(*arguments: object, cwd: Path, code: int = 0) -> Outcome:
    """Run the command in this process, as `toto` would, and check its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", ["toto", *map(str, arguments)]),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    outcome = Outcome(out.getvalue(), err.getvalue())
    assert (stop.value.code or 0) == code, f"{stop.value.code}\n{outcome.stdout}\n{outcome.stderr}"
    return outcome


def toto_process(
    *arguments: object, cwd: Path, code: int = 0, env: Mapping[str, str] = ENVIRONMENT
) -> Outcome:
    """The same in a process of its own; nothing that toto reports has a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "toto.cli", *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return Outcome(done.stdout, done.stderr)


def start_toto(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """In a process group of its own, which a test can signal as a scheduler would."""
    return subprocess.Popen(
        [sys.executable, "-m", "toto.cli", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def newest(run: Path, evaluation: str) -> Path:
    """Return the folder under RUN/eval that an evaluation wrote last."""
    return max(run.glob(f"eval/{evaluation}-*"), key=lambda path: path.stat().st_mtime_ns)
