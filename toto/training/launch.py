"""How this process was started: alone, or as one rank of several, as its environment says.

torchrun and the deepspeed launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
srun sets variables of its own (`man srun`, OUTPUT ENVIRONMENT VARIABLES). No torch here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ALONE", "Launch", "find_launch", "first_host"]

# Ports of this range are rarely taken; the job's number chooses one.
FIRST_PORT = 20_000
NUM_PORTS = 10_000


@dataclass(frozen=True)
class Launch:
    """This process among the ranks of a run.

    Attributes:
        rank: 0 to world - 1.
        world: number of ranks.
        local_rank: number on its machine, from 0; on CUDA the number of its GPU.
        address: machine of rank 0, where all meet.
        port: on that machine.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


ALONE = Launch(0, 1, 0, "localhost", 0)
"""A process that no launcher started."""


def find_launch(environment: Mapping[str, str]) -> Launch:
    """What the launcher's variables say; `ALONE` where there are none.

    A batch script of SLURM runs outside of srun: it has SLURM's variables but for those of a step,
    and is alone.

    Raises:
        UserError: a variable that is missing or no number.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Launch(
            _number(environment, "RANK"),
            _number(environment, "WORLD_SIZE"),
            _number(environment, "LOCAL_RANK"),
            _text(environment, "MASTER_ADDR"),
            _number(environment, "MASTER_PORT"),
        )
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _slurm_launch(environment)
    return ALONE


def first_host(hosts: str) -> str:
    """The first machine of SLURM's short form: "gpu[07-09,12],login1" → "gpu07"."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    first = match[0] if match else ""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def _slurm_launch(environment: Mapping[str, str]) -> Launch:
    one_step = "SLURM_STEP_NUM_TASKS" in environment
    world = _number(environment, "SLURM_STEP_NUM_TASKS" if one_step else "SLURM_NTASKS")
    if world == 1:
        return ALONE
    in_step = "SLURM_STEP_NODELIST" in environment
    hosts = _text(environment, "SLURM_STEP_NODELIST" if in_step else "SLURM_NODELIST")
    # Another step of the same job must not meet at the same port.
    number = 7 * _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID")
    port = FIRST_PORT + number % NUM_PORTS
    return Launch(
        _number(environment, "SLURM_PROCID"),
        world,
        _number(environment, "SLURM_LOCALID"),
        environment.get("MASTER_ADDR") or first_host(hosts),
        _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else port,
    )


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise UserError(
            f"the variable {name} is missing beside the others of a launcher. Start the ranks with "
            "torchrun, the deepspeed launcher or srun, or unset RANK and WORLD_SIZE for one process"
        )
    return environment[name]


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not text.isdecimal():
        raise UserError(f"the variable {name} is {text!r} where the launcher sets a number")
    return int(text)
