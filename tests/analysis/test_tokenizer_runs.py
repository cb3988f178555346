from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from toy_run import eval_line, write_lines
from toy_tokenizer_run import quality, tokenizer_line, write_tokenizer_run

from toto.analysis.tokenizer_runs import read_tokenizer_run
from toto.errors import DataError, UserError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_is_read_back(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits", "clips")
    record = read_tokenizer_run(tmp_path)
    assert record.train[0].values == {"loss": 4.9, "nll": 0.9, "psnr": 15.0}
    assert record.evals[-1].sources["clips"]["psnr"] == 22.0
    assert record.code_counts["digits"][:2] == [800, 25]
    assert record.terms == ["loss", "psnr", "nll", "generator"]
    assert record.last_step == 100


def test_all_sources_together_are_shown_beside_several_alone(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path / "one", "digits")
    write_tokenizer_run(tmp_path / "two", "digits", "clips")
    assert read_tokenizer_run(tmp_path / "one").series == ["digits"]
    assert read_tokenizer_run(tmp_path / "two").series == ["digits", "clips", "all"]


def test_a_run_that_is_under_way_has_no_counts(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [tokenizer_line(1)])
    record = read_tokenizer_run(tmp_path)
    assert (record.evals, record.series, record.code_counts) == ([], [], {})


def test_null_stands_for_nan(tmp_path: Path) -> None:
    line = tokenizer_line(1) | {"metrics": {"psnr": None}}
    write_lines(tmp_path / "metrics.jsonl", [line])
    assert math.isnan(read_tokenizer_run(tmp_path).train[0].metrics["psnr"])


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        read_tokenizer_run(tmp_path / "none")


def test_broken_records_are_named(tmp_path: Path) -> None:
    short = quality(20.0)
    del short["perplexity"]
    write_lines(tmp_path / "metrics.jsonl", [tokenizer_line(1), eval_line(1, {"all": short})])
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: sources\.all: .*perplexity missing"):
        read_tokenizer_run(tmp_path)
    write_lines(tmp_path / "metrics.jsonl", [tokenizer_line(1)])
    (tmp_path / "code_counts.json").write_text(json.dumps({"all": [1, "many"]}))
    with pytest.raises(DataError, match=r"code_counts\.json: all\.1: "):
        read_tokenizer_run(tmp_path)
