"""`toto probe` with its settings and protocols, as a user types it."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import newest, toto, write_recipe
from tiny_runs import tiny_recipe

QUICK = ("--set", "epochs=1", "--set", "learning_rates=[0.01]")
RESULTS = ("results.jsonl", "summary.json", "curve.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_datasets):
    """A folder in which `toto train` ran, with its data beside it."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(tiny_datasets, folder / "data")
    raw = tiny_recipe(tiny_datasets, steps=2)
    raw["data"] |= {"root": "data", "tokens": "once"}
    toto("train", write_recipe(folder, raw), cwd=folder)
    return folder


def rows_of(folder, evaluation="probe"):
    path = newest(folder / "runs/tiny", evaluation) / "results.jsonl"
    return [json.loads(line) for line in path.open()]


def summary_of(folder, evaluation="probe"):
    return json.loads((newest(folder / "runs/tiny", evaluation) / "summary.json").read_text())


def content(folder):
    return [(folder / name).read_bytes() for name in RESULTS]


def test_two_runs_of_a_probe_give_the_same_digits(trained):
    command = ("probe", "--set", "epochs=2", "--set", "seeds=[0,1]")
    toto(*command, cwd=trained)
    named = newest(trained / "runs/tiny", "probe-videos")
    toto(*command, "--out", "again", cwd=trained)
    assert content(trained / "again") == content(named)
    first = rows_of(trained)
    toto("probe", "--set", "epochs=2", "--set", "data_seed=1", cwd=trained)
    assert [row["loss"] for row in rows_of(trained)] != [r["loss"] for r in first if r["seed"] == 0]
    assert content(trained / "again") == content(named), "the first is still there"


def test_what_was_measured_is_neither_replaced_nor_measured_again_unasked(trained):
    command = ("probe", *QUICK, "--pool", "average", "--layers", "0")
    assert "1 probes of" in toto(*command, cwd=trained).stdout
    folder = newest(trained / "runs/tiny", "probe")
    (folder / "curve.png").write_bytes(b"an old curve")
    again = toto(*command, "--set", "cache_gb=1", cwd=trained).stdout
    relative = folder.relative_to(trained)
    assert f"{relative} has been measured already, with the same checkpoint, data and" in again
    assert "probes of" not in again
    assert "average: best at layer 0" in again, "what it said then"
    assert (folder / "curve.png").read_bytes() == b"an old curve"
    toto(*command, "--overwrite", cwd=trained)
    assert (folder / "curve.png").read_bytes() != b"an old curve"
    toto(*command, "--out", "mine", cwd=trained)
    refused = toto(*command, "--out", "mine", cwd=trained, code=2).stderr
    assert "mine exists already, with a result of toto probe" in refused
    toto(*command, "--out", "mine", "--overwrite", cwd=trained)
    (trained / "mine/notes.txt").write_text("mine")
    refused = toto(*command, "--out", "mine", "--overwrite", cwd=trained, code=2).stderr
    assert "mine holds notes.txt, which toto probe did not write" in refused
    assert (trained / "mine/notes.txt").read_text() == "mine"


def test_other_labelled_sources_are_named_and_get_results_of_their_own(trained):
    sources = {
        name: {"path": "videos-train", "validation": "videos-val"} for name in ("first", "second")
    }
    recipe = {"verb": "probe", "data": {"sources": sources}, "probes": {"heads": ["average"]}}
    write_recipe(trained, recipe, "two.yaml")
    command = ("probe", "--recipe", "two.yaml", *QUICK, "--layers", "0")
    bare = toto(*command, cwd=trained).stdout
    assert "on first: 12 training and 6 validation samples" in bare
    assert "other labelled sources, each by --source NAME: second" in bare
    chosen = toto(*command, "--source", "second", cwd=trained).stdout
    assert "on second:" in chosen
    assert "other labelled sources" not in chosen
    found = sorted(path.name[:-9] for path in (trained / "runs/tiny/eval").glob("two-*"))
    assert found == ["two-first", "two-second"]
    toto("report", "runs/tiny", cwd=trained)
    page = (trained / "runs/tiny/report.html").read_text()
    for source in ("first", "second"):
        assert f"Accuracy by layer: two on {source}" in page
    assert "It has 12 training and 6 validation samples" in page


def test_augmented_views_and_every_choice_are_recorded(trained):
    done = toto(
        "probe", *QUICK, "--pool", "average",
        "--set", "augmentation=random_resized_crop_flip", "--set", "test_clips=2",
        "--set", "test_crops=3", "--set", "weight_decays=[0,0.1]", cwd=trained,
    )  # fmt: skip
    assert "4 probes of" in done.stdout
    assert "augmentation: the model reads the data" in done.stdout
    assert {row["weight_decay"] for row in rows_of(trained)} == {0, 0.1}
    chosen = summary_of(trained)["protocol"]["probes"]
    assert (chosen["test_clips"], chosen["data_seed"], chosen["batch_norm"]) == (2, 0, True)
    conditions = summary_of(trained)["conditions"]
    assert (conditions["precision"], conditions["clip"]["resolution"]) == ("fp32", 32)
    assert conditions["validation"] != conditions["data"]


