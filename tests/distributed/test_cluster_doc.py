"""The commands of docs/cluster.md and docs/train.sbatch, with real ranks on the CPU."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rank_processes import free_port
from toy_runs import toy_recipe, train_lines

from toto.recipe.yaml_reader import dump_yaml

pytestmark = pytest.mark.distributed

DOCS = Path(__file__).parents[2] / "docs"
DOC = (DOCS / "cluster.md").read_text(encoding="utf-8")
SBATCH = DOCS / "train.sbatch"
BLOCKS = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "PATH": f"{BIN}:{os.environ['PATH']}",
}


@pytest.fixture
def folder(tmp_path, tiny_datasets) -> Path:
    """A working directory with my_recipe.yaml, of two steps, and a hostfile."""
    raw = toy_recipe(tiny_datasets, tmp_path / "runs/toy", steps=2)
    (tmp_path / "my_recipe.yaml").write_text(dump_yaml(raw))
    (tmp_path / "hosts").write_text("127.0.0.1 slots=2\n")
    return tmp_path


def words(command: str) -> list[str]:
    """As it can run here: the first machine is this one, and ports are free ones."""
    parts = shlex.split(command.replace("gpu01", "127.0.0.1"))
    if parts[0] == "toto":
        return [sys.executable, "-m", "toto.cli", *parts[1:]]
    port = str(free_port())
    if parts[0] == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--master-port", port, *parts[1:]]
    return [sys.executable, "-m", "deepspeed.launcher.runner", "--master_port", port, *parts[1:]]


def ranks_said(text: str) -> str:
    (found,) = re.findall(r"machine: (\d+) ranks, each cpu", text)
    return found


ONE_MACHINE = [command for command in COMMANDS if "--nnodes" not in command]


@pytest.mark.parametrize("command", ONE_MACHINE, ids=lambda command: command.split()[0])
def test_commands_of_one_machine(folder, command):
    done = subprocess.run(
        words(command), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ranks_said(done.stdout) == "2"
    assert "done: 2 steps" in done.stdout


def test_the_page_has_a_command_of_each_launcher():
    assert [command.split()[0] for command in ONE_MACHINE] == ["toto", "torchrun", "deepspeed"]
    assert len(COMMANDS) == len(ONE_MACHINE) + 2


STEPS = 60

# Starts two real ranks as srun does, with SLURM's variables; at the first turn all are warned.
SRUN = """
import os, signal, subprocess, sys, time
from pathlib import Path

words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
assert words.pop(0) == "toto", sys.argv
warned = "--resume" not in words
step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
tasks = [
    subprocess.Popen(
        [sys.executable, "-m", "toto.cli", *words],
        env=os.environ | step | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
    )
    for task in range(2)
]
metrics = Path("runs/base/metrics.jsonl")
while warned and not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
    time.sleep(0.05)
if warned:
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import sys
with open("scontrol.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def submitted(folder: Path, restarts: int, *arguments: str) -> subprocess.CompletedProcess:
    """The batch script as SLURM runs it, on its turn number `restarts`."""
    slurm = {
        "SLURM_JOB_ID": str(free_port()),  # the port follows from it
        "SLURM_JOB_NAME": "base",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_RESTART_COUNT": str(restarts),
        "PATH": f"{folder}/bin:{ENVIRONMENT['PATH']}",
    }
    return subprocess.run(
        ["bash", SBATCH, *arguments],
        cwd=folder,
        env=ENVIRONMENT | slurm,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def slurm(folder) -> Path:
    (folder / "bin").mkdir()
    write_program(folder / "bin/srun", SRUN)
    write_program(folder / "bin/scontrol", SCONTROL)
    return folder


ARGUMENTS = ("my_recipe.yaml", "--set", f"training.steps={STEPS}")


def first_turn(folder: Path) -> None:
    """A job whose ranks are warned, save, and ask for another turn."""
    warned = submitted(folder, 0, *ARGUMENTS)
    assert warned.returncode == 85, warned.stdout + warned.stderr
    assert ranks_said(warned.stdout) == "2"
    assert "stopped by SIGUSR1 after step" in warned.stdout
    assert warned.stderr.count("stopped: SIGUSR1") == 1
    assert "requeue: runs/base is saved" in warned.stdout
    (requeued,) = (folder / "scontrol.txt").read_text().splitlines()
    assert re.fullmatch(r"requeue \d+", requeued)


def test_a_job_that_is_warned_saves_queues_itself_and_is_resumed(slurm):
    first_turn(slurm)
    write_program(slurm / "bin/srun", "import sys\nprint(*sys.argv[1:])")
    said = submitted(slurm, 1, *ARGUMENTS).stdout
    words = shlex.join(ARGUMENTS)
    assert said == f"--cpus-per-task=1 --wait=120 toto train {words} --output runs/base --resume\n"


@pytest.mark.slow
def test_a_job_that_was_warned_goes_on(slurm):
    first_turn(slurm)
    again = submitted(slurm, 1, *ARGUMENTS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming from runs/base/checkpoints/step-" in again.stdout
    assert [line["step"] for line in train_lines(slurm / "runs/base")] == list(range(1, STEPS + 1))


def test_a_mistake_of_all_ranks_is_printed_once_and_the_job_ends(slurm):
    (slurm / "runs/base").mkdir(parents=True)
    refused = submitted(slurm, 0, "my_recipe.yaml", "--set", "data.root=nowhere")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert refused.stderr.count("error: ") == 1, refused.stderr
    assert not (slurm / "scontrol.txt").exists()


@pytest.mark.parametrize(("code", "restarts", "requeues"), [(85, 0, 1), (85, 500, 0), (1, 0, 0)])
def test_only_a_saved_job_is_queued_again_and_not_for_ever(slurm, code, restarts, requeues):
    write_program(slurm / "bin/srun", f"import sys\nsys.exit({code})")
    assert submitted(slurm, restarts, "my_recipe.yaml").returncode == code
    log = slurm / "scontrol.txt"
    assert (len(log.read_text().splitlines()) if log.exists() else 0) == requeues


def test_the_batch_script_is_one_and_asks_for_what_the_page_says():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    text = SBATCH.read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert asked["signal"] == "USR1@300"
    assert asked["requeue"] == ""
    assert asked["open-mode"] == "append"
    assert "--gpus-per-task" not in asked
    assert signal.SIGUSR1.name == "SIG" + asked["signal"].partition("@")[0]
    for line in text.splitlines():
        if line.startswith("#SBATCH --signal"):
            assert line.removeprefix("#SBATCH ") in DOC
