"""toto report of tokenizer runs, as a user types it; of models it runs in test_verbs."""

from __future__ import annotations

import json
import shutil

import pytest
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

from toto.recipe.yaml_reader import read_yaml

VQGAN = {
    "name": "vqgan",
    "num_codes": 16,
    "code_dim": 8,
    "latent_dim": 8,
    "width": 8,
    "width_multipliers": [1, 1, 1, 1],
    "attention_levels": [],
    "blocks_per_level": 1,
    "norm_groups": 4,
}


def tokenizer_recipe(datasets, tokenizer=None, **changes):
    raw = tiny_recipe(datasets, steps=4, eval_every=2) | {"verb": "tokenizer"} | changes
    del raw["backbone"]
    if tokenizer is None:
        raw["tokenizer"] |= {"weights": None}
    else:
        raw["tokenizer"] = tokenizer
    return raw


@pytest.fixture(scope="module")
def dvae(tmp_path_factory, tiny_datasets):
    """A folder with a finished run, whose recipe leaves `compile` at its default."""
    folder = tmp_path_factory.mktemp("dvae")
    raw = tokenizer_recipe(tiny_datasets)
    del raw["training"]["compile"]
    done = toto("tokenizer", "train", write_recipe(folder, raw), cwd=folder)
    assert "machine: cpu, fp32, eager" in done.stdout
    return folder


def copied(dvae, tmp_path):
    shutil.copytree(dvae / "runs", tmp_path / "runs")
    return tmp_path / "runs/tiny"


def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_run_of_a_dvae_has_a_report(dvae, tmp_path):
    run = copied(dvae, tmp_path)
    done = toto("report", "runs/tiny", cwd=tmp_path)
    assert "runs/tiny/report.html" in done.stdout
    html = page(run)
    evaluated = json.loads((run / "evaluation.json").read_text())["videos"]
    assert f"a PSNR of {evaluated['psnr']:.2f} dB" in html
    for shown in ("Reconstruction, −ln p (nll)", "KL to uniform", "Codes by rank"):
        assert shown in html
    assert html.count("<img") == 1, "one source has held-out pictures"
    assert "compiled" not in html
    assert read_yaml(run / "recipe.yaml")["training"]["compile"] is False


def test_the_counts_of_codes_are_those_of_the_evaluation(dvae):
    counts = json.loads((dvae / "runs/tiny/code_counts.json").read_text())
    evaluated = json.loads((dvae / "runs/tiny/evaluation.json").read_text())
    assert list(counts) == ["videos", "all"]
    assert counts["videos"] == counts["all"]
    assert len(counts["all"]) == 32
    assert sum(counts["all"]) == 4 * 4 * 4 * 4, "sequences × frames × grid"
    used = sum(count > 0 for count in counts["all"])
    assert used / 32 == evaluated["all"]["codebook_use"]


def test_a_vqgan_that_is_under_way_has_a_report_of_its_checkpoint(tmp_path, tiny_datasets):
    task = {
        "name": "vqgan",
        "discriminator_start": 3,
        "discriminator_width": 4,
        "discriminator_layers": 1,
        "restart_after": 2,
    }
    raw = tokenizer_recipe(tiny_datasets, VQGAN, task=task)
    toto("tokenizer", "train", write_recipe(tmp_path, raw), cwd=tmp_path)
    run = tmp_path / "runs/tiny"
    for name in ("tokenizer.safetensors", "evaluation.json", "code_counts.json", "history.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/step-00000004")
    toto("report", cwd=tmp_path)
    html = page(run)
    for shown in ("Codebook and commitment", "Discriminator", "Adaptive weight"):
        assert shown in html
    assert "The reconstructions are of the checkpoint of step 3" in html
    assert "Not counted: there is no code_counts.json" in html
    assert "toto tokenizer train recipe.yaml" in html
    assert html.count("<img") == 1


def test_without_a_run_the_newest_is_taken_and_a_probe_still_needs_a_model(dvae, tmp_path):
    run = copied(dvae, tmp_path)
    done = toto("report", cwd=tmp_path)
    assert "taking the newest checkpoint: runs/tiny/checkpoints/step-00000004" in done.stdout
    assert (run / "report.html").is_file()
    done = toto("probe", "runs/tiny", cwd=tmp_path, code=2)
    assert "is of `verb: tokenizer`, and a next-token run is needed" in done.stderr
    done = toto("probe", cwd=tmp_path, code=2)
    assert "no complete next-token checkpoint under runs/" in done.stderr
    shutil.rmtree(run)
    done = toto("report", cwd=tmp_path, code=2)
    assert "no complete checkpoint under runs/" in done.stderr


def test_a_tokenizer_run_that_asked_for_compile_is_resumed(dvae, tmp_path):
    run = copied(dvae, tmp_path)
    shutil.rmtree(run / "checkpoints/step-00000004")
    path = run / "checkpoints/step-00000003/checkpoint.json"
    meta = json.loads(path.read_text())
    meta["recipe"]["training"]["compile"] = True
    path.write_text(json.dumps(meta))
    done = toto("tokenizer", "train", dvae / "tiny.yaml", "--resume", cwd=tmp_path)
    assert "resuming from runs/tiny/checkpoints/step-00000003" in done.stdout
