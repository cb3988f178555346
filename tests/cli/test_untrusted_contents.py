"""Damaged or hostile contents of runs, datasets and exports are refused by name."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import pytest
import torch
from command_line import toto, write_recipe
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_recipe

from toto.training.checkpoint import META_FILE, MODEL_FILE, FileRecord

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_datasets):
    """A folder with runs/tiny and its export."""
    folder = tmp_path_factory.mktemp("home")
    toto("train", write_recipe(folder, tiny_recipe(tiny_datasets, steps=2)), cwd=folder)
    toto("export", "hf", "runs/tiny", "exported", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def diverged(home):
    """A run of intact files with a weight that is NaN."""
    run = home / "runs/diverged"
    shutil.copytree(home / "runs/tiny", run)
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    tensors = load_file(checkpoint / MODEL_FILE)
    tensors["backbone.blocks.0.attention_norm.weight"][0] = torch.nan
    save_file(tensors, checkpoint / MODEL_FILE)
    meta = json.loads((checkpoint / META_FILE).read_text())
    meta["files"][MODEL_FILE] = FileRecord.of(checkpoint / MODEL_FILE).model_dump()
    (checkpoint / META_FILE).write_text(json.dumps(meta))
    return run


@pytest.mark.parametrize(
    "words",
    [
        "probe runs/diverged",
        "features runs/diverged {data}/videos-val out",
        "export hf runs/diverged out",
        "analyze token-loss runs/diverged {data}/videos-val --out out",
        "generate runs/diverged --samples 1 --out out",
        "train tiny.yaml --set init_from=runs/diverged --output out",
    ],
)
def test_weights_that_are_not_finite_are_refused(home, diverged, tiny_datasets, words):
    done = toto(*words.format(data=tiny_datasets).split(), cwd=home, code=2)
    message = " ".join(done.stderr.split())
    assert (
        "backbone.blocks.0.attention_norm.weight holds values that are NaN or infinite" in message
    )
    assert not (home / "out").exists()
    assert not (diverged / "eval").exists()


def test_a_failed_init_from_leaves_no_folder(home):
    for wrong in ("runs/none", "hf:none"):
        toto("train", "tiny.yaml", "--set", f"init_from={wrong}", "--output", "runs/x", cwd=home,
             code=2)  # fmt: skip
    wrong = ("--set", "init_from=runs/tiny", "--set", "backbone.num_heads=4")
    toto("train", "tiny.yaml", *wrong, "--output", "runs/x", cwd=home, code=2)
    assert not (home / "runs/x").exists()


def test_a_report_embeds_only_files_of_its_run(home, tmp_path):
    run = home / "runs/shared"
    shutil.copytree(home / "runs/tiny", run)
    toto("generate", "runs/shared", "--samples", "1", cwd=home)
    (record,) = run.glob("eval/generate-*/generated.json")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    whole = json.loads(record.read_text())
    sheet = record.parent / whole["samples"][0]["sheet"]
    for name in (str(tmp_path / "secret.png"), "generated.json"):
        whole["samples"][0]["sheet"] = name
        record.write_text(json.dumps(whole))
        assert "is not put into the page" in toto("report", "runs/shared", cwd=home, code=2).stderr
    whole["samples"][0]["sheet"] = sheet.name
    record.write_text(json.dumps(whole))
    toto("report", "runs/shared", cwd=home)
    sheet.unlink()
    sheet.symlink_to(tmp_path / "secret.png")
    assert "is not put into the page" in toto("report", "runs/shared", cwd=home, code=2).stderr


@pytest.mark.parametrize("name", ["config.json", "toto.json"])
def test_deeply_nested_json_of_an_export_is_named(home, tmp_path, name):
    shutil.copytree(home / "exported", tmp_path / "deep")
    (tmp_path / "deep" / name).write_text(DEEP)
    words = ("--set", f"init_from=hf:{tmp_path}/deep", "--output", "runs/x")
    done = toto("train", "tiny.yaml", *words, cwd=home, code=2)
    assert f"deep/{name} cannot be read" in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["manifest.json", "excluded.jsonl"])
def test_deeply_nested_json_of_a_dataset_is_named(tiny_datasets, tmp_path, name):
    shutil.copytree(tiny_datasets / "pictures", tmp_path / "d")
    path = tmp_path / "d" / name
    path.write_text(DEEP + "\n")
    done = toto("doctor", "d", cwd=tmp_path, code=2)
    assert "damaged" in done.stderr
    assert name.partition(".")[0] in done.stderr


def test_a_sparse_member_of_a_tar_is_refused(tmp_path):
    """Of 1 TiB, as the header says, in a file of 10 KB."""
    (tmp_path / "src").mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    with tarfile.open(tmp_path / "src/a.tar", "w") as archive:
        good = tarfile.TarInfo("good.png")
        good.size = len(picture.getvalue())
        archive.addfile(good, io.BytesIO(picture.getvalue()))
        holes = tarfile.TarInfo("holes.png")
        holes.pax_headers = {
            "GNU.sparse.size": str(2**40),
            "GNU.sparse.map": f"0,{good.size},{2**40},0",
        }
        holes.size = good.size
        archive.addfile(holes, io.BytesIO(picture.getvalue()))
    done = toto("pack", "src", "out", cwd=tmp_path, code=2)
    assert "a sparse file in the tar" in " ".join(done.stderr.split())
    toto("pack", "src", "out", "--skip-broken", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
