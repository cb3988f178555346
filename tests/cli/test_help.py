from __future__ import annotations

import resource
import subprocess
import sys

import pytest

TORCH_FREE = [
    ["--help"],
    ["train", "--help"],
    ["list", "tokenizers"],
    ["list", "backbones"],
    ["list", "heads"],
    ["list", "tasks"],
    ["list", "recipes"],
    ["runs"],
    ["weights", "list"],
    ["show", "quickstart"],
]
PROGRAM = """
import sys
from toto.cli.main import main
sys.argv = ["toto", *{arguments!r}]
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
heavy = {{"torch", "numpy", "av", "matplotlib", "transformers"}} & set(sys.modules)
print("HEAVY", sorted(heavy), "CODE", code)
"""


@pytest.mark.parametrize("arguments", TORCH_FREE, ids=" ".join)
def test_looking_imports_no_torch(arguments):
    program = PROGRAM.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().endswith("HEAVY [] CODE 0"), done.stdout + done.stderr


def test_help_takes_under_half_a_second():
    """Of computing: the wall's clock would count whatever else the machine does."""
    seconds = []
    for _ in range(3):
        start = _seconds_of_children()
        subprocess.run(
            [sys.executable, "-m", "toto.cli", "--help"], check=True, capture_output=True
        )
        seconds.append(_seconds_of_children() - start)
    assert min(seconds) < 0.5


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_users_mistake_ends_with_code_2_and_no_traceback(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("verb: train\ntokenzier: dvae\n")
    done = subprocess.run(
        [sys.executable, "-m", "toto.cli", "show", str(recipe)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "tokenzier: unknown key" in done.stderr
    assert "Did you mean tokenizer?" in done.stderr
    assert "Traceback" not in done.stderr
