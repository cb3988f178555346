from __future__ import annotations

import pytest

from toto.errors import UserError
from toto.training.launch import ALONE, Launch, find_launch, first_host

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NODELIST": "gpu[01-04]",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


def test_no_launcher_is_one_rank():
    assert find_launch({"HOME": "/"}) == ALONE
    assert ALONE.world == 1


def test_torchrun_and_deepspeed_say_it_all():
    assert find_launch(TORCHRUN) == Launch(3, 8, 1, "gpu07", 29500)


def test_srun_gives_the_step_s_tasks_and_its_first_machine():
    launch = find_launch(SRUN)
    assert (launch.rank, launch.world, launch.local_rank) == (5, 8, 1)
    assert launch.address == "gpu03"
    assert find_launch(SRUN) == launch
    other_step = find_launch(SRUN | {"SLURM_STEP_ID": "1"})
    other_job = find_launch(SRUN | {"SLURM_JOB_ID": "4243"})
    assert len({launch.port, other_step.port, other_job.port}) == 3
    assert 20_000 <= launch.port < 30_000


def test_an_address_that_the_user_sets_is_taken_under_srun():
    launch = find_launch(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "777"})
    assert (launch.address, launch.port) == ("10.0.0.1", 777)


def test_torchrun_inside_a_step_counts_and_a_batch_script_is_alone():
    assert find_launch(SRUN | TORCHRUN).world == 8
    assert find_launch(SRUN | TORCHRUN).address == "gpu07"
    batch = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert find_launch(batch | {"SLURM_PROCID": "0"}) == ALONE
    assert find_launch(SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == ALONE


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,login1", "gpu07"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[12]", "gpu12"),
        ("rack[1-2]n[003-004]-ib,x", "rack1n003-ib"),
        ("a1,b[1-2]", "a1"),
    ],
)
def test_the_first_machine_of_a_list(hosts, first):
    assert first_host(hosts) == first


def test_a_variable_that_is_missing_or_no_number_is_named():
    with pytest.raises(UserError, match="MASTER_PORT is missing"):
        find_launch({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"})
    with pytest.raises(UserError, match="RANK is 'x'"):
        find_launch(TORCHRUN | {"RANK": "x"})
