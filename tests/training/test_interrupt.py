"""Signals outside of the steps; inside them tests/training/test_loop.py sends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from toto.errors import RunError, StoppedError
from toto.training.interrupt import WARNINGS, Interrupt, stopped_before_training


@pytest.mark.parametrize("number", WARNINGS)
def test_before_the_steps_a_scheduler_s_signal_stops_at_once(number):
    before = signal.getsignal(number)
    message = rf"{number.name} came.* Exit code 85"
    with pytest.raises(StoppedError, match=message), stopped_before_training():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_run_that_ends_with_an_error_keeps_it():
    """A launcher has found the lost rank too, and signals those that are left."""

    def fail():
        try:
            raise RunError("rank 1 is lost")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunError, match="rank 1 is lost"), stopped_before_training():
        fail()


def test_the_steps_have_their_own_way_and_give_it_back():
    with stopped_before_training():
        with Interrupt(aloud=False) as interrupt:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.heard == signal.SIGUSR1
        with pytest.raises(StoppedError):
            os.kill(os.getpid(), signal.SIGUSR1)


def test_in_another_thread_nothing_is_installed():
    handlers = []

    def look():
        with stopped_before_training():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [before]


PROGRAM = """
import os, signal, time
from toto.training import interrupt
interrupt.ECHO_SECONDS = 0.1
with interrupt.stopped_before_training(), interrupt.Interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("one wish", flush=True)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never")
"""


def test_an_echo_does_nothing_and_a_second_wish_ends_it_at_once():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "one wish\n"
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.strip().startswith("stopping when this step is finished and saved")
