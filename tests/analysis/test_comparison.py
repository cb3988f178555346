from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from html_page import Page
from toy_run import eval_line, train_line, write_lines

from toto.analysis.comparison import (
    ComparedRun,
    Comparison,
    differing_settings,
    read_losses,
    results,
    validation_losses,
    write_comparison,
)
from toto.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>"
COMMAND = "toto report a b"


def make_run(folder: Path, number: int = 0, steps: int = 100, **changes: Any) -> ComparedRun:
    """A run whose training loss falls by 0.01 a step from 5 + number."""
    lines = [
        line | {"loss": line["loss"] + number, "utilisation": 0.2}
        for line in map(train_line, range(1, steps + 1))
    ]
    evals = [eval_line(step, {"videos": {"loss": 4.0 + number}}) for step in (steps // 2, steps)]
    write_lines(folder / "metrics.jsonl", [*lines, *evals])
    train, evaluations = read_losses(folder)
    values: dict[str, Any] = {
        "number": number,
        "label": folder.name,
        "unit": "nats/token",
        "target": "dvae at 64 px",
        "parameters": 1_500_000,
        "steps": 200,
        "command": f"toto train {folder.name}.yaml",
        "settings": {"optimizer.lr": 0.1 * (number + 1), "seed": 0},
        "train": train,
        "evals": evaluations,
    }
    return ComparedRun(**values | changes)


def render(folder: Path, *runs: ComparedRun) -> Page:
    write_comparison(folder / "page.html", Comparison(runs, COMMAND))
    return Page((folder / "page.html").read_text(encoding="utf-8"))


def curves(folder: Path) -> list[tuple[str, str]]:
    """(path, series) of every line in the page that is a run's, the pale ones left out."""
    html = (folder / "page.html").read_text(encoding="utf-8")
    found = re.findall(
        r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--series-(\d)\)([^"]*)"', html
    )
    return [(path, series) for path, series, style in found if "opacity" not in style]


def test_the_page_shows_the_losses_and_what_differs(tmp_path: Path) -> None:
    page = render(tmp_path, make_run(tmp_path / "a"), make_run(tmp_path / "b", 1))
    assert page.tags.count("svg") == 1 + 1, "training, and one source"
    assert "comparison of 2 runs" in page.text
    for shown in ("a, b", "1.50 M", "100 of 200", "toto train b.yaml", COMMAND, "optimizer.lr"):
        assert shown in page.text
    assert "seed" not in page.text, "the same in both"
    assert "predict different targets" not in page.text
    assert all(load.startswith("#") for load in page.loads)


def test_the_numbers_are_the_last_ones_of_each_run(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", 1, steps=50, parameters=None)
    last_two = (4.01 + 4.0) / 2
    assert results([a, b]) == [
        ["a", "1.50 M", "100 of 200", "100,000", f"{last_two:.4f}", "2,000", "20.0%"],
        ["b", "–", "50 of 200", "50,000", "5.5000", "2,000", "20.0%"],
    ]
    assert validation_losses([a, b]) == [["a", "4.0000"], ["b", "5.0000"]]


def test_a_run_that_has_logged_nothing_and_one_of_before_utilisation(tmp_path: Path) -> None:
    write_lines(tmp_path / "new" / "metrics.jsonl", [])
    train, evals = read_losses(tmp_path / "new")
    new = make_run(tmp_path / "old", 1, label="new", train=train, evals=evals)
    write_lines(tmp_path / "old" / "metrics.jsonl", [train_line(1)])
    old = make_run(tmp_path / "other", train=read_losses(tmp_path / "old")[0], label="old")
    assert results([new])[0][2:] == ["0 of 200", "0", "–", "–", "–"]
    assert results([old])[0][6] == "–"
    page = render(tmp_path, new, old)
    assert page.tags.count("svg") == 2
    assert render(tmp_path, new, new).text.count(f"Not run: {COMMAND}") == 2


def test_the_steep_beginning_is_cut_off_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    steep = [point.__class__(**vars(point) | {"loss": 1000.0}) for point in run.train[:2]]
    cut = make_run(tmp_path / "a", train=[*steep, *run.train[2:]])
    render(tmp_path, cut, make_run(tmp_path / "b", 1))
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    ticks = [float(text) for text in re.findall(r">(\d+\.\d+)</text>", html)]
    assert max(tick for tick in ticks) <= 6.5, "b begins at 6"


def test_settings_that_one_run_lacks_differ(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", settings={"x": 1, "only.a": [1, 2], "same": None})
    b = make_run(tmp_path / "b", settings={"x": 1.5, "same": None, "only.b": "text"})
    assert differing_settings([a, b]) == [
        ["x", "1", "1.5"],
        ["only.a", "[1, 2]", "–"],
        ["only.b", "–", "text"],
    ]
    same = render(tmp_path, a, make_run(tmp_path / "c", settings=a.settings))
    assert "None: these are runs of the same settings." in same.text


def test_losses_of_other_targets_have_figures_of_their_own(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", 1, target="vqgan at 64 px")
    page = render(tmp_path, a, b)
    assert "These runs predict different targets" in page.text
    assert "each such group has its own figures: a; b." in page.text
    assert page.tags.count("svg") == 2 + 2, "a panel for each target, though the unit is the same"
    assert "Training loss: a" in page.text
    assert "Validation loss on videos: b" in page.text
    patches = make_run(tmp_path / "c", 2, unit="squared error", target="patch")
    page = render(tmp_path, a, patches)
    assert page.tags.count("svg") == 2 + 2, "a panel for each unit"


def test_more_runs_than_colours_differ_by_their_line(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{number}", number) for number in range(6)]
    page = render(tmp_path, *runs)
    assert "6 runs" in page.text
    drawn = curves(tmp_path)
    assert {series for _, series in drawn} == {"1", "2", "3", "4"}
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "stroke-dasharray" in html


def test_names_cannot_inject_html(tmp_path: Path) -> None:
    settings = {HOSTILE: HOSTILE}
    run = make_run(tmp_path / "a", label=HOSTILE, command=HOSTILE, settings=settings)
    page = render(tmp_path, run, make_run(tmp_path / "b", 1, settings={}))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 5


def test_a_missing_run_names_those_that_exist(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(UserError, match=rf"Runs that exist: {tmp_path / 'a'}"):
        read_losses(tmp_path / "b")
