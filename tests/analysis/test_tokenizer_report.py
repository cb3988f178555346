from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from html_page import Page
from toy_run import eval_line, write_lines
from toy_tokenizer_run import NUM_CODES, quality, tokenizer_line, write_tokenizer_run

from toto.analysis import tokenizer_plots
from toto.analysis.report import DataSource, Reconstructions
from toto.analysis.tokenizer_report import TokenizerReport, write_tokenizer_report
from toto.analysis.tokenizer_runs import TokenizerRecord, read_tokenizer_run
from toto.analysis.tokenizer_summary import quality_table, summary
from toto.tasks.config import DvaeTaskConfig, Term, VqganTaskConfig

if TYPE_CHECKING:
    from pathlib import Path

    from toto.analysis.panels import Panel

HOSTILE = "<script>alert(1)</script>"


def content(folder: Path, *sources: str) -> TokenizerReport:
    original_NHWC = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    return TokenizerReport(
        name="tiny",
        record=read_tokenizer_run(folder),
        command="toto tokenizer train mine.yaml",
        recipe="name: tiny\nseed: 0\n",
        sources=[DataSource("digits", "samples/digits", 1234, 200, 0.6, 5000, 1.5, 3)],
        num_codes=NUM_CODES,
        checkpoint_step=100,
        reconstructions={
            name: Reconstructions(original_NHWC, original_NHWC // 2) for name in sources
        },
        terms=DvaeTaskConfig.terms,
        facts={"codes": "16"},
    )


def render(content: TokenizerReport, folder: Path) -> Page:
    write_tokenizer_report(folder / "report.html", content)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def texts(panel: Panel) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", panel.svg)


def points(panel: Panel, color: int) -> list[int]:
    """How many points each line of a series' colour has."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-(\d)\)', panel.svg)
    return [len(re.findall("[ML]", path)) for path, series in paths if int(series) == color]


def test_a_full_run_shows_every_part(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits", "clips")
    page = render(content(tmp_path, "digits", "clips"), tmp_path)
    assert page.tags.count("svg") == 4 + 2 + 4 + 1, "terms, codes, course, ranks"
    assert page.tags.count("img") == 2
    assert "Not " not in page.text
    for shown in (
        "toto · tokenizer",
        "1,234",
        "60.0%",
        "toto tokenizer train mine.yaml",
        "seed: 0",
    ):
        assert shown in page.text
    for shown in ("Reconstruction, −ln p (nll)", "nats/value", "generator"):
        assert shown in page.text
    assert "975 tokens of the held-out pictures" in page.text
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert "compiled" not in page.text


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [])
    page = render(content(tmp_path), tmp_path)
    assert page.tags.count("img") == 0
    assert "No evaluation stands yet." in page.text
    assert "Not made: no source has validation images." in page.text
    assert page.text.count("Not run: toto tokenizer train mine.yaml") == 3
    assert "Not counted: there is no code_counts.json, which a run writes at its end." in page.text


def test_a_run_without_evaluation_shows_its_training(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [tokenizer_line(1)])
    page = render(content(tmp_path), tmp_path)
    assert page.tags.count("svg") == 3 + 4, "loss, psnr, nll; the course"


def test_names_cannot_inject_html(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, HOSTILE, "clips")
    page = render(content(tmp_path, HOSTILE), tmp_path)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 5


def test_the_summary_names_every_source(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits", "clips")
    record = read_tokenizer_run(tmp_path)
    assert summary(record, NUM_CODES, 100) == [
        "After 100 steps, held-out pictures come back from their tokens with a PSNR of 20.00 dB; "
        "12 of the 16 codes are in use (75.0%), with a perplexity of 8.",
        "At the same grid the mean colour of each cell keeps 17.12 dB, and k-means of the cells "
        "with as many codes 18.50 dB.",
        "PSNR and perplexity by source: 21.00 dB and 6 on digits, 22.00 dB and 6 on clips.",
    ]
    assert summary(record, NUM_CODES, 60)[-1] == (
        "The reconstructions are of the checkpoint of step 60; the run has gone on to step 100."
    )


def test_a_tokenizer_worse_than_mean_colours_says_so(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits")
    baselines = {"cell mean": {"digits": 21.5, "all": 21.5}, "k-means": {"digits": 23, "all": 23}}
    (tmp_path / "baselines.json").write_text(json.dumps(baselines))
    text = render(content(tmp_path), tmp_path).text
    assert "Warning: the tokenizer is worse than mean colours." in text
    assert "cell mean (dB)" in text
    (tmp_path / "baselines.json").unlink()
    assert "Its baselines are not measured: there is no baselines.json" in (
        render(content(tmp_path), tmp_path).text
    )


def collapsed(folder: Path) -> TokenizerRecord:
    values = {name: quality(11.0, used=1 / 16, perplexity=1.5) for name in ("digits", "all")}
    write_lines(folder / "metrics.jsonl", [tokenizer_line(50), eval_line(50, values)])
    (folder / "code_counts.json").write_text(
        json.dumps({name: [1000, 9, *[0] * 14] for name in ("digits", "all")})
    )
    return read_tokenizer_run(folder)


@pytest.mark.parametrize(("num_codes", "bound"), [(16, "2.0"), (8192, "81.9")])
def test_a_collapsed_codebook_is_said_first(tmp_path: Path, num_codes: int, bound: str) -> None:
    record = collapsed(tmp_path)
    assert (
        f"Warning: the codes have collapsed, as the perplexity is below {bound} "
        in (summary(record, num_codes, 50)[2])
    )
    page = render(content(tmp_path), tmp_path)
    assert "the codes have collapsed" in page.text
    write_tokenizer_run(tmp_path, "digits")
    assert "collapsed" not in " ".join(summary(read_tokenizer_run(tmp_path), NUM_CODES, 100))


def test_few_codes_in_use_have_ticks_that_differ(tmp_path: Path) -> None:
    values = {name: quality(11.0, used=0.004, perplexity=1.5) for name in ("digits", "all")}
    lines = [tokenizer_line(50), eval_line(25, values), eval_line(50, values)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    panel = tokenizer_plots.codes_in_use(read_tokenizer_run(tmp_path))
    ticks = [text for text in texts(panel) if text.endswith("%")]
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks), "0%, 0%, 0% says nothing"


def test_even_use_has_ticks_too(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits")
    (tmp_path / "code_counts.json").write_text(
        json.dumps({name: [25] * 16 for name in ("digits", "all")})
    )
    panel = tokenizer_plots.code_use_by_rank(read_tokenizer_run(tmp_path))
    assert len([text for text in texts(panel) if text.endswith("%")]) >= 2


def test_one_source_stands_for_all(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits")
    record = read_tokenizer_run(tmp_path)
    sentence, _ = summary(record, NUM_CODES, 100)
    assert "a PSNR of 21.00 dB; 8 of the 16 codes are in use (50.0%)" in sentence
    table = quality_table(record, NUM_CODES)
    assert table.rows == [
        ["digits", "21.00", "17.12", "18.50", "8", "50.0%", "6", "0.5000", "0.2500"]
    ]
    assert table.head[-2:] == ["loss", "nll"], "and not what is measured in training alone"


def test_a_term_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits", "clips")
    record = read_tokenizer_run(tmp_path)
    both = tokenizer_plots.term(record, "nll", "NLL", "nats/value")
    assert {"training", "digits", "clips", "all together", "nats/value", "optimizer steps"} <= set(
        texts(both)
    )
    assert points(both, 1)[0] == 2, "evaluations of digits"
    training = tokenizer_plots.term(record, "generator", "G", "generator")
    assert "training" in texts(training)
    assert "digits" not in texts(training)
    assert points(training, 1) == []


def test_the_ranks_of_codes_end_at_the_last_that_is_used(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits")
    ranks, shares = tokenizer_plots.shares_by_rank([0, 25, 800, 25, 25, 0])
    assert ranks.tolist() == [1, 1, 2, 4]
    assert shares == pytest.approx(np.array([800, 800, 25, 25]) / 875)
    panel = tokenizer_plots.code_use_by_rank(read_tokenizer_run(tmp_path))
    assert {"rank of the code", "share of tokens", "all codes alike", "digits"} <= set(texts(panel))


def test_the_terms_of_a_task_are_titles_of_metrics_that_it_has(tmp_path: Path) -> None:
    write_tokenizer_run(tmp_path, "digits")
    page = dataclasses.replace(content(tmp_path), terms=VqganTaskConfig.terms)
    assert page.term("codebook").title == "Codebook and commitment"
    assert page.term("psnr") == Term("PSNR", "dB")
    assert page.term("of_a_plugin") == Term("of_a_plugin")
