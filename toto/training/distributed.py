"""The ranks of a run: what they tell each other, and what the first of them does for all."""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from toto.errors import RunError, TotoError, UserError, error_of_code, raised_by_all
from toto.training.launch import ALONE
from toto.training.roll_call import RollCall
from toto.training.task import Mean, sum_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor
    from torch._C._distributed_c10d import Store

    from toto.training.launch import Launch

__all__ = ["Ranks", "joined_ranks"]

T = TypeVar("T")

# How long ranks wait for work of the first, such as making a dataset. A first that dies ends the
# wait at once, for its connections close.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run. Every method but `is_first` is to be called by all.

    With one rank each method gives what it is given, and needs no process group.

    Attributes:
        rank: 0 to world - 1.
        world: number of ranks.
        patient: a gloo group that waits for longer than a step may take; None with one rank.
        roll_call: tells who is gone; None with one rank.

    Raises:
        RunError: (every method) another rank has ended, or hangs for longer than the timeout.
    """

    rank: int = 0
    world: int = 1
    patient: dist.ProcessGroup | None = field(default=None, repr=False)
    roll_call: RollCall | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this one writes the run's files and speaks to the user."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """What torch says when another rank is gone becomes a RunError that names it."""
        try:
            yield
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise RunError(_lost_text(error, self.roll_call)) from error

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order; each can be pickled."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with self.together():
            dist.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element by element over the ranks, in float64."""
        totals = torch.tensor(values, dtype=torch.float64)
        self.sum_(totals)
        return totals.tolist()

    def sum_(self, tensor: Tensor) -> None:
        """Sum a tensor of the CPU or of the run's device over the ranks, in place."""
        if self.world > 1:
            with self.together():
                dist.all_reduce(tensor)

    def copy_first_(self, tensor: Tensor) -> None:
        """Fill a tensor of the CPU or of the run's device with that of the first rank, in place."""
        if self.world > 1:
            with self.together():
                dist.broadcast(tensor, src=0)

    def total(self, metrics: Mapping[str, Mean]) -> dict[str, Mean]:
        """The sums of all ranks' metrics; a rank may lack some, as one with padding alone does."""
        if self.world == 1:
            return dict(metrics)
        own = {name: (mean.total.cpu(), mean.count.cpu()) for name, mean in metrics.items()}
        parts = self.gather(own)
        return sum_metrics({name: Mean(*pair) for name, pair in part.items()} for part in parts)

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first rank; the others wait for it, however long it takes.

        Raises:
            UserError: `work` did, or another TotoError; on all ranks.
        """
        if self.world == 1:
            return work()
        if not self.is_first:
            return self._heard()
        try:
            value = work()
        except TotoError as error:
            self._tell(error=(error.exit_code, str(error)))
            raise
        self._tell(value=value)
        return value

    def after_first(self, work: Callable[[], T]) -> T:
        """What `work` returns here. The first rank goes first: what it makes, the others find.

        Raises:
            UserError: `work` did, or another TotoError.
        """
        results: list[T] = []
        self.from_first(lambda: results.append(work()))
        return results[0] if self.is_first else work()

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Refuse ranks that differ from the first: fact by name → what it is here.

        Raises:
            UserError: each rank that differs, with its machine and the facts that differ; on all.
        """
        ranks = self.gather((socket.gethostname(), dict(facts)))
        first = ranks[0][1]
        lines = []
        for rank, (host, theirs) in enumerate(ranks):
            lines += [
                f"  rank {rank} on {host}: {name} is {theirs.get(name)}, not {first.get(name)}"
                for name in sorted(first.keys() | theirs.keys())
                if theirs.get(name) != first.get(name)
            ]
        if lines:
            error = UserError(
                "these ranks do not run what rank 0 runs:\n"
                + "\n".join(lines)
                + "\nGive every rank the same checkout, packages, recipe, overrides and data"
            )
            raise raised_by_all(error)

    def _tell(self, *, value: object = None, error: tuple[int, str] | None = None) -> None:
        with self.together():
            dist.broadcast_object_list([(value, error)], src=0, group=self.patient)

    def _heard(self) -> T:  # type: ignore[type-var]  # as the first rank's work has it
        heard: list[tuple[T, tuple[int, str] | None]] = [None]  # type: ignore[list-item]
        with self.together():
            dist.broadcast_object_list(heard, src=0, group=self.patient)
        value, error = heard[0]
        if error is not None:
            raise raised_by_all(error_of_code(*error))
        return value


