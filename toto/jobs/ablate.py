"""`toto ablate`: the runs of one of the paper's tables, and the table with what came out."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toto.analysis.evaluations import PROBES, read_probings
from toto.analysis.paper import ablation
from toto.analysis.reproduced import (
    SMALL,
    SMALL_NOTE,
    SMALL_PROBE,
    Filled,
    filled,
    recipe_of,
    results_of,
    table_cells,
)
from toto.errors import CancelledError, RunError, UserError, error_of_code
from toto.files import disk_errors, write_atomic
from toto.jobs.console import say, say_table
from toto.jobs.runs import RUNS, look_at
from toto.recipe.reader import read_recipe
from toto.training.interrupt import WARNINGS, hangup_ignored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import FrameType

    from toto.analysis.paper import Entry, Row

__all__ = ["ablate"]

SMALL_POOLS = ("average", "attention")
SMALL_CACHE_GB = 10  # features of 16 × 16 tokens fit


def ablate(word: str, *, small: bool, only: Sequence[str], gpus: int | None, show: bool) -> None:
    """Train or resume what a table needs, probe it, and print the table.

    Each step is a command of its own, printed before it runs; what is done already is left alone,
    so that the same command goes on after anything that ended it.

    Args:
        word: tokenizers, resolution, pooling, architecture.
        small: the small recipes, on Tiny-ImageNet, instead of the paper's.
        only: recipes of the table to run; all unless given.
        gpus: ranks of each training.
        show: print what there is, and run nothing.

    Raises:
        UserError: no such table, a recipe that is not of it, one that goes on from a run that is
            not done, or the mistake of a step.
        RunError: a step failed.
        StoppedError: a scheduler's signal stopped a training; all is saved.
        CancelledError: Ctrl-C did.
    """
    entry = ablation(word)
    recipes = _recipes(entry, small=small)
    unknown = [name for name in only if name not in recipes]
    if unknown:
        raise UserError(
            f"--only {', '.join(unknown)}: not of {entry.name}. It has {', '.join(recipes)}"
        )
    for recipe in recipes:
        read_recipe(recipe)
    if not show:
        for row in entry.rows:
            name = recipe_of(row, small=small)
            if name is None or (only and name not in only):
                continue
            _require_origin(row, name, small=small)
            _train(name, gpus)
            _probe(RUNS / name, results_of(entry, row, small=small))
    rows = filled(entry, RUNS, small=small)
    _write(entry, rows, small=small)
    _print(entry, rows, small=small)


def _recipes(entry: Entry, *, small: bool) -> list[str]:
    names = (recipe_of(row, small=small) for row in entry.rows)
    return list(dict.fromkeys(name for name in names if name))


def _require_origin(row: Row, name: str, *, small: bool) -> None:
    """Whoever asks for one row alone must have made the run that it goes on from."""
    if row.after is None or _done(RUNS / name):
        return
    origin = f"{row.after}{SMALL}" if small else row.after
    if not _done(RUNS / origin):
        raise UserError(
            f"{name} goes on from {RUNS / origin}, which is not done. Leave --only out, or add "
            f"--only {origin}"
        )


def _train(name: str, gpus: int | None) -> None:
    """Train the recipe unless it is done."""
    run = RUNS / name
    if not _done(run):
        words = ["train", name]
        if run.is_dir():  # one without a checkpoint is resumed from its beginning
            words.append("--resume")
        _toto([*words, *([] if gpus is None else ["--gpus", str(gpus)])])


def _probe(run: Path, results: str | None) -> None:
    """Probe the run unless its newest checkpoint has been: by a protocol, or as small runs are."""
    assert results is not None
    if _probed(run, results):
        return
    words = ["--recipe", results]
    if results == PROBES:
        words = [word for pool in SMALL_POOLS for word in ("--pool", pool)]
        for name, value in SMALL_PROBE.items():
            words += ["--set", f"{name}={value}"]
        words += ["--set", f"cache_gb={SMALL_CACHE_GB}"]
    _toto(["probe", str(run), *words])


def _done(run: Path) -> bool:
    return run.is_dir() and look_at(run).state == "done"


def _probed(run: Path, results: str) -> bool:
    """Whether the newest checkpoint has been probed so, by the rules of this version."""
    step = look_at(run).checkpoint
    for probing in read_probings(run):
        pooled = {row.head for row in probing.rows}
        whole = results != PROBES or pooled >= set(SMALL_POOLS)
        if probing.name == results and probing.step == step and whole and not probing.old_norm:
            return True
    return False


def _toto(words: Sequence[str]) -> None:
    """One step, as the user could type it; this process ends as the step does."""
    say(f"$ toto {shlex.join(words)}")
    # A session of its own: a terminal's Ctrl-C comes from here, and once.
    command = [sys.executable, "-P", "-m", "toto.cli", *words]
    process = subprocess.Popen(command, start_new_session=True)
    with _forwarded_signals(process):
        code = process.wait()
    if code == 0:
        return
    if code < 0:
        raise RunError(f"`toto {shlex.join(words)}` was ended by {signal.Signals(-code).name}")
    if code == CancelledError.exit_code:
        raise CancelledError("Ctrl-C ended this step. The same command resumes it")
    raise error_of_code(code, f"`toto {shlex.join(words)}` failed; what it said stands above")


@contextmanager
def _forwarded_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, *WARNINGS)}
    try:
        with hangup_ignored():
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write(entry: Entry, rows: Sequence[Filled], *, small: bool) -> None:
    """The table as a file, for other programs: runs/ablate-WORD[-small].json."""
    record = [
        {
            "label": one.row.label,
            "paper": dict(zip(entry.columns, one.row.paper, strict=True)),
            "ours": {
                column: None if ours is None else {"value": ours.value, "note": ours.note}
                for column, ours in zip(entry.columns, one.ours, strict=True)
            },
            "run": None if one.run is None else str(one.run),
            "cost": one.cost,
            "departures": list(one.departures),
        }
        for one in rows
    ]
    path = RUNS / f"ablate-{entry.ablation}{'-small' if small else ''}.json"
    with disk_errors(path):
        RUNS.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _print(entry: Entry, rows: Sequence[Filled], *, small: bool) -> None:
    say(f"{entry.name}. {entry.title}")
    say_table(*table_cells(entry, rows, small=small), num_words=1)
    if small:
        say(SMALL_NOTE)
