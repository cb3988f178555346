from __future__ import annotations

import io

from rich.console import Console
from toy_training import toy_engine, toy_settings, toy_train

from toto.training.distributed import Ranks
from toto.training.metrics import EvalLine, TrainLine
from toto.training.progress import BarDisplay, LineDisplay, make_display

LINE = TrainLine(10, 1000, 3.25, 1e-3, 0.5, 12_345.6, 0.1, 2.0)
EVAL = EvalLine(10, 1000, {"digits": {"loss": 3.5, "unigram": 5.0, "frame_loss": [3.5]}})


def text_of(console: Console) -> str:
    return console.file.getvalue()


def test_plain_lines_where_the_output_is_no_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=40)
    assert isinstance(make_display(Ranks(), console), LineDisplay)
    toy_train(tmp_path, toy_engine(), toy_settings(steps=10), console=console)
    lines = text_of(console).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 2/10", "step 4/10", "step 5", "step 6/10", "step 8/10", "step 10/10", "step 10",
    ]  # fmt: skip
    assert all(word in lines[0] for word in ("loss ", "tokens/s", "left"))


def test_what_a_line_says():
    console = Console(file=io.StringIO(), width=40)
    with LineDisplay(console) as display:
        display.begin(0, 20)
        display.train(LINE)
        display.evaluation(EVAL)
        display.say("[not markup]")
    assert text_of(console).splitlines() == [
        "step 10/20  loss 3.2500  12,346 tokens/s  0:00 left",
        "step 10  validation digits  loss 3.5000 (unigram 5.0000)",
        "[not markup]",
    ]


def test_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    display = make_display(Ranks(), console)
    assert isinstance(display, BarDisplay)
    with display:
        display.begin(5, 20)
        display.step(10)
        display.train(LINE)
        display.evaluation(EVAL)
    text = text_of(console)
    for part in ("step 10/20", "loss 3.2500  12,346 tokens/s", "validation digits", "left"):
        assert part in text
