"""`toto runs`: which runs there are, how far each one is, what to type next. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toto.analysis.records import METRICS, json_object
from toto.errors import UserError
from toto.jobs.console import console, say, say_table
from toto.jobs.history import HISTORY_FILE, End, Start, read_history
from toto.recipe.yaml_reader import read_yaml
from toto.training.checkpoint_folder import FOLDER, complete_checkpoints, step_of
from toto.training.lock import LOCK_FILE, holder_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toto.training.lock import Holder

__all__ = ["RunState", "list_runs", "look_at"]

RUNS = Path("runs")
RECIPE_FILE = "recipe.yaml"
TAIL_BYTES = 2**16
NO_VALUE = "–"
State = Literal["running", "done", "stopped", "failed", "killed", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far a run is.

    Attributes:
        run: its directory.
        state: `stopped` by a signal, `failed` with an error; `killed`: it never said that it
            ended; `unreadable`: a record is broken, `error` says which. Of a run from before runs
            had a history only `done` and `stopped` are known.
        step: the last one known of.
        steps: that it shall have.
        loss: training loss, as logged last.
        tokens: visual tokens seen then.
        tokens_per_s: of training steps, as logged last.
        seconds_left: at the pace of the last logged steps, evaluations and saves included; of a
            run that is running.
        checkpoint: the step of its newest complete checkpoint.
        resumable: whether --resume goes on with it now.
        recipe: its name.
        command: of its last start, without --resume.
        ranks: of that start.
        folder: where that was typed.
        holder: who trains there now.
        error: what ended it.
    """

    run: str
    state: State
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None
    resumable: bool = False
    recipe: str | None = None
    command: str | None = None
    ranks: int = 1
    folder: str | None = None
    holder: Holder | None = None
    error: str | None = None


def list_runs(folder: Path | None, *, as_json: bool) -> None:
    """Print the state of every run in a folder, the one that changed last first.

    Args:
        folder: of runs, or one run; ./runs unless given.
        as_json: a JSON list of `RunState` instead of a table.

    Raises:
        UserError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"no folder {folder}. Name one that holds runs, or a run; or leave it out")
    states = [look_at(run) for run in _runs_in(folder or RUNS)]
    if as_json:
        console.print_json(json.dumps([asdict(state) for state in states]), ensure_ascii=True)
    elif states:
        say_table(HEAD, [_row(state) for state in states], num_words=3)
        for sentence in filter(None, map(_what_next, states)):
            say(sentence)
    else:
        say(f"no run in {folder or RUNS}/. `toto train recipes/quickstart.yaml` begins one")


def look_at(run: Path) -> RunState:
    """The state of a run, from its history, its lock, its checkpoints and its last metrics."""
    try:
        return _state(run)
    except UserError as error:
        return RunState(run=str(run), state="unreadable", error=str(error))


def _runs_in(folder: Path) -> list[Path]:
    """`folder` if it is a run, else those in it."""
    if _is_run(folder):
        return [folder]
    runs = [path for path in folder.glob("*") if _is_run(path)]
    return sorted(runs, key=_last_change, reverse=True)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (HISTORY_FILE, METRICS, LOCK_FILE))


def _last_change(run: Path) -> float:
    files = [run / name for name in (HISTORY_FILE, METRICS, LOCK_FILE)]
    return max(file.stat().st_mtime for file in files if file.is_file())


def _state(run: Path) -> RunState:
    holder = holder_of(run)  # asked first: a run says how it ended before it lets go
    history = read_history(run)
    starts = [entry for entry in history if isinstance(entry, Start)]
    last = history[-1] if history else None
    points = _last_points(run / METRICS)
    checkpoints = complete_checkpoints(run / FOLDER)
    checkpoint = step_of(checkpoints[-1]) if checkpoints else None
    ended = last.step if isinstance(last, End) else None
    logged = points[-1]["step"] if points else 0
    step = max(logged, ended or 0, checkpoint or 0)
    name, steps = _goal(run, starts)
    state = _ending(last, holder, finished=checkpoint is not None and checkpoint == steps)
    start = starts[-1] if starts else None
    return RunState(
        run=str(run),
        state=state,
        step=step,
        steps=steps,
        loss=points[-1]["loss"] if points else None,
        tokens=points[-1]["tokens"] if points else None,
        tokens_per_s=points[-1]["tokens_per_s"] if points else None,
        seconds_left=_seconds_left(points, step, steps) if holder else None,
        checkpoint=checkpoint,
        resumable=state not in ("running", "done") and checkpoint is not None,
        recipe=name,
        command=start.command if start else None,
        ranks=int(start.versions.get("ranks", 1)) if start else 1,
        folder=start.folder if start else None,
        holder=holder,
        error=last.error if isinstance(last, End) else None,
    )


def _ending(last: Start | End | None, holder: Holder | None, *, finished: bool) -> State:
    if holder is not None:
        return "running"
    if isinstance(last, End):
        return last.state
    if isinstance(last, Start):
        return "killed"
    return "done" if finished else "stopped"


def _goal(run: Path, starts: list[Start]) -> tuple[str | None, int | None]:
    """The recipe's name and its number of steps."""
    if starts:
        return starts[-1].name, starts[-1].steps
    if not (run / RECIPE_FILE).is_file():
        return None, None
    recipe = read_yaml(run / RECIPE_FILE)
    return recipe["name"], recipe["training"]["steps"]


