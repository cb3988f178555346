"""The paper's tables as data, filled from runs."""

from __future__ import annotations

import json
import shutil

import pytest

from toto.analysis.evaluations import PROBES
from toto.analysis.paper import ablation, paper
from toto.analysis.paper_report import gather, write_paper_page
from toto.analysis.reproduced import SMALL_PROBE, filled, recipe_of, table_cells
from toto.errors import UserError
from toto.recipe.reader import read_probe_recipe, read_recipe

LINEAR_128 = "probe_imagenet_linear_128"


def write_run(
    folder, accuracy, *, head="average", results=PROBES, layer=1, tokens=2_000_000, steps=None
):
    """The records of a probed run at 1,000 tokens a second, logged at half of it and at its end.

    The layers beside the best have a hundredth less.
    """
    folder.mkdir(exist_ok=True)
    steps = steps or read_recipe(folder.name).training.steps
    line = {
        "kind": "train", "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1000.0, "data_wait": 0.0,
    }  # fmt: skip
    lines = [
        line | {"step": step, "tokens": seen, "loss": 4.0 * steps / 2 / step}
        for step, seen in ((max(steps // 2, 1), tokens // 2), (steps, tokens))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    rows = [
        {
            "layer": one, "head": head, "lr": 0.001, "accuracy": accuracy - abs(one - layer) / 100,
            "low": 0.1, "high": 0.9, "loss": 1.0, "chance": 0.01,
        }
        for one in range(layer - 1, layer + 2)
    ]  # fmt: skip
    results_of = folder_of(folder, results)
    results_of.mkdir(parents=True)
    (results_of / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_summary(folder, results, step=steps)


def folder_of(run, results):
    """Where `toto probe` leaves what it measures; the digest is made up."""
    return run / f"eval/{results}-imagenet-0a1b2c3d"


def write_summary(run, results, *, step, protocol=None, **changes):
    if protocol is None:
        own = SMALL_PROBE if results == "probe" else None
        probes = own or read_probe_recipe(results).probes.model_dump(mode="json")
        name = "default" if results == "probe" else results
        protocol = {"name": name, "probes": probes | changes}
    summary = {
        "evaluation": "probe", "step": step, "source": "imagenet", "protocol": protocol,
        "conditions": {"batch_norm_on": {"average": "pooled"}},
    }  # fmt: skip
    (folder_of(run, results) / "summary.json").write_text(json.dumps(summary))


def named(name):
    return next(entry for entry in paper() if entry.name == name)


def test_every_table_and_figure_of_the_paper_is_there_once():
    names = [entry.name for entry in paper()]
    assert sorted(names) == sorted(
        [f"Table {n}" for n in range(1, 17)] + [f"Figure {n}" for n in range(1, 15)]
    )


@pytest.mark.parametrize(
    "name", sorted({row.recipe for entry in paper() for row in entry.rows if row.recipe})
)
def test_every_recipe_it_names_comes_along(name):
    assert read_recipe(name).verb == "train"


@pytest.mark.parametrize("word", ["tokenizers", "resolution", "pooling", "architecture"])
def test_every_ablation_has_small_recipes(word):
    for row in ablation(word).rows:
        if row.small:
            read_recipe(recipe_of(row, small=True))


def test_an_unknown_ablation_names_those_that_are():
    with pytest.raises(UserError, match="tokenizers, resolution, pooling, architecture"):
        ablation("tokens")


def test_a_row_says_gap_layer_run_and_cost(tmp_path):
    write_run(tmp_path / "arch_mamba", 0.397, results=LINEAR_128)
    entry = ablation("architecture")
    head, cells = table_cells(entry, filled(entry, tmp_path, small=False), small=False)
    assert head == ["", "top-1, %: paper", "ours", "gap", "of", "run", "cost"]
    assert cells[0] == ["GPT-2, 280m", "48.5", "not run", "", "", "", ""]
    assert cells[1] == [
        "Mamba, 290m", "40.7", "39.7", "-1", "average, 10.0 to 90.0, layer 1",
        str(tmp_path / "arch_mamba"), "2.0 M tokens, 0.56 h",
    ]  # fmt: skip


def test_another_pooling_than_the_papers_fills_no_row_of_its_size(tmp_path):
    write_run(tmp_path / "arch_mamba", 0.4, head="attention", results=LINEAR_128)
    write_run(tmp_path / "arch_mamba_small", 0.4, head="attention")
    entry = ablation("architecture")
    assert [one.ours for one in filled(entry, tmp_path, small=False)] == [(None,)] * 3
    small = filled(entry, tmp_path, small=True)
    assert small[1].ours[0].value == pytest.approx(40)
    assert small[1].ours[0].note.startswith("attention, ")
    head, _ = table_cells(entry, small, small=True)
    assert "gap" not in head, "small runs are of other data"


def test_poolings_are_rows_of_one_run_at_the_layer_that_the_paper_reads(tmp_path):
    run, results = tmp_path / "ablation_dvae16", "probe_imagenet_attention_128"
    write_run(run, 0.5, head="attention", results=results, layer=8)
    rows = filled(ablation("pooling"), tmp_path, small=False)
    assert rows[0].ours == (None,)
    assert rows[1].ours[0].value == pytest.approx(49), "layer 9, and the best is 8"


def test_tracking_is_read_at_its_best_layer(tmp_path):
    write_run(tmp_path / "pretrain_base", 0.5)
    folder = tmp_path / "pretrain_base/track"
    folder.mkdir()
    layers = [
        {"layer": layer, "J&F": 0.4, "J mean": layer / 10, "F mean": 0.5} for layer in (0, 3)
    ] + [{"layer": "copy", "J&F": 0.1, "J mean": 0.1, "F mean": 0.1}]
    content = {
        "best_layer": 3, "layers": layers, "preset": "crw", "resolution": 256,
        "step": read_recipe("pretrain_base").training.steps, "frames": {"one": 9, "two": 9},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(content))
    row = next(one for one in filled(named("Table 10"), tmp_path, small=False) if one.run)
    assert [ours.value for ours in row.ours] == pytest.approx([40, 30, 50])
    assert row.row.label == "Toto-base, 256 px"
    assert row.departures == ("2 sequences, and the paper has 30",)
    (folder / "summary.json").write_text(json.dumps(content | {"resolution": 512}))
    row = next(one for one in filled(named("Table 10"), tmp_path, small=False) if one.run)
    assert row.ours == (None,) * 3, "512 px are another row"


def test_a_row_says_how_it_departs_from_recipe_and_protocol(tmp_path):
    run, protocol = tmp_path / "ablation_dvae16", "probe_imagenet_linear_128"
    write_run(run, 0.5, results=LINEAR_128, layer=9)
    end = read_recipe("ablation_dvae16").training.steps

    def departures():
        return filled(ablation("pooling"), tmp_path, small=False)[0].departures

    write_summary(run, protocol, step=end, layers=[9], read_batch=1)
    assert departures() == (), "the paper reads the 9th layer alone"
    write_summary(run, protocol, step=end, epochs=1, max_samples=100)
    assert departures() == (f"other epochs, max_samples than {protocol} has",)
    write_summary(run, protocol, step=end - 1)
    assert departures() == (f"measured at step {end - 1:,}, before the last",)
    write_summary(run, protocol, step=end, protocol={"name": protocol})
    assert departures() == ("its settings are not on record",)
    write_summary(run, protocol, step=end - 1)
    entry = ablation("pooling")
    _, cells = table_cells(entry, filled(entry, tmp_path, small=False), small=False)
    assert cells[0][4].endswith("layer 9; " + departures()[0])


def test_of_several_probings_the_one_that_departs_least_is_taken(tmp_path):
    """A quick look at 100 samples, made after the whole protocol, does not hide it."""
    run, protocol = tmp_path / "ablation_dvae16", LINEAR_128
    write_run(run, 0.5, results=protocol, layer=9)
    quick = run / f"eval/{protocol}-imagenet-99999999"
    shutil.copytree(folder_of(run, protocol), quick)
    rows = (quick / "results.jsonl").read_text().replace('"accuracy": 0.5', '"accuracy": 0.9')
    (quick / "results.jsonl").write_text(rows)
    summary = json.loads((quick / "summary.json").read_text())
    summary["protocol"]["probes"]["max_samples"] = 100
    (quick / "summary.json").write_text(json.dumps(summary))
    row = filled(ablation("pooling"), tmp_path, small=False)[0]
    assert (row.ours[0].value, row.departures) == (50, ())


def test_probes_that_a_fine_tuning_trained_fill_table_7(tmp_path):
    """They have no protocol of their own: the recipe of the training names them."""
    run = tmp_path / "finetune_imagenet_base"
    write_run(run, 0.5, head="attention")
    folder = folder_of(run, "finetune")
    folder_of(run, PROBES).rename(folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"evaluation": "finetune", "protocol": {"name": "next_token_probes", "probes": {}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    row = filled(named("Table 7"), tmp_path, small=False)[0]
    assert (row.ours[0].value, row.departures) == (50, ())


def test_average_probes_of_the_old_norm_are_marked(tmp_path):
    """Results in RUN/probe/PROTOCOL of earlier versions, whose norm was over tokens."""
    for protocol, head in (
        (LINEAR_128, "average"),
        ("probe_imagenet_attention_128", "attention"),
    ):
        run = tmp_path / "ablation_dvae16"
        write_run(run, 0.5, head=head, results=protocol, layer=9)
        summary = json.loads((folder_of(run, protocol) / "summary.json").read_text())
        del summary["evaluation"], summary["conditions"]
        (folder_of(run, protocol) / "summary.json").write_text(json.dumps(summary))
        (run / "probe").mkdir(exist_ok=True)
        folder_of(run, protocol).rename(run / "probe" / protocol)
    average, attention = filled(ablation("pooling"), tmp_path, small=False)
    assert (average.ours[0].value, attention.ours[0].value) == (50, 50)
    assert average.departures == (
        "average pooling normalised over tokens, as in earlier versions: probe again",
    )
    assert attention.departures == ()


def test_a_small_row_says_that_it_was_probed_otherwise(tmp_path):
    run = tmp_path / "arch_mamba_small"
    write_run(run, 0.4)
    write_summary(run, PROBES, step=10**9, epochs=20)
    rows = filled(ablation("architecture"), tmp_path, small=True)
    assert rows[1].departures == ("other epochs than `toto ablate` has",)


def test_an_unfinished_run_reproduces_nothing(tmp_path):
    for name in ("pretrain_base", "pretrain_large", "pretrain_1b"):
        write_run(tmp_path / name, 0.5, steps=10)
    entry = gather(named("Figure 2"), tmp_path)
    assert entry.state == "in part"
    write_paper_page(tmp_path / "paper.html", [entry], tmp_path)
    assert "Not run:" not in (tmp_path / "paper.html").read_text()
    assert "trained 10 of 1,000,000 steps" in entry.tables[0].rows[0][4]


def test_a_figure_of_some_run_is_ours_at_another_scale(tmp_path):
    (tmp_path / "quickstart/eval/probe-digits-0a1b2c3d").mkdir(parents=True)
    (tmp_path / "quickstart/eval/probe-digits-0a1b2c3d/curve.png").write_bytes(b"an image")
    entry = gather(named("Figure 4"), tmp_path)
    assert entry.state == "ours, at another scale"
    write_paper_page(tmp_path / "paper.html", [entry], tmp_path)
    assert "Not run:" not in (tmp_path / "paper.html").read_text()


@pytest.mark.parametrize(
    ("table", "run", "protocol"),
    [
        ("Table 8", "pretrain_base", "probe_k400"),
        ("Table 14", "pretrain_1b", "probe_igpt"),
        ("Table 16", "pretrain_base", "probe_k400_mlp"),
    ],
)
def test_a_protocol_fills_its_table(table, run, protocol, tmp_path):
    (head,) = read_probe_recipe(protocol).probes.heads
    write_run(tmp_path / run, 0.5, head=head.label, results=protocol, steps=1_000_000)
    (row,) = [one for one in filled(named(table), tmp_path, small=False) if one.run]
    assert row.ours[0].value == pytest.approx(50)


def test_parameters_and_compute_need_no_run(tmp_path):
    for table in ("Table 1", "Table 15"):
        for one in filled(named(table), tmp_path, small=False):
            assert one.ours[0].value == pytest.approx(one.row.paper[0], rel=0.05)
    *printed, one_epoch = filled(ablation("resolution"), tmp_path, small=False)
    for one in printed:
        assert one.ours[0].value == pytest.approx(one.row.paper[0], abs=0.005)
    assert one_epoch.ours[0].value == pytest.approx(1.43, abs=0.005)
    assert len(filled(ablation("resolution"), tmp_path, small=True)) == len(printed)


def test_a_row_without_a_number_of_the_paper_has_no_gap(tmp_path):
    entry = ablation("resolution")
    _, cells = table_cells(entry, filled(entry, tmp_path, small=False), small=False)
    assert cells[-1][1:4] == ["", "1.433", ""]


def test_the_page_shows_what_there_is_and_says_what_there_is_not(tmp_path):
    write_run(tmp_path / "ablation_dvae16", 0.5, results=LINEAR_128, layer=9)
    write_run(tmp_path / "arch_llama_small", 0.075)
    entries = [gather(entry, tmp_path) for entry in paper()]
    states = {entry.name: entry.state for entry in entries}
    assert states["Table 1"] == states["Table 15"] == "counted, not trained"
    assert states["Table 4"] == "not run", "its compute is known, nothing was trained"
    assert states["Table 3"] == states["Table 5"] == "in part"
    assert states["Table 6"] == "ours, at another scale"
    assert states["Table 16"] == "not run"
    assert states["Figure 6"] == "not in toto"
    write_paper_page(tmp_path / "paper.html", entries, tmp_path)
    page = (tmp_path / "paper.html").read_text()
    assert "toto ablate architecture" in page
    assert page.count("Not in toto:") == list(states.values()).count("not in toto")
