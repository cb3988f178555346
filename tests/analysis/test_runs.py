from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from toy_run import eval_line, source_loss, train_line, write_lines, write_run

from toto.analysis.runs import peaks, read_run
from toto.errors import DataError, UserError
from toto.evaluation.results import ProbeRow

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    record = read_run(tmp_path / "run")
    assert [line.step for line in record.train] == list(range(10, 101, 10))
    assert record.evals[-1].sources["digits"].loss == 2.75
    assert [len(one.rows) for one in record.probings] == [12]
    assert record.generated is not None
    assert record.generated.samples[0].sheet == "0.png"


def test_what_was_not_run_is_empty(tmp_path: Path) -> None:
    write_lines(tmp_path / "run" / "metrics.jsonl", [train_line(1)])
    record = read_run(tmp_path / "run")
    assert (record.evals, record.probings, record.generated) == ([], [], None)


def test_patches_have_no_baselines(tmp_path: Path) -> None:
    only_loss = {"loss": 0.5, "frame_loss": [0.5, 0.4]}
    write_lines(tmp_path / "run" / "metrics.jsonl", [eval_line(1, {"photos": only_loss})])
    loss = read_run(tmp_path / "run").evals[0].sources["photos"]
    assert (loss.loss, loss.copy, loss.frame_unigram) == (0.5, None, None)


def test_null_stands_for_nan(tmp_path: Path) -> None:
    line = train_line(1) | {"grad_norm": None}
    frames = source_loss(1.0) | {"frame_loss": [1.0, None]}
    write_lines(tmp_path / "run" / "metrics.jsonl", [line, eval_line(1, {"digits": frames})])
    record = read_run(tmp_path / "run")
    assert math.isnan(record.train[0].grad_norm)
    assert math.isnan(record.evals[0].sources["digits"].frame_loss[1])


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    write_lines(path, [train_line(1), train_line(2)])
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert [line.step for line in read_run(tmp_path / "run").train] == [1, 2]


def test_a_missing_run_names_those_that_exist(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_lines(tmp_path / name / "metrics.jsonl", [train_line(1)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_run(tmp_path / "c")
    assert str(caught.value) == (
        f"no run at {tmp_path / 'c'}. Runs that exist: {tmp_path / 'a'}, {tmp_path / 'b'}"
    )
    with pytest.raises(UserError, match=r"empty holds no metrics\.jsonl\. Runs that exist: "):
        read_run(tmp_path / "empty")


def test_a_missing_run_among_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run stands beside it\. `toto train RECIPE` makes one"):
        read_run(tmp_path / "runs" / "c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metrics\.jsonl:2: no JSON \("),
        ("[1]", r"metrics\.jsonl:2: no JSON object"),
        ('{"kind": "train", "step": 1}', r"metrics\.jsonl:2: tokens: Field required"),
        ('{"kind": "test"}', r"metrics\.jsonl:2: kind is 'test'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    write_lines(path, [train_line(1)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


def test_a_generated_file_that_is_gone_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "generated" / "0.gif").unlink()
    with pytest.raises(DataError, match=r"names 0\.gif, which is missing"):
        read_run(tmp_path / "run")


def test_an_older_generated_json_says_what_makes_a_new_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "generated" / "generated.json").write_text('{"step": 100}')
    with pytest.raises(DataError, match=r"prompts: Field required\. Run `toto generate` again"):
        read_run(tmp_path / "run")


def row(layer: int, head: str, lr: float, accuracy: float) -> ProbeRow:
    return ProbeRow(layer, head, lr, accuracy, 0.0, 1.0, None, 0.1)


def test_peaks_begin_with_the_best_pooling() -> None:
    rows = [
        row(1, "average", 0.1, 0.4),
        row(0, "average", 0.1, 0.2),
        row(0, "attention", 0.1, 0.5),
    ]
    assert [(peak.head, peak.layer) for peak in peaks(rows)] == [("attention", 0), ("average", 1)]