def _last_points(path: Path) -> list[dict[str, Any]]:
    """The last logged steps; the file may have millions of lines, so its end alone is read."""
    for size in (TAIL_BYTES, None):
        points = [line for line in _tail(path, size) if line.get("kind") == "train"]
        if points:
            return points
    return []


def _tail(path: Path, size: int | None) -> Iterator[dict[str, Any]]:
    """The whole lines in the last `size` bytes of a file; in all of it for None."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        begin = 0 if size is None else max(path.stat().st_size - size, 0)
        file.seek(begin)
        lines = file.read().split(b"\n")
    for line in lines[1 if begin else 0 : -1]:
        yield json_object(line, str(path))


def _seconds_left(points: list[dict[str, Any]], step: int, steps: int | None) -> float | None:
    if steps is None or not points:
        return None
    first, last = points[0], points[-1]
    if last["step"] > first["step"]:
        per_step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    else:
        per_step = last["tokens"] / last["step"] / last["tokens_per_s"]
    return float(per_step * (steps - step))


HEAD = ("run", "recipe", "state", "step", "loss", "tokens/s", "left")


def _row(state: RunState) -> list[str]:
    left = state.seconds_left
    return [
        state.run,
        state.recipe or NO_VALUE,
        state.state,
        f"{state.step:,}/{NO_VALUE if state.steps is None else f'{state.steps:,}'}",
        NO_VALUE if state.loss is None else f"{state.loss:.4f}",
        NO_VALUE if state.tokens_per_s is None else f"{state.tokens_per_s:,.0f}",
        NO_VALUE if left is None else str(timedelta(seconds=round(left))),
    ]


def _what_next(state: RunState) -> str | None:
    """Who trains, or what goes on with the run; nothing to say of one that is done."""
    if state.holder is not None:
        holder = state.holder
        return f"{state.run}: process {holder.pid} on {holder.host}, since {holder.since} UTC"
    if state.error is not None and state.state == "unreadable":
        return f"{state.run}: {state.error}"
    if state.state == "done" or state.command is None:
        return None
    place = "" if state.folder == str(Path.cwd()) else f" in {state.folder}"
    origin = "the beginning" if state.checkpoint is None else f"step {state.checkpoint:,}"
    # The first sentence; the history has all of them, and --json.
    why = f" ({state.error.partition('. ')[0]})" if state.error else ""
    # The command does not show a launcher around it.
    ranks = f", it ran on {state.ranks} ranks" if state.ranks > 1 else ""
    return (
        f"{state.run}: {state.state}{why}; `{state.command} --resume`{place} goes on from "
        f"{origin}{ranks}"
    )
