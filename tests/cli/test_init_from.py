"""`init_from`: weights that fit by shape and would compute something else are refused."""

from __future__ import annotations

import pytest
import yaml
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe


@pytest.fixture(scope="module")
def parent(tmp_path_factory, tiny_datasets):
    """A folder with `runs/tiny`, of two steps, and its recipe."""
    folder = tmp_path_factory.mktemp("parent")
    raw = tiny_recipe(tiny_datasets, steps=2)
    toto("train", write_recipe(folder, raw), cwd=folder)
    return folder


def start(parent, *settings: str, code: int = 0, name: str = "next"):
    changes = [part for setting in settings for part in ("--set", setting)]
    return toto(
        "train", parent / "tiny.yaml", "--set", "init_from=runs/tiny", *changes,
        "--output", f"runs/{name}", cwd=parent, code=code,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["backbone.num_heads=4"], "backbone.num_heads: 2 in the parent, 4 in this recipe"),
        (["backbone.norm_eps=1e-3"], "backbone.norm_eps: 1e-05 in the parent, 0.001 in this"),
        (["backbone.mup_base_width=32"], "backbone.mup_base_width: null in the parent, 32 in"),
        (["backbone.tie_embeddings=false"], "backbone.tie_embeddings: true in the parent, false"),
        (["backbone.num_layers=2"], "backbone.num_layers: 1 in the parent, 2 in this recipe"),
        (["backbone={name: gpt2, preset: tiny}"], 'backbone.name: "llama" in the parent, "gpt2"'),
        (["tokenizer.weights=random:1"], 'tokenizer.weights: "random:0" in the parent, "random:1"'),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(parent, settings, line):
    done = start(parent, *settings, code=2)
    message = " ".join(done.stderr.split())
    assert line in message
    assert "in this recipe" in message
    assert "runs/tiny/checkpoints/step-00000002" in message
    assert "Write the parent's values in this recipe" in message
    assert not (parent / "runs/next/checkpoints").exists()


def test_it_is_refused_before_the_data_are_opened(parent):
    """`data.tokens: once` may encode them for hours."""
    done = start(parent, "backbone.num_heads=4", "data.root=nowhere", code=2)
    assert "backbone.num_heads: 2 in the parent" in done.stderr


def test_the_fix_names_the_parents_values(parent):
    done = start(parent, "backbone.num_heads=4", "backbone.norm_eps=1e-3", code=2)
    message = " ".join(done.stderr.split())
    # num_kv_heads follows num_heads where the recipe gives the latter alone.
    assert "backbone: {num_heads: 2, num_kv_heads: 2, norm_eps: 1e-05}" in message


def test_what_fine_tuning_changes_on_purpose_is_taken_and_said(parent):
    done = start(
        parent, "backbone.rope_base=50000", "mask={name: prefix, frames: 1}", "clip.frames=2",
        name="carried",
    )  # fmt: skip
    assert "backbone.rope_base: 10000.0 in the parent, 50000.0 here" in done.stdout
    assert "mask: causal in the parent, prefix here" in done.stdout
    assert "frames × tokens: 4 × 4 × 4 in the parent, 2 × 4 × 4 here" in done.stdout


def test_an_exported_parent_is_compared_too(parent):
    toto("export", "hf", "runs/tiny", "exported", cwd=parent)
    done = start(parent, "init_from=hf:exported", "backbone.norm_eps=1e-3", code=2)
    message = " ".join(done.stderr.split())
    assert "rms_norm_eps (backbone.norm_eps): 1e-05 in config.json, 0.001 here" in message
    done = start(parent, "init_from=hf:exported", "backbone.rope_base=500", name="from_hf")
    assert "(backbone.rope_base): 10000.0 in config.json, 500.0 here" in done.stdout
    done = start(parent, "init_from=hf:exported", "tokenizer.weights=random:1", code=2)
    assert "takes the codes of another tokenizer" in " ".join(done.stderr.split())


def test_finetune_refuses_another_backbone_than_its_runs(parent):
    done = toto("finetune", "runs/tiny", "--steps", "2", "--set", "backbone.num_heads=4",
                "--output", "runs/other_heads", cwd=parent, code=2)  # fmt: skip
    assert "backbone.num_heads: 2 in the parent, 4 in this recipe" in " ".join(done.stderr.split())
    done = toto("finetune", "runs/tiny", "--steps", "2", "--rope-base", "50000",
                "--output", "runs/carried_further", cwd=parent)  # fmt: skip
    assert "backbone.rope_base: 10000.0 in the parent, 50000.0 here" in done.stdout
    recipe = yaml.safe_load((parent / "runs/carried_further/recipe.yaml").read_text())
    assert recipe["backbone"]["rope_base"] == 50_000
