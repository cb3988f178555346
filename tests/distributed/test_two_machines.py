"""Two machines as far as the network can tell: two network namespaces, joined by one cable."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_cluster_doc import COMMANDS, ENVIRONMENT, words
from toy_runs import toy_recipe, train_lines

from toto.recipe.yaml_reader import dump_yaml

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("toto-test-0", "toto-test-1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """The namespaces with their ends of the cable, veth0 and veth1."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (iproute2)")
    with ExitStack() as made:
        try:
            for name in NAMES:
                ip("netns", "add", name)
                made.callback(ip, "netns", "del", name)
            ip("link", "add", "veth0", "netns", NAMES[0], "type", "veth",
               "peer", "name", "veth1", "netns", NAMES[1])  # fmt: skip
            for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
                ip("-n", name, "address", "add", f"{address}/24", "dev", f"veth{number}")
                ip("-n", name, "link", "set", f"veth{number}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield


def start(number: int, folder: Path, *more: str) -> subprocess.Popen[str]:
    """The page's command of a machine, one rank on each, with a host name of its own."""
    (command,) = [line for line in COMMANDS if f"--node-rank {number}" in line]
    command = command.replace("gpu01", ADDRESSES[0]).replace(
        "--nproc-per-node 2", "--nproc-per-node 1"
    )
    program = [word for word in words(command) if not word.isspace()]
    at = program.index("--master-port")
    del program[at : at + 2]  # the page's own port: nothing else listens in a namespace
    named = f'hostname gpu0{number + 1} && exec "$@"'
    return subprocess.Popen(
        ["ip", "netns", "exec", NAMES[number], "unshare", "--uts", "sh", "-c", named, "sh",
         *program, *more],
        cwd=folder,
        env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": f"veth{number}", "TP_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, tiny_datasets) -> Path:
    raw = toy_recipe(tiny_datasets, tmp_path / "runs/toy", steps=6, timeout_minutes=1)
    (tmp_path / "my_recipe.yaml").write_text(dump_yaml(raw))
    return tmp_path


@pytest.mark.usefixtures("machines")
def test_two_machines_train_as_one_does(folder):
    ends = [start(number, folder) for number in range(2)]
    said = [end.communicate()[0] for end in ends]
    assert [end.returncode for end in ends] == [0, 0], said
    assert "machine: 2 ranks, each cpu" in said[0]
    assert "done: 6 steps" in said[0]
    assert "done" not in said[1]
    alone = words("toto train my_recipe.yaml --gpus 2 --output runs/one")
    subprocess.run(alone, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    assert train_lines(folder / "runs/nodes") == train_lines(folder / "runs/one")


@pytest.mark.usefixtures("machines")
def test_a_cut_cable_ends_both_by_the_timeout(folder):
    more = ("--set", "training.steps=100000", "--set", "training.timeout_minutes=0.2")
    ends = [start(number, folder, *more) for number in range(2)]
    run = folder / "runs/nodes"
    until = time.monotonic() + 300
    while len(train_lines(run)) < 5:
        assert time.monotonic() < until, [end.poll() for end in ends]
        time.sleep(0.1)
    ip("-n", NAMES[0], "link", "set", "veth0", "down")
    try:
        said = [end.communicate(timeout=300)[0] for end in ends]
    finally:
        ip("-n", NAMES[0], "link", "set", "veth0", "up")
    assert [end.returncode for end in ends] == [1, 1], said
    for text in said:
        assert re.search(r"error: .* cannot be\s+reached", text), text
    assert "rank 1 on gpu02" in said[0]
