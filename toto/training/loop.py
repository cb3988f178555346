"""The training loop, one for every task; it knows neither model nor data.

After each step: record it, save, evaluate, each where it is due. Every step's noise comes from
(seed, step, rank), so a run that goes on from a checkpoint needs its step and nothing else.

Every rank runs the same loop; the first one writes the run's files and speaks to the user.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from toto.errors import DataError, RunError, UserError, raised_by_all
from toto.training.checkpoint import CheckpointMeta, load_state, read_meta, verify
from toto.training.checkpoint_background import open_writer
from toto.training.engine import B, Engine, StepResult
from toto.training.interrupt import WARNINGS, Interrupt
from toto.training.machine import peak_memory, versions
from toto.training.metrics import (
    EvalLine,
    Recorder,
    TrainLine,
    Values,
    cut_back,
    metric_values,
    open_recorder,
)
from toto.training.nonfinite import NonFiniteError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from signal import Signals

    from toto.training.checkpoint_writer import CheckpointWriter
    from toto.training.config import TrainingConfig
    from toto.training.distributed import Ranks
    from toto.training.progress import Display
    from toto.training.rundir import RunDirectory

__all__ = ["Description", "TrainResult", "train"]

T = TypeVar("T")


@dataclass(frozen=True)
class Description:
    """What checkpoints say of the run besides its progress.

    Attributes:
        recipe: the resolved recipe as plain JSON.
        tokenizer: fingerprint of the tokenizer whose tokens are learned; None without one.
        data: fingerprint of each source's training dataset.
        target_tokenizer: fingerprint of the one whose codes patch inputs predict; None without one.
    """

    recipe: dict[str, Any]
    tokenizer: str | None
    data: dict[str, str] = field(default_factory=dict)
    target_tokenizer: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        seconds: wall time of the run, interruptions left out.
        checkpoint: the last one; it holds every step that was done.
        stopped_by: the signal that ended it before its last step; None without one.
    """

    step: int
    seconds: float
    checkpoint: Path
    stopped_by: Signals | None

    @property
    def interrupted(self) -> bool:
        """Whether there are steps left to do."""
        return self.stopped_by is not None


