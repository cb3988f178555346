import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from toto.data.workers import Crash, _serve, map_in_workers

DEADLY = 13


def square(number):
    if number == DEADLY:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def sleep_and_square(number):
    time.sleep(0.02 if number % 7 == 0 else 0)
    return number * number


def chunks(numbers, size):
    numbers = list(numbers)
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


@pytest.mark.parametrize(("workers", "size"), [(1, 5), (2, 3), (3, 1)])
def test_results_come_in_order(workers, size):
    given = chunks([n for n in range(100) if n != DEADLY], size)
    results = list(map_in_workers(sleep_and_square, given, workers=workers))
    assert results == [[n * n for n in chunk] for chunk in given]


@pytest.mark.parametrize("size", [1, 4, 30])
def test_a_crash_costs_its_item_alone(size):
    given = chunks(range(40), size)
    results = [r for chunk in map_in_workers(square, given, workers=2) for r in chunk]
    assert results[DEADLY] == Crash(-signal.SIGSEGV)
    assert str(results[DEADLY]) == "the decoder crashed (signal 11)"
    assert [r for r in results if not isinstance(r, Crash)] == [
        n * n for n in range(40) if n != DEADLY
    ]


def test_a_worker_ends_quietly_where_the_one_who_asks_is_killed(capfd):
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    worker = spawn.Process(target=_serve, args=(square, theirs))
    worker.start()
    theirs.close()
    assert ours.poll(20)
    ours.close()  # with a message that nobody read: the worker's connection is reset
    worker.join(20)
    assert worker.exitcode == 0
    assert capfd.readouterr().err == ""


def test_chunks_are_taken_as_they_are_needed():
    taken = []

    def numbers():
        for number in range(10_000):
            taken.append(number)
            yield [number + 100]

    results = map_in_workers(square, numbers(), workers=1)
    assert next(results) == [10_000]
    assert len(taken) < 50
    results.close()


def test_empty_chunks_and_none_at_all():
    assert list(map_in_workers(square, [[], [2], []], workers=2)) == [[], [4], []]
    assert list(map_in_workers(square, [], workers=2)) == []


UNGUARDED = """
from toto.data.workers import map_in_workers
print(list(map_in_workers(abs, [[1]], workers=1)))
"""


def test_a_script_without_a_guard_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "if __name__ ==" in done.stderr.splitlines()[-1]