@pytest.mark.parametrize(
    "changes",
    [
        ("resolution=64",),
        ("attention=full",),
        ("rope_base=50000",),
        ("frames=2",),
    ],
)
def test_the_model_is_seen_otherwise_than_trained(trained, changes):
    more = [part for change in changes for part in ("--set", change)]
    losses = []
    for extra in ([], more):
        toto("probe", *QUICK, "--pool", "average", "--layers", "1", *extra, cwd=trained)
        losses.append(rows_of(trained)[0]["loss"])
    assert losses[0] != losses[1]


def test_features_are_kept_on_the_disk_and_taken_again(trained):
    disk = ("--set", "cache=disk")
    toto("probe", *QUICK, "--set", "weight_decays=[0.3]", *disk, cwd=trained)
    first = rows_of(trained)
    done = toto("probe", *QUICK, "--set", "weight_decays=[0.3,0.4]", *disk, cwd=trained)
    assert "taken from" in done.stdout
    assert [row for row in rows_of(trained) if row["weight_decay"] == 0.3] == first
    assert len(list((trained / "runs/tiny/eval/features").iterdir())) == 1
    done = toto("probe", *QUICK, *disk, "--set", "resolution=64", cwd=trained)
    assert "kept as" in done.stdout


def test_a_protocol_names_its_own_data_and_the_command_line_goes_on_top(trained):
    protocol = {
        "verb": "probe",
        "data": {"sources": {"mine": {"path": "videos-train", "validation": "videos-val"}}},
        "probes": {"heads": ["attention"], "epochs": 5, "learning_rates": [0.01]},
    }
    write_recipe(trained, protocol, "protocol.yaml")
    command = ("probe", "--recipe", "protocol.yaml")
    done = toto(*command, "--layers", "0", "--set", "epochs=1", cwd=trained)
    assert "on mine: 12 training and 6 validation samples of 2 classes" in done.stdout
    rows = rows_of(trained, "protocol")
    assert {(row["layer"], row["head"]) for row in rows} == {(0, "attention")}
    summary = summary_of(trained, "protocol")
    assert summary["protocol"]["name"] == "protocol"
    assert summary["protocol"]["probes"]["epochs"] == 1
    assert "verb: probe" in toto("show", "protocol.yaml", cwd=trained).stdout
    done = toto(*command, "--source", "yours", cwd=trained, code=2)
    assert "--source yours: there are mine" in done.stderr
    protocol["data"]["sources"]["mine"]["validation"] = "videos-train"
    write_recipe(trained, protocol, "protocol.yaml")
    done = toto(*command, cwd=trained, code=2)
    assert "probes would be scored on what they learned" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "resolution=33"], "resolution 33:"),
        (["--set", "cache=memory", "--set", "cache_gb=0"], "and cache: memory is asked for"),
        (["--set", "context=packed"], "context: packed puts pictures into one sequence"),
        (["--recipe", "quickstart"], "'train' is no protocol of probes"),
        (["--set", "epoch=3"], "epoch: unknown key"),
        (["--layers", "a"], "--layers a: write all, or numbers"),
        (["--set", "seeds=[]"], "seeds"),
    ],
)
def test_what_cannot_be_probed_is_refused(trained, arguments, message):
    assert message in toto("probe", *arguments, cwd=trained, code=2).stderr


def test_mamba_has_neither_rope_nor_full_attention(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=2)
    raw["backbone"] = {"name": "mamba", "preset": "tiny", "num_layers": 1}
    toto("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    done = toto("probe", "--set", "rope_base=50000", cwd=tmp_path, code=2)
    assert "backbone mamba has no RoPE" in done.stderr
    done = toto("probe", "--set", "attention=full", cwd=tmp_path, code=2)
    assert "mamba does not work under full. It takes causal" in done.stderr


def test_packed_pictures_are_probed(tmp_path, tiny_folders):
    """Pictures of two classes, four a sequence as in training."""
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        for label in ("a", "b"):
            (tmp_path / "raw" / split / label).mkdir(parents=True)
            for number in numbers:
                picture = tiny_folders / "pictures" / f"{number % 7}.png"
                shutil.copy(picture, tmp_path / "raw" / split / label / f"{number}.png")
        toto("pack", f"raw/{split}", f"data/{split}", cwd=tmp_path)
    raw = tiny_recipe(tmp_path / "data", steps=2)
    raw["data"]["sources"] = {"pictures": {"path": "train", "validation": "val"}}
    toto("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    losses = []
    for context in ("single", "packed"):
        toto("probe", *QUICK, "--layers", "1", "--set", f"context={context}", cwd=tmp_path)
        losses.append([row["loss"] for row in rows_of(tmp_path)])
    assert losses[0] != losses[1]
    done = toto("probe", "--set", "test_clips=2", cwd=tmp_path, code=2)
    assert "holds pictures, which have one" in done.stderr
    done = toto("probe", "--set", "frames=2", cwd=tmp_path, code=2)
    assert "holds pictures, which are read alone" in done.stderr
