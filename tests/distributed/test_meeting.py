"""What is said where the ranks cannot meet, or have lost each other."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from toto.errors import RunError, UserError
from toto.training.distributed import Ranks, joined_ranks
from toto.training.launch import Launch


def test_a_port_that_another_process_has_is_named_with_where_to_give_another():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        launch = Launch(0, 2, 0, "localhost", taken.getsockname()[1])
        with (
            pytest.raises(UserError, match=f"has the port {launch.port}, .*MASTER_PORT for srun"),
            joined_ranks(launch, device="cpu", timeout=timedelta(seconds=5)),
        ):
            pass


def test_gloo_s_own_words_are_kept_to_the_reason():
    said = (
        "[/build/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:29355. "
        "This is typically caused by a remote worker crashing. Good luck"
    )
    with pytest.raises(RunError) as error, Ranks().together():
        raise RuntimeError(said)
    assert "cannot be reached: Connection closed by peer [127.0.0.1]:29355. It ended, or" in str(
        error.value
    )
    assert "Good luck" not in str(error.value)
