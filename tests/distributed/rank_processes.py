"""Run a function on several ranks: real processes that talk over gloo on this machine."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from toto.training.distributed import Ranks, joined_ranks
from toto.training.launch import find_launch

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

# Forked from a process that has imported the slow packages once.
os.environ["DS_ACCELERATOR"] = "cpu"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["deepspeed", "rank_processes", "torch._inductor.compile_fx"])
TIMEOUT = timedelta(seconds=60)
LIMIT = timedelta(minutes=4)  # for a machine that others use too


class RankError(AssertionError):
    """What a rank raised, with its traceback."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_ranks(
    world: int,
    function: Callable[..., Any],
    *args: object,
    timeout: timedelta = TIMEOUT,
) -> list[Any]:
    """`function(ranks, *args)` on each rank; the results in the order of the ranks.

    Raises:
        RankError: a rank raised, ended, or took too long.
    """
    return launched(world, _joined, timeout, function, args)


def launched(world: int, function: Callable[..., Any], *args: object) -> list[Any]:
    """`function(*args)` in processes with the variables that torchrun sets; results by rank.

    Raises:
        RankError: as `on_ranks`.
    """
    ranks = started(world, function, *args)
    try:
        outcomes = [rank.outcome() for rank in ranks]
    finally:
        for rank in ranks:
            rank.process.join(timeout=5)
            rank.process.kill()
    failures = [text for ok, text in outcomes if not ok]
    if failures:
        raise RankError("\n".join(failures))
    return [value for _, value in outcomes]


@dataclass(frozen=True)
class RankProcess:
    """One of the processes that `started` starts."""

    rank: int
    process: ForkServerProcess
    end: Connection

    def outcome(self) -> tuple[bool, Any]:
        """True and what the function returned, or False and its traceback, or how it ended."""
        if not self.end.poll(LIMIT.total_seconds()):
            return False, f"rank {self.rank} took longer than {LIMIT}"
        try:
            return self.end.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionResetError):
            return False, f"rank {self.rank} died without a word"


def started(world: int, function: Callable[..., Any], *args: object) -> list[RankProcess]:
    """The processes of `launched`, not waited for."""
    port = str(free_port())
    ranks = []
    for rank in range(world):
        ours, theirs = SERVER.Pipe(duplex=False)
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = SERVER.Process(target=_rank_process, args=(variables, theirs, function, args))
        process.start()
        theirs.close()
        ranks.append(RankProcess(rank, process, ours))
    return ranks


def _joined(timeout: timedelta, function: Callable[..., Any], args: tuple[object, ...]) -> Any:
    with joined_ranks(find_launch(os.environ), device="cpu", timeout=timeout) as ranks:
        return function(ranks, *args)


def _rank_process(
    variables: dict[str, str],
    end: Connection,
    function: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage by hand, through all that torch has imported
    try:
        end.send((True, function(*args)))
    except BaseException:
        end.send((False, f"rank {variables['RANK']}: {traceback.format_exc()}"))


def same_on_all(values: list[Any]) -> Any:
    """The value that every rank gave."""
    assert all(value == values[0] for value in values), values
    return values[0]


__all__ = [
    "RankError",
    "RankProcess",
    "Ranks",
    "free_port",
    "launched",
    "on_ranks",
    "same_on_all",
    "started",
]
