from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from html_page import Page
from toy_run import (
    eval_line,
    probe_row,
    train_line,
    write_findings,
    write_lines,
    write_probing,
    write_run,
)

from toto.analysis.findings import read_findings
from toto.analysis.report import DataSource, Reconstructions
from toto.analysis.runs import read_run
from toto.analysis.summary import probe_table, summary, validation_table
from toto.analysis.training_report import TrainingReport, write_training_report
from toto.errors import DataError, RunError

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>"


def content(folder: Path, name: str = "quick") -> TrainingReport:
    original_NHWC = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    return TrainingReport(
        name=name,
        record=read_run(folder),
        findings=read_findings(folder),
        command="toto train recipes/quickstart.yaml",
        recipe=f"name: {name}\nseed: 0\n",
        sources=[DataSource(name, "samples/digits", 1234, 200, 0.6, 5000, 1.5, 3)],
        reconstructions=Reconstructions(original_NHWC, original_NHWC // 2),
        facts={"parameters": "3.1 M"},
        versions={"torch": "2.13.0"},
        machine={"processor": "2 cores"},
    )


def render(content: TrainingReport, folder: Path) -> Page:
    write_training_report(folder / "report.html", content)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_full_run_shows_every_part(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = render(content(tmp_path), tmp_path)
    assert page.tags.count("svg") == 1 + 1 + 1 + 4 + 1
    assert page.tags.count("img") == 3
    assert "Not run" not in page.text
    for shown in ("quick", "1,234", "60.0%", "toto train recipes/quickstart.yaml", "seed: 0"):
        assert shown in page.text
    assert "the validation loss on digits is 2.75 nats/token, 0.25 below copying" in page.text


def test_tracking_losses_by_position_protocols_and_classes_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_findings(tmp_path)
    page = render(content(tmp_path), tmp_path)
    assert page.tags.count("img") == 3 + 2
    assert page.tags.count("svg") == 1 + 1 + 1 + 4 + 2
    for shown in (
        "Accuracy by layer on digits",
        "It has 700 training and 200 validation samples; the checkpoint is that of step 100. "
        "Files: eval/probe-digits-0a1b2c3d.",
        "Accuracy by layer: mine on letters",
        "It has 64 training and 1,600 validation samples; the checkpoint is that of step 100. "
        "Files: probe/mine.",
        "Classes through the whole model on b",
        "2.500 nats/token in the mean of 8 sequences of data/val; 3.000 in the first frame, 2.000",
        "best at layer 1: J&F 31.0%. This is of step 50; the run has gone on to step 100.",
    ):
        assert shown in page.text


def test_every_probing_of_a_run_is_shown_and_none_in_the_place_of_another(tmp_path: Path) -> None:
    """Two sources, one of them twice; the newest of each source opens the page."""
    write_run(tmp_path)
    for age, (name, source, best) in enumerate(
        [("probe-digits-ffffffff", "digits", 0.5), ("probe_k400-clips-0a1b2c3d", "clips", 0.6)], 1
    ):
        folder = tmp_path / "eval" / name
        write_probing(
            folder, [probe_row(1, "average", 0.01, best)], evaluation="probe", step=100,
            source=source, train_samples=7, validation_samples=5,
            protocol={"name": name.partition("-")[0].replace("probe", "default", age == 1)},
            conditions={"batch_norm_on": {}},
        )  # fmt: skip
        os.utime(folder / "results.jsonl", (age, age))
    page = render(content(tmp_path), tmp_path)
    for shown in ("39.9%", "50.0%", "60.0%", "eval/probe-digits-0a1b2c3d", "probe-digits-ffffffff"):
        assert shown in page.text
    assert page.text.count("Accuracy by layer on digits") == 2
    assert page.text.count("Accuracy by layer: probe_k400 on clips") == 1
    opening = summary(read_run(tmp_path), "nats/token")
    assert [line[:26] for line in opening if "probe" in line] == [
        "The best probe on digits r", "The best probe on clips re",
    ]  # fmt: skip
    assert "39.9%" in opening[1]


def test_a_probing_does_not_replace_what_the_model_itself_tells(tmp_path: Path) -> None:
    """A run that learned classes and was probed afterwards, on the same source."""
    lines = [train_line(100), eval_line(100, {"digits": {"loss": 0.7, "accuracy": 0.25}})]
    write_lines(tmp_path / "metrics.jsonl", lines)
    for age, (kind, best) in enumerate([("classify", 0.9), ("probe", 0.6)], 1):
        folder = tmp_path / f"eval/{kind}-digits-0a1b2c3d"
        write_probing(
            folder, [probe_row(1, "average", 0.01, best)], evaluation=kind, step=100,
            source="digits", conditions={"batch_norm_on": {}},
        )  # fmt: skip
        os.utime(folder / "results.jsonl", (age, age))
    _, own, probe = summary(read_run(tmp_path), "nats", can_generate=False)
    assert own.startswith("The model classifies all validation samples of digits: 90.0%")
    assert probe.startswith("The best probe on digits")


def test_average_probes_of_a_fine_tuning_say_that_they_have_no_norm(tmp_path: Path) -> None:
    write_run(tmp_path)
    for head in ("average", "attention"):
        folder = tmp_path / f"eval/finetune-{head}-0a1b2c3d"
        rows = [probe_row(1, head, 0.01, 0.9)]
        write_probing(folder, rows, evaluation="finetune", step=100, source=head)
    noted = [one.source for one in read_run(tmp_path).probings if one.notes]
    assert noted == ["average"]


def test_average_probes_of_the_old_norm_say_so(tmp_path: Path) -> None:
    write_run(tmp_path)
    rows = [probe_row(layer, "average", 0.01, 0.3) for layer in (0, 1)]
    write_probing(tmp_path / "probe", rows, step=100, source="old")
    write_probing(
        tmp_path / "probe/off", rows, step=100, source="off",
        protocol={"probes": {"batch_norm": False}},
    )  # fmt: skip
    write_probing(
        tmp_path / "probe/attended", [probe_row(0, "attention", 0.1, 0.2)], step=100, source="mine"
    )
    marked = [one.source for one in read_run(tmp_path).probings if one.notes]
    assert marked == ["old"]
    page = render(content(tmp_path), tmp_path)
    assert page.text.count("normalised over tokens here, a rule of earlier versions") == 2


def test_a_model_that_tells_classes_has_no_loss_by_frame(tmp_path: Path) -> None:
    lines = [train_line(10), eval_line(10, {"digits": {"loss": 2.0, "accuracy": 0.25}})]
    write_lines(tmp_path / "metrics.jsonl", lines)
    page = render(content(tmp_path), tmp_path)
    assert "25.0% of classes are right" in page.text
    assert "Loss by frame" not in page.text


def test_a_broken_finding_is_named(tmp_path: Path) -> None:
    (tmp_path / "track").mkdir()
    (tmp_path / "track" / "summary.json").write_text('{"step": 5}')
    with pytest.raises(DataError, match=r"track/summary.json: text: Field required"):
        read_findings(tmp_path)


def test_missing_parts_say_what_to_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_lines(run / "metrics.jsonl", [])
    page = render(dataclasses.replace(content(run), reconstructions="no source has any"), run)
    assert page.tags.count("svg") == 0
    assert page.tags.count("img") == 0
    for command in ("toto train recipes/quickstart.yaml", f"toto probe {run}", f"generate {run}"):
        assert re.search(f"Not run: (toto )?{re.escape(command)}", page.text)
    assert "Not made: no source has any." in page.text


def test_a_run_of_patches_is_in_its_unit_and_names_no_baseline_that_it_lacks(
    tmp_path: Path,
) -> None:
    write_run(tmp_path)
    losses = {"digits": {"loss": 0.5, "frame_loss": [0.5, 0.5]}}
    write_lines(tmp_path / "metrics.jsonl", [train_line(1), eval_line(1, losses)])
    shutil.rmtree(tmp_path / "generated")
    patches = dataclasses.replace(
        content(tmp_path),
        loss_unit="squared error",
        no_generation="patches",
        reconstructions="pixels",
    )
    page = render(patches, tmp_path)
    assert "on digits is 0.50 squared error." in page.text
    assert page.text.count("loss (squared error)") == 3, "training, validation and by frame"
    assert "nats" not in page.text
    assert "unigram from" not in page.text
    assert "Not possible: patches." in page.text
    assert "toto generate" not in page.text


def test_a_run_without_evaluation_shows_its_training(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [train_line(1)])
    page = render(content(tmp_path), tmp_path)
    assert page.tags.count("svg") == 1 + 4
    assert "Utilisation" not in page.text
    assert "The run has not been evaluated yet." in page.text


def test_a_watched_run_shows_its_sources_and_its_utilisation(tmp_path: Path) -> None:
    watched = {"source_loss": {"digits": 1.0, "clips": 2.0}, "utilisation": 0.2, "memory": 10**9}
    write_lines(tmp_path / "metrics.jsonl", [train_line(step) | watched for step in (1, 2)])
    page = render(content(tmp_path), tmp_path)
    assert page.tags.count("svg") == 2 + 6
    assert "Training loss by source, smoothed" in page.text
    assert "Utilisation (MFU) is the model's own arithmetic" in page.text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = render(content(tmp_path), tmp_path)
    assert len(page.loads) > 10
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"@import|url\((?!#)|https?://", html)


def test_names_cannot_inject_html(tmp_path: Path) -> None:
    write_run(tmp_path, source=HOSTILE)
    page = render(content(tmp_path, name=HOSTILE), tmp_path)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 5


def test_an_older_report_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html cannot be written"):
        write_training_report(tmp_path / "report.html", content(tmp_path))
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.parametrize(
    ("prompts", "start", "summed_up", "caption"),
    [
        ("files", "video", "generated after prompts from files.", "after prompts from files"),
        (
            "start",
            "video",
            "generated without a prompt, from the video start.",
            "the start of a video; there",
        ),
        (
            "start",
            "image",
            "generated without a prompt, from the image start.",
            "the start of separate images; there is nothing to compare with",
        ),
    ],
)
def test_what_generation_began_with_is_told_apart(
    tmp_path: Path, prompts: str, start: str, summed_up: str, caption: str
) -> None:
    write_run(tmp_path)
    path = tmp_path / "generated" / "generated.json"
    changed = {"prompts": prompts, "start": start, "source": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert summary(read_run(tmp_path), "nats/token")[-1].endswith(summed_up)
    page = render(content(tmp_path), tmp_path)
    assert caption in page.text
    assert "a.mp4, seed 7" in page.text
    assert "held-out videos" not in page.text


def test_summary_and_tables(tmp_path: Path) -> None:
    write_run(tmp_path)
    record = read_run(tmp_path)
    assert summary(record, "nats/token") == [
        "After 100,000 visual tokens (100 steps), the validation loss on digits is 2.75 nats/token"
        ", 0.25 below copying the last frame (3.00) and 2.25 below unigram (5.00).",
        "The best probe on digits reads the label from layer 2 with attention pooling: 39.9% "
        "correct (95% interval 34.9% to 44.9%), 4.0 times chance (10.0%).",
        "1 sequence of 2 frames was generated after the first frames of validation videos of "
        "digits.",
    ]
    later = replace(record, train=[*record.train, replace(record.train[-1], step=110)])
    assert [sentence.partition(" This is ")[2] for sentence in summary(later, "nats/token")] == [
        "",
        "of step 100; the run has gone on to step 110.",
        "of step 100; the run has gone on to step 110.",
    ]
    assert validation_table(record) == [
        ["source", "model", "copy last frame", "unigram", "model − copy", "model − unigram"],
        ["digits", "2.750", "3.000", "5.000", "−0.250", "−2.250"],
    ]
    assert [row[:5] for row in probe_table(record.probings[0])] == [
        ["attention", "2", "0.001", "0", "39.9%"],
        ["average", "2", "0.001", "0", "29.9%"],
    ]


def test_a_model_above_its_baseline_is_called_so(tmp_path: Path) -> None:
    worse = {"loss": 3.2, "copy": 3.0, "frame_loss": [3.2, 3.2]}
    write_lines(tmp_path / "metrics.jsonl", [eval_line(1, {"clips": worse})])
    record = read_run(tmp_path)
    assert (
        "3.20 nats/token, 0.20 above copying the last frame (3.00)."
        in summary(record, "nats/token")[0]
    )
    assert validation_table(record) == [
        ["source", "model", "copy last frame", "model − copy"],
        ["clips", "3.200", "3.000", "+0.200"],
    ]