def train(
    engine: Engine[B],
    settings: TrainingConfig,
    *,
    ranks: Ranks,
    run: RunDirectory,
    batches: Callable[[int, int], Generator[Sequence[B], None, None]],
    evaluate: Callable[[], Mapping[str, Values]] | None,
    tokens_per_step: int,
    seed: int,
    description: Description,
    display: Display,
    sources: Sequence[str] = (),
    seconds_at_peak: float | None = None,
    damage: Callable[[], str | None] = lambda: None,
) -> TrainResult:
    """Train until `settings.steps`, from the beginning or from `run.checkpoint`.

    Args:
        engine: what is trained.
        settings: number of steps, and how often to record, evaluate and save.
        ranks: this process and the others of the run.
        run: where to write and what to go on from.
        batches: (first step, stop step) → this rank's micro-batches of each of those steps. It is
            closed however training ends.
        evaluate: → {source: metrics on its held-out data}, those of all ranks together; called by
            all of them every `eval_every` steps and at the end. None: no evaluation.
        tokens_per_step: visual tokens of one step, of all ranks together.
        seed: of the noise in each step.
        description: goes into every checkpoint.
        display: what the user sees.
        sources: names of what the metric "source_loss" has an entry for.
        seconds_at_peak: what a step would take at the device's peak; None: not known.
        damage: → what is wrong with the data that this rank verifies, asked after each step.

    Raises:
        DataError: `damage` said something on a rank; the steps that were done are saved.
        RunError: a loss or gradient that is not finite; a disk that is full; ranks that are lost.
        UserError: the checkpoint is beyond `settings.steps`.
        CheckpointError: the checkpoint is broken or of another model.
        Exception: what the task or the batches raise. Whatever it is, the steps before it are saved
            first, where that can be done: see `_Session.saved_on_error`.
    """
    spent = _restore(engine, settings, ranks, run, display)
    evaluated = ranks.from_first(lambda: cut_back(run.metrics, engine.steps_done))
    first, steps = engine.steps_done, settings.steps
    recorder = open_recorder(ranks, run.metrics, first)
    checkpoints = open_writer(run.checkpoints, settings, ranks)
    interrupt = Interrupt(aloud=ranks.is_first)
    with ranks.together(), interrupt, recorder, display, checkpoints:
        session = _Session(
            engine=engine,
            settings=settings,
            ranks=ranks,
            run=run,
            evaluate=evaluate,
            tokens_per_step=tokens_per_step,
            description=description,
            display=display,
            recorder=recorder,
            checkpoints=checkpoints,
            spent=spent,
            sources=sources,
            seconds_at_peak=seconds_at_peak,
            damage=damage,
        )
        display.begin(first, steps)
        with session.saved_on_error(), closing(batches(first, steps)) as found:
            if not evaluated and first and session.due(settings.eval_every):
                session.evaluate()
            stopped = session.take_steps(found, interrupt, seed)
        checkpoint = session.save()
        checkpoints.drain()
        stopped_by = _agreed(interrupt, ranks) if stopped else None
        fault = next(filter(None, ranks.gather(damage())), None)
        if fault is not None:
            raise raised_by_all(
                DataError(
                    f"{fault}: steps may have read it. The run stopped after step "
                    f"{engine.steps_done}, saved in {checkpoint}. Put the packed file back and "
                    "resume from a checkpoint before the damage, or begin another run"
                )
            )
    return TrainResult(engine.steps_done, session.seconds(), checkpoint, stopped_by)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's noise on a rank: 64 bits of a hash, the same on every machine."""
    text = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class _Session(Generic[B]):
    """One process's part of a run: its clock, and what is due after a step."""

    def __init__(
        self,
        *,
        engine: Engine[B],
        settings: TrainingConfig,
        ranks: Ranks,
        run: RunDirectory,
        evaluate: Callable[[], Mapping[str, Values]] | None,
        tokens_per_step: int,
        description: Description,
        display: Display,
        recorder: Recorder,
        checkpoints: CheckpointWriter,
        spent: float,
        sources: Sequence[str],
        seconds_at_peak: float | None,
        damage: Callable[[], str | None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._ranks = ranks
        self._run = run
        self._evaluate = evaluate
        self._tokens_per_step = tokens_per_step
        self._description = description
        self._display = display
        self._recorder = recorder
        self._checkpoints = checkpoints
        self._sources = sources
        self._seconds_at_peak = seconds_at_peak
        self._damage = damage
        self._begun = time.perf_counter() - spent
        self._can_save = True
        self._saved: tuple[int, Path] | None = None
        if run.checkpoint is not None:
            self._saved = (engine.steps_done, run.checkpoint)
        self._waited = self._worked = self._saving = self._got = 0.0
        self._interval = 0

    def seconds(self) -> float:
        """Wall time of the run."""
        return time.perf_counter() - self._begun

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        step = self._engine.steps_done
        return step % every == 0 or step == self._settings.steps

    def take_steps(self, batches: Iterable[Sequence[B]], interrupt: Interrupt, seed: int) -> bool:
        """The steps that are left, each with what is due after it.

        Returns:
            Whether a signal, a checkpoint that could not be saved, or damaged data stopped them.
        """
        steps = range(self._engine.steps_done, self._settings.steps)
        for step, micro_batches in zip(steps, self._timed(batches), strict=True):
            torch.manual_seed(step_seed(seed, step, self._ranks.rank))
            self._record(self._step(micro_batches))
            # What stops one rank stops all: a signal, a checkpoint that could not be saved, or a
            # damaged shard.
            stops = interrupt.heard is not None or self._checkpoints.failed
            if self._ranks.any(stops or self._damage() is not None):
                return True
            # Saved first: an evaluation that is cut short is made by the resumed run.
            if self.due(self._settings.save_every):
                self.save()
            if self.due(self._settings.eval_every):
                self.evaluate()
                if self._ranks.any(interrupt.heard is not None):
                    return True
        return False

    def _step(self, micro_batches: Sequence[B]) -> StepResult:
        """Take one step; name the sources of one that is not finite.

        Raises:
            NonFiniteError: the weights are as before.
        """
        try:
            return self._engine.step(micro_batches)
        except NonFiniteError as error:
            for number in sorted(error.sources) if self._sources else ():
                error.add_note(f"source {number} is {self._sources[number]}")
            raise

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save the last finished step before an error leaves the block, and say so in a note.

        It is not saved where that is impossible: by one rank alone, for each has a part of the
        checkpoint; in the middle of an update; or once a checkpoint could not be saved. A second
        Ctrl-C ends a run at once.

        Raises:
            RunError: the program was told to exit, which is no end of a run.
        """
        try:
            yield
        except SystemExit as exit_:
            error = RunError(f"something called sys.exit({exit_.code!r}) while training")
            self._save_before(error)
            raise error from exit_
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._save_before(error)
            raise

    def _save_before(self, error: BaseException) -> None:
        by_all = self._ranks.world == 1 or isinstance(error, NonFiniteError)
        if not by_all or not self._engine.is_whole or not self._can_save:
            return
        try:
            path = self.save()
            self._checkpoints.drain()
        except RunError as failure:
            error.add_note(str(failure))
        else:
            error.add_note(f"the steps before it are saved in {path}")

    def _timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; measures the wait for each, and marks its arrival."""
        iterator = iter(batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begun
            self._got = time.perf_counter()
            yield batch

    def _record(self, result: StepResult) -> None:
        """Show the step that ends now, and write it down where that is due."""
        self._worked += time.perf_counter() - self._got
        self._interval += 1
        step = self._engine.steps_done
        self._display.step(step)
        if not self.due(self._settings.log_every):
            return
        values = metric_values(self._ranks.total(result.metrics))
        scalars = {name: value for name, value in values.items() if not isinstance(value, list)}
        time_taken = self._waited + self._worked
        line = TrainLine(
            step=step,
            tokens=step * self._tokens_per_step,
            loss=scalars.pop("loss"),
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens_per_s=self._interval * self._tokens_per_step / time_taken,
            data_wait=self._waited / time_taken,
            seconds=self.seconds(),
            metrics=scalars,
            source_loss=self._source_losses(values),
            utilisation=self._utilisation(time_taken),
            memory=max(self._ranks.gather(peak_memory(self._settings.device))),
            save_seconds=self._saving,
        )
        self._recorder.train(line)
        self._display.train(line)
        self._waited = self._worked = self._saving = 0.0
        self._interval = 0

    def _source_losses(self, values: Values) -> dict[str, float]:
        losses = values.get("source_loss")
        if not isinstance(losses, list):
            return {}
        return dict(zip(self._sources, losses, strict=True))

    def _utilisation(self, seconds: float) -> float | None:
        if self._seconds_at_peak is None:
            return None
        return self._interval * self._seconds_at_peak / seconds

    def evaluate(self) -> None:
        """Evaluate, show and record."""
        if self._evaluate is None:
            return
        step = self._engine.steps_done
        line = EvalLine(step, step * self._tokens_per_step, self._evaluate())
        self._recorder.evaluation(line)
        self._display.evaluation(line)

    def save(self) -> Path:
        """Save, unless this step is saved already."""
        step = self._engine.steps_done
        if self._saved is not None and self._saved[0] == step:
            return self._saved[1]
        meta = CheckpointMeta(
            step=step,
            tokens=step * self._tokens_per_step,
            seconds=self.seconds(),
            recipe=self._description.recipe,
            tokenizer=self._description.tokenizer,
            target_tokenizer=self._description.target_tokenizer,
            data=self._description.data,
            versions=versions() | {"ranks": self._ranks.world},
        )
        begun = time.perf_counter()
        self._can_save = False  # for good, if this raises
        path = self._checkpoints.save(self._engine.state(), meta)
        self._can_save = True
        self._saving += time.perf_counter() - begun
        self._saved = (step, path)
        return path


def _agreed(interrupt: Interrupt, ranks: Ranks) -> Signals | None:
    """The signal that stops the run, when it has reached a rank; a scheduler's before Ctrl-C."""
    heard = [number for number in ranks.gather(interrupt.heard) if number is not None]
    return max(heard, key=lambda number: number in WARNINGS, default=None)


def _restore(
    engine: Engine[B],
    settings: TrainingConfig,
    ranks: Ranks,
    run: RunDirectory,
    display: Display,
) -> float:
    """Load the run's checkpoint, if it has one; the seconds that the run has taken so far."""
    if run.checkpoint is None:
        return 0.0
    checkpoint = run.checkpoint
    ranks.from_first(lambda: verify(checkpoint))
    meta = read_meta(checkpoint)
    if meta.step > settings.steps:
        raise UserError(
            f"training.steps is {settings.steps}, and {run.checkpoint} has "
            f"{number_of(meta.step, 'step')} "
            "already. Raise training.steps, or begin another run"
        )
    engine.load_state(load_state(run.checkpoint))
    then = {"ranks": 1} | meta.versions
    now = versions() | {"ranks": ranks.world}
    changes = [
        f"{name} {then.get(name)} before, {now[name]} now"
        for name in ("ranks", "threads", "torch", "cpu", "gpu")
        if then.get(name) != now[name]
    ]
    if changes:
        display.say(
            f"resuming on another machine or setting ({'; '.join(changes)}): sums of floats round "
            "differently, so the run goes on, but not bit for bit as it would have"
        )
    return meta.seconds
