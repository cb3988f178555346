"""What every training verb does before its first step: recipe, machine, ranks, run directory."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from toto.errors import Problem, RecipeError, UserError
from toto.files import no_empty_folder
from toto.jobs import history
from toto.jobs.commits import commit_of, commit_of_toto
from toto.jobs.console import say
from toto.recipe.derived import describe
from toto.recipe.reader import check_recorded, read_recipe
from toto.recipe.schemas import Recipe
from toto.recipe.yaml_reader import dump_yaml, parse_value, quote
from toto.training.checkpoint import read_meta
from toto.training.config import DeepSpeedConfig
from toto.training.distributed import joined_ranks
from toto.training.interrupt import stopped_before_training
from toto.training.launch import find_launch
from toto.training.lock import hold_run
from toto.training.machine import code_fingerprint, resolve_machine, versions
from toto.training.rundir import RunDirectory, open_run
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.jobs.peak import Peak
    from toto.training.distributed import Ranks

__all__ = ["RECIPE_FILE", "begun_run", "leaves", "read_recipe_for", "record_run"]

RECIPE_FILE = "recipe.yaml"

# What may differ when a run is resumed: none of it changes a number, but for the order in which
# micro-batches, ranks and engines add up floats. `_free_to_change` has what depends on the task.
FREE_TO_CHANGE = {
    "title",
    "output",
    "imports",
    "data.root",
    "data.cache.folder",
    "data.cache.max_gb",
    "data.cache.ahead",
    "data.cache.retries",
    "data.cache.stall_seconds",
    "data.workers",
    "data.verify",
    "data.max_broken",
    "training.log_every",
    "training.eval_every",
    "training.save_every",
    "training.engine",
    "training.keep",
    "training.keep_every",
    "training.background_save",
    "training.micro_batch",
    "training.timeout_minutes",
    "training.baselines",
}

R = TypeVar("R", bound=Recipe)


def read_recipe_for(schema: type[R], name: str, overrides: Sequence[str], output: str | None) -> R:
    """Read the recipe of a verb.

    Args:
        schema: of the verb.
        name: path or name of the recipe.
        overrides: `a.b=value`.
        output: the run directory, instead of the recipe's.

    Raises:
        RecipeError: its mistakes, or it is a recipe of another verb.
    """
    overrides = [*overrides, *([f"output={quote(output)}"] if output else [])]
    recipe = read_recipe(name, overrides)
    if not isinstance(recipe, schema):
        verb = schema.model_fields["verb"].default
        command = "toto tokenizer train" if recipe.verb == "tokenizer" else f"toto {recipe.verb}"
        mend = f"Run it with `{command} {name}`"
        problem = Problem("verb", f"{recipe.verb!r} where {verb!r} is needed", mend)
        raise RecipeError(name, [problem])
    return recipe


@contextmanager
def begun_run(recipe: R, *, resume: bool) -> Iterator[tuple[R, Ranks, RunDirectory]]:
    """Settle the machine, meet the other ranks, hold and open the run directory, say what it is.

    Nothing is written yet: a mistake found before the first step must not leave a run behind.

    Yields:
        The recipe with nothing left at `auto`, the ranks, and the directory, which the first rank
        holds until the block ends. With the block the ranks part. A directory that is `finished`
        was reported to the user as such.

    Raises:
        UserError: the directory exists and `resume` is not asked for; another process trains
            there; the recipe differs from that of the run to be resumed, in a way that changes
            results; or the ranks differ.
        RunError: the ranks do not meet, or lose each other later.
        StoppedError: a scheduler's signal outside of the steps.
    """
    launch = find_launch(os.environ)
    asked = recipe.training
    if not recipe.task.compiles:
        asked = asked.model_copy(update={"compile": False})
    training, notes = resolve_machine(asked, world=launch.world)
    recipe = recipe.model_copy(update={"training": training})
    timeout = timedelta(minutes=training.timeout_minutes)
    with (
        stopped_before_training(),
        joined_ranks(launch, device=training.device, timeout=timeout) as ranks,
        ExitStack() as held,
    ):
        ranks.require_same(_facts(recipe))
        run = ranks.from_first(lambda: _opened(recipe, ranks.world, held, notes, resume=resume))
        if ranks.is_first:
            _introduce(recipe, ranks, run, notes)
        yield recipe, ranks, run


def _facts(recipe: Recipe) -> dict[str, str]:
    """What all ranks must have in common before the data are opened."""
    found = versions()
    facts = {name: str(found[name]) for name in ("python", "torch")}
    values = leaves(recipe.model_dump(mode="json"))
    settings = {f"the recipe's {key}": json.dumps(value) for key, value in values.items()}
    return facts | {"toto's code": code_fingerprint()} | settings


def _opened(
    recipe: Recipe, world: int, held: ExitStack, notes: list[str], *, resume: bool
) -> RunDirectory:
    """The run directory, which no other process opens until `held` is closed."""
    path = Path(recipe.output)
    held.enter_context(no_empty_folder(path))  # closed last, after the lock file is gone
    if not path.is_dir():
        open_run(path, resume=resume, command=_command())
    if not held.enter_context(hold_run(path, _command())):
        notes.append(f"the file system of {path} knows no locks: start nothing else there")
    run = open_run(path, resume=resume, command=_command())
    if run.checkpoint is None:
        return run
    meta = read_meta(run.checkpoint)
    _refuse_changes(recipe, meta.recipe, run)
    notes += _notes_on_ranks(recipe, before=int(meta.versions.get("ranks", 1)), now=world)
    return replace(run, finished=meta.step == recipe.training.steps and history.ended_well(path))


def _notes_on_ranks(recipe: Recipe, *, before: int, now: int) -> list[str]:
    """Say that another number of ranks changes more than rounding, where it does.

    It is not refused, as another `training.micro_batch` is: a cluster does not always have the
    GPUs that a run had before.
    """
    effect = recipe.task.micro_batch_effect
    if effect is None or before == now:
        return []
    return [
        f"the run had {number_of(before, 'rank')}, and has {now} now, which changes its results "
        f"by more than rounding: each rank has micro-batches of its own, and {effect}"
    ]


def _introduce(recipe: Recipe, ranks: Ranks, run: RunDirectory, notes: Sequence[str]) -> None:
    say(f"{recipe.name} → {run.path}")
    for what, value in describe(recipe):
        say(f"  {what}: {value}")
    training = recipe.training
    compiled = "compiled" if training.compile else "eager"
    several = f"{ranks.world} ranks, each " if ranks.world > 1 else ""
    say(f"  machine: {several}{training.device}, {training.precision}, {compiled}")
    if training.engine == "deepspeed":
        say(f"  engine: DeepSpeed, ZeRO {training.deepspeed.zero_stage}")
    idle = ranks.world - recipe.batch_sequences
    if idle > 0:
        sequences = recipe.batch_sequences
        say(
            f"  note: ranks with nothing to do: {idle}; a step has "
            f"{number_of(sequences, 'sequence')}"
        )
    for note in notes:
        say(f"  note: {note}")
    if run.finished:
        say(f"{run.path} is finished: {training.steps} steps, saved in {run.checkpoint}")
    elif run.checkpoint is not None:
        say(f"  resuming from {run.checkpoint}")


def record_run(
    recipe: Recipe,
    ranks: Ranks,
    run: RunDirectory,
    *,
    origin: history.Origin,
    peak: Peak | None,
) -> None:
    """Write RUN/recipe.yaml, resolved, and add this start to RUN/history.jsonl.

    Args:
        recipe: its machine is settled.
        ranks: of which this is the first.
        run: held and open.
        origin: what the user typed, and the parent run.
        peak: what utilisation is a share of, if that is known.
    """
    run.write_text(RECIPE_FILE, dump_yaml(recipe.model_dump(mode="json")))
    here = Path.cwd()
    start = history.Start(
        time=history.now(),
        command=_command(),
        asked=origin.asked,
        host=socket.gethostname(),
        pid=os.getpid(),
        folder=str(here),
        resumed_from=None if run.checkpoint is None else str(run.checkpoint),
        init_from=origin.init_from,
        name=recipe.name,
        steps=recipe.training.steps,
        versions=versions() | {"ranks": ranks.world},
        commits={"toto": commit_of_toto(), "folder": commit_of(here)},
        peak=None if peak is None else asdict(peak),
    )
    history.append(run.path, start)


def _command() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["toto", *arguments])


def _refuse_changes(recipe: Recipe, before: dict[str, Any], run: RunDirectory) -> None:
    now = leaves(recipe.model_dump(mode="json"))
    # Read again, so that a field which is new since then has the value that the run had.
    read = check_recorded(before, f"the recipe in {run.path}")
    then = leaves(read.model_dump(mode="json") | {"imports": before["imports"]})
    free = _free_to_change(recipe)
    changed = sorted(
        key for key in now.keys() | then.keys()
        if now.get(key) != then.get(key) and key not in free
    )  # fmt: skip
    if changed:
        reasons = {"training.micro_batch": f" ({recipe.task.micro_batch_effect})"}
        lines = [
            f"  {key}: {then.get(key)!r} before, {now.get(key)!r} now{reasons.get(key, '')}"
            for key in changed
        ]
        options = "--set KEY=VALUE"
        if all(key in then for key in changed):
            options = " ".join(
                f"--set {shlex.quote(f'{key}={_typed(then[key])}')}" for key in changed
            )
        raise UserError(
            f"{run.path} was started with another recipe, and a resumed run keeps its recipe:\n"
            + "\n".join(lines)
            + f"\nTo resume it with the values before, add\n  {options}\n"
            "or start another run with --output"
        )


def _typed(value: Any) -> str:
    """Return a value of a recipe as one types it after `--set KEY=`."""
    if isinstance(value, str) and parse_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _free_to_change(recipe: Recipe) -> set[str]:
    """Return the dotted keys that may differ when a run of this task is resumed."""
    sharding = DeepSpeedConfig.model_fields.keys() - {"extra"}  # which may hold a dtype
    free = FREE_TO_CHANGE | {f"training.deepspeed.{field}" for field in sharding}
    if not recipe.task.compiles:
        free.add("training.compile")
    if recipe.task.micro_batch_effect is not None:
        free.remove("training.micro_batch")
    return free


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, child in value.items():
        found |= leaves(child, f"{prefix}.{key}" if prefix else str(key))
    return found