@contextmanager
def joined_ranks(launch: Launch, *, device: str, timeout: timedelta) -> Iterator[Ranks]:
    """Meet the other ranks; while entered, torch.distributed's default group is that of the run.

    Args:
        launch: see `find_launch`.
        device: "cpu" or "cuda"; on CUDA the local rank's GPU becomes the current one.
        timeout: after which a rank that waits for another gives up.

    Raises:
        UserError: a local rank without a GPU of its own, a device unlike that of rank 0, or a port
            that is taken.
        RunError: the ranks do not meet.
    """
    if device == "cuda":
        _choose_gpu(launch)
    if launch == ALONE:
        yield Ranks()
        return
    with Ranks().together():
        store = _store(launch, timeout)
        store.set_timeout(timeout)
        _require_same_device(store, launch, device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world,
            timeout=timeout,
        )
        roll_call = RollCall(store, launch.rank, launch.world)
    try:
        with Ranks().together():
            patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Ranks(launch.rank, launch.world, patient, roll_call)
    finally:
        dist.destroy_process_group()


def _store(launch: Launch, timeout: timedelta) -> Store:
    """Where the ranks meet: rank 0 serves it, unless torchrun does."""
    meeting = f"tcp://{launch.address}:{launch.port}"
    store: Store
    try:
        store, _, _ = next(rendezvous(meeting, launch.rank, launch.world, timeout=timeout))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"rank {launch.rank} on {socket.gethostname()}: another process has the port "
            f"{launch.port}, where the ranks are to meet. Start all ranks again with another: "
            "MASTER_PORT for srun, --master-port for torchrun, --master_port for deepspeed"
        ) from error
    return store


def _choose_gpu(launch: Launch) -> None:
    available = torch.cuda.device_count()
    if launch.local_rank >= available:
        raise UserError(
            f"rank {launch.rank} is number {launch.local_rank} (from 0) on {socket.gethostname()}, "
            f"where torch finds {available} GPUs. Start as many ranks a machine as it has GPUs; "
            "under srun leave out --gpus-per-task and --gpu-bind, so that each rank sees them all"
        )
    torch.cuda.set_device(launch.local_rank)


def _require_same_device(store: Store, launch: Launch, device: str) -> None:
    """Before the group is made: one of other backends would be waited for in vain."""
    key = "toto/device"
    if launch.rank == 0:
        store.set(key, device)
    first = store.get(key).decode()
    if first != device:
        raise UserError(
            f"rank {launch.rank} on {socket.gethostname()} computes on {device}, rank 0 on "
            f"{first}. Set training.device, or mend the machine: `nvidia-smi` must list its GPUs"
        )


def _is_lost(error: RuntimeError) -> bool:
    """Whether it comes from the network. Gloo has no class of its own: it names its file."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _lost_text(error: RuntimeError, roll_call: RollCall | None) -> str:
    missing = roll_call.missing() if roll_call is not None else []
    who = f"{', '.join(missing)} cannot" if missing else "the other ranks cannot"
    # Without the file of torch's build that gloo begins with, and its advice after a full stop.
    why = re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
    return (
        f"{who} be reached: {why}. It ended, or hung for longer than "
        "training.timeout_minutes; its own message, if it had time for one, says why. "
        "The checkpoints stand: go on with --resume"
    )
