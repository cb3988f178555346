"""Every verb once, in order, as a user types them; and what bad input is answered with."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from command_line import newest, toto, toto_process, write_recipe
from tiny_runs import tiny_recipe

from toto.data.index import Dataset
from toto.errors import CheckpointError, RunError
from toto.jobs.finetune import FinetuneRequest, finetune_recipe
from toto.jobs.history import first_start
from toto.jobs.sources import MAKERS
from toto.jobs.trained import resolve_run
from toto.recipe.reader import check_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_datasets):
    """A folder in which `toto train` ran."""
    folder = tmp_path_factory.mktemp("user")
    recipe = write_recipe(folder, tiny_recipe(tiny_datasets, steps=4))
    toto("train", recipe, cwd=folder)
    return folder


def training_losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_probe_generate_and_report_take_the_newest_run(trained):
    done = toto("probe", "--pool", "attention", "--set", "epochs=1", cwd=trained)
    assert "taking the newest next-token checkpoint: runs/tiny/checkpoints" in done.stdout
    rows = [
        json.loads(row) for row in (newest(trained / "runs/tiny", "probe") / "results.jsonl").open()
    ]
    assert {row["layer"] for row in rows} == {0, 1}
    assert {row["head"] for row in rows} == {"attention"}
    assert (newest(trained / "runs/tiny", "probe") / "curve.png").is_file()
    toto("generate", "--frames", "2", "--samples", "2", cwd=trained)
    assert (newest(trained / "runs/tiny", "generate") / "sample-1.gif").is_file()
    toto("report", cwd=trained)
    page = (trained / "runs/tiny/report.html").read_text()
    assert "not run" not in page


def test_a_model_with_a_prefix_is_probed_and_never_predicts_from_less(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=2) | {"mask": {"name": "prefix", "frames": 3}}
    assert raw["clip"]["frames"] == 4
    toto("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    toto("probe", "--pool", "average", "--set", "epochs=1", cwd=tmp_path)
    command = ("generate", "--samples", "1", "--frames")
    done = toto(*command, "1", "--prompt-frames", "2", cwd=tmp_path, code=2)
    assert "a prefix of 3 frames as a whole, and would have to predict from 2" in done.stderr
    done = toto(*command, "2", cwd=tmp_path, code=2)
    assert "a prompt of 3, --frames 2, a context of 4" in done.stderr
    done = toto(*command, "1", "--prompt-frames", "0", cwd=tmp_path, code=2)
    assert "predict from 0: a prompt of 0" in done.stderr
    done = toto(*command, "1", cwd=tmp_path)
    assert "1 frame after 3 given" in done.stdout


def test_a_bare_resume_goes_on_with_the_newest_finetuning(trained, tmp_path):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    done = toto("finetune", "--resume", cwd=tmp_path, code=2)
    assert "toto finetune RUN --resume" in done.stderr
    command = ["finetune", "--resolution", "8x8", "--steps", "4", "--output", "runs/finer"]
    toto(*command, cwd=tmp_path)
    expected = training_losses(tmp_path / "runs/finer")
    shutil.rmtree(tmp_path / "runs/finer/checkpoints/step-00000004")
    for again in (command[:-2], ["finetune"]):
        done = toto(*again, "--resume", cwd=tmp_path)
        found = "going on with the newest fine-tuning: runs/finer/checkpoints/step-00000003"
        assert found in done.stdout
        assert training_losses(tmp_path / "runs/finer") == expected
        begun = first_start(tmp_path / "runs/finer")
        assert begun is not None
        assert begun.command == f"toto {' '.join(command)}", "which the page says to repeat"
        shutil.rmtree(tmp_path / "runs/finer/checkpoints/step-00000004")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["finer", "tiny"]


def test_a_finetuning_leaves_the_machine_of_its_run(tiny_datasets):
    raw = tiny_recipe(tiny_datasets, device="cuda", precision="bf16")
    trained = check_recipe(raw | {"name": "tiny", "output": "runs/tiny"}, "tiny")
    request = FinetuneRequest(
        run=None, resolution=None, frames=None, rope_base=None, steps=None, overrides=(),
        output=None, resume=False, imports=(),
    )  # fmt: skip
    settings = finetune_recipe(trained, "c", request, []).training
    assert (settings.device, settings.precision) == ("auto", "auto")
    request = replace(request, overrides=("training.precision=fp32", "training.device=cpu"))
    settings = finetune_recipe(trained, "c", request, []).training
    assert (settings.device, settings.precision) == ("cpu", "fp32")


def test_broken_checkpoints_are_left_out_while_another_is_whole(
    trained, tmp_path, monkeypatch, capsys
):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copytree(tmp_path / "runs/tiny", tmp_path / "runs/later")
    os.utime(tmp_path / "runs/later/checkpoints/step-00000004")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/later/checkpoints/step-00000004/model.safetensors").write_bytes(b"cut")
    assert resolve_run(None).checkpoint == Path("runs/later/checkpoints/step-00000003")
    assert "left out: the checkpoint runs/later" in capsys.readouterr().out
    (tmp_path / "runs/later/checkpoints/step-00000003/checkpoint.json").write_text("{")
    assert resolve_run(None).checkpoint == Path("runs/tiny/checkpoints/step-00000004")
    for meta in tmp_path.glob("runs/tiny/checkpoints/*/checkpoint.json"):
        meta.write_text("{")
    with pytest.raises(CheckpointError, match="no complete next-token checkpoint under runs/"):
        resolve_run(None)


def test_patches_train_and_refuse_to_generate(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=3)
    raw["tokenizer"] = {"name": "patch", "patch_size": 8}
    toto("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    toto("probe", "--set", "epochs=1", cwd=tmp_path)
    done = toto("generate", cwd=tmp_path, code=2)
    assert "patch inputs" in done.stderr
    toto("report", cwd=tmp_path)


def test_a_users_parts_train_from_a_recipe(tmp_path, tiny_datasets, request):
    plugin = request.path.parents[1] / "plugins" / "parts.py"
    (tmp_path / "parts.py").write_text(plugin.read_text())
    raw = tiny_recipe(tiny_datasets, steps=2)
    raw["imports"] = ["parts.py"]
    raw["tokenizer"] = {"name": "grey"}
    raw["backbone"] = {"name": "running_mean", "width": 16, "num_layers": 2}
    toto_process("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    done = toto_process("probe", cwd=tmp_path, code=2)
    assert "unknown tokenizer 'grey'" in done.stderr, "a checkpoint imports no code by itself"
    toto("probe", "--pool", "max", "--set", "epochs=1", "--import", "parts.py", cwd=tmp_path)
    greedy = ["--temperature", "0"]
    toto("generate", "--frames", "1", *greedy, "--import", "parts.py", cwd=tmp_path)


def test_token_shards_made_once_train_like_tokenizing_in_the_run(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=3)
    raw["data"]["root"] = str(tmp_path / "data")
    shutil.copytree(tiny_datasets, tmp_path / "data")
    raw["data"]["sources"] = {"videos": raw["data"]["sources"]["videos"]}
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--output", "runs/in-run", cwd=tmp_path)
    toto("train", recipe, "--output", "runs/once", "--set", "data.tokens=once", cwd=tmp_path)
    first, second = (training_losses(tmp_path / run) for run in ("runs/in-run", "runs/once"))
    assert first == pytest.approx(second, rel=1e-6), "frames of 32 px have one crop"
    toto("tokenize", "data/videos-val", "data/mine", "--recipe", recipe, cwd=tmp_path)
    other = ["--set", "tokenizer.weights=random:1", "--set", "data.sources.videos.path=mine"]
    done = toto("train", recipe, "--output", "runs/x", *other, cwd=tmp_path, code=2)
    assert "tokens of another tokenizer" in done.stderr


def test_a_tokenizer_is_trained_and_then_used(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=3)
    del raw["backbone"]
    raw["verb"] = "tokenizer"
    raw["tokenizer"] |= {"weights": None}
    done = toto("tokenizer", "train", write_recipe(tmp_path, raw), cwd=tmp_path)
    assert "PSNR" in done.stdout
    assert "collapsed" not in done.stdout
    baselines = json.loads((tmp_path / "runs/tiny/baselines.json").read_text())
    assert 5 < baselines["cell mean"]["all"] < baselines["k-means"]["all"] < 60
    assert "all: cell mean at the same grid: PSNR" in done.stdout
    assert "warning: the tokenizer keeps less" in done.stdout, "after three steps"
    many = ["--set", "tokenizer.num_codes=3000", "--output", "runs/many"]
    done = toto("tokenizer", "train", tmp_path / "tiny.yaml", *many, cwd=tmp_path)
    assert "warning: the codes have collapsed: perplexity" in done.stdout
    assert "of 3,000 codes on validation images, below 30.0. Raise task.usage_weight" in done.stdout
    evaluate = ["tokenizer", "eval", tiny_datasets / "videos-val", "quality"]
    toto(*evaluate, "--tokenizer", "runs/tiny", "--samples", "4", cwd=tmp_path)
    evaluated = json.loads((tmp_path / "quality/evaluation.json").read_text())["tokenizers"]
    assert evaluated["tiny"]["resolution"] == 32, "as the run was trained"
    done = toto(*evaluate[:3], "x", "--tokenizer", "tiny.yaml", cwd=tmp_path, code=2)
    assert "tokenizer.weights: missing" in done.stderr
    use = tiny_recipe(tiny_datasets, steps=2)
    use["tokenizer"]["weights"] = "runs/tiny/tokenizer.safetensors"
    toto("train", write_recipe(tmp_path, use, "use.yaml"), cwd=tmp_path)
    done = toto("train", tmp_path / "tiny.yaml", "--output", "x", cwd=tmp_path, code=2)
    assert "toto tokenizer train" in done.stderr
    shards = ["tokenize", tiny_datasets / "videos-val", "out"]
    done = toto(*shards, "--recipe", "tiny.yaml", cwd=tmp_path, code=2)
    assert "tokenizer.weights: missing" in done.stderr
    assert not (tmp_path / "out").exists()


def test_datasets_of_one_name_have_tokens_of_their_own(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=2)
    for folder, original in (("a", "videos-train"), ("b", "videos-val")):
        shutil.copytree(tiny_datasets / original, tmp_path / "data" / folder / "clips")
    raw["data"] = {
        "root": "data",
        "tokens": "once",
        "sources": {"clips": {"path": "a/clips", "validation": "b/clips"}},
    }
    toto("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    made = [Dataset.open(path).num_samples for path in (tmp_path / "data/tokens").iterdir()]
    kept = [Dataset.open(tiny_datasets / n).num_samples for n in ("videos-train", "videos-val")]
    assert sorted(made) == sorted(kept)


def test_samples_are_made_where_one_is_missing(tmp_path, tiny_datasets, monkeypatch):
    raw = tiny_recipe(tiny_datasets, steps=2)
    raw["data"] |= {"root": "data", "make": "samples"}
    (tmp_path / "data").mkdir()  # left by an earlier start that failed
    made = []

    def make(root, *, progress):
        made.append(root)
        shutil.copytree(tiny_datasets, root, dirs_exist_ok=True)

    monkeypatch.setitem(MAKERS, "samples", make)
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, cwd=tmp_path)
    toto("train", recipe, "--output", "runs/again", cwd=tmp_path)
    assert made == [Path("data")]


def test_a_pool_that_is_no_yaml_is_refused(trained):
    done = toto("probe", "--pool", "[a", cwd=trained, code=2)
    assert "--pool [a: no YAML" in done.stderr


def test_a_missing_run_names_those_that_exist(trained, tmp_path):
    done = toto("probe", "runs/tinny", cwd=trained, code=2)
    assert "no run at runs/tinny" in done.stderr
    assert "runs/tiny" in done.stderr
    done = toto("report", cwd=tmp_path, code=2)
    assert "no complete checkpoint under runs/" in done.stderr
    done = toto("probe", cwd=tmp_path, code=2)
    assert "no complete next-token checkpoint under runs/" in done.stderr


def test_a_checkpoint_of_another_tokenizer_is_refused(trained, tmp_path):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (path,) = (tmp_path / "runs/tiny/checkpoints").glob("step-00000004/checkpoint.json")
    path.write_text(path.read_text().replace("random:0", "random:1"))
    done = toto("generate", cwd=tmp_path, code=2)
    assert "was trained with another tokenizer" in done.stderr


def test_bad_folders_are_answered_with_the_mend(tmp_path, tiny_folders):
    (tmp_path / "empty").mkdir()
    done = toto("pack", "empty", "out", cwd=tmp_path, code=2)
    assert "empty" in done.stderr
    shutil.copytree(tiny_folders / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures/broken.png").write_bytes(b"no picture")
    done = toto("pack", "pictures", "out", cwd=tmp_path, code=2)
    assert "broken.png" in done.stderr
    assert "--skip-broken" in done.stderr
    assert not (tmp_path / "out").exists()
    done = toto("pack", "pictures", "out", "--skip-broken", cwd=tmp_path)
    assert "left out broken.png" in done.stdout
    assert "7 images" in done.stdout
    assert "1 of 1 shards are finished; going on" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out", "pictures"]


def test_pack_takes_layouts_tars_and_workers(tmp_path, tiny_folders):
    for split, name in (("train", "n01440764"), ("train", "n01443537"), ("val", "n01440764")):
        shutil.copytree(tiny_folders / "pictures", tmp_path / "imagenet" / split / name)
    options = ["--as", "imagenet1k", "--split", "val", "--workers", "2"]
    done = toto("pack", "imagenet", "val", *options, cwd=tmp_path)
    assert "1 of the 1,000 classes are there" in done.stdout
    assert "7 of 7 files" in done.stdout
    (tmp_path / "tars").mkdir()
    shutil.copy(tmp_path / "val/shard-00000.tar", tmp_path / "tars/00000.tar")
    done = toto("pack", "tars", "again", cwd=tmp_path)
    assert "WebDataset tars, one shard each: 1; labels of .cls files alone" in done.stdout
    assert Dataset.open(tmp_path / "again").num_samples == 7
    done = toto("pack", "imagenet", "x", "--as", "imagnet", cwd=tmp_path, code=2)
    assert "toto knows folder, imagenet1k, imagenet21k, kinetics400" in done.stderr
    done = toto("pack", "imagenet", "x", "--split", "test", cwd=tmp_path, code=2)
    assert "folders there: train, val" in done.stderr


def test_ranks_of_torchrun_share_a_tokenizing(tmp_path, tiny_datasets, monkeypatch):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets))
    command = ["tokenize", tiny_datasets / "pictures", "out", "--recipe", recipe]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    done = toto(*command, cwd=tmp_path)
    assert "rank 1 is through, others are not" in done.stdout
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("RANK", "0")
    toto(*command, cwd=tmp_path)
    assert Dataset.open(tmp_path / "out").num_samples == 7


def test_tokenize_codes_several_crops_and_says_the_pace(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets))
    command = ["tokenize", tiny_datasets / "pictures", "out", "--recipe", recipe]
    done = toto(*command, "--crops", "3", cwd=tmp_path)
    assert f"{7 * 3 * 16} of {7 * 3 * 16} tokens" in done.stdout
    assert "21 frames of 4 × 4 codes at 32 px" in done.stdout
    assert Dataset.open(tmp_path / "out").tokens.crops == 3
    videos = ["tokenize", tiny_datasets / "videos-val", "v", "--recipe", recipe]
    done = toto(*videos, "--crops", "2", cwd=tmp_path, code=2)
    assert "Leave out --crops" in done.stderr


def test_short_videos_are_answered_with_the_mend(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets))
    done = toto("train", recipe, "--set", "clip.stride=4", cwd=tmp_path, code=2)
    assert "clip.stride" in done.stderr
    assert "12" in done.stderr
    toto("train", recipe, "--set", "training.steps=2", cwd=tmp_path)


def test_a_run_is_exported_and_taken_in_again(trained, tmp_path, tiny_datasets):
    toto("export", "hf", str(trained / "runs/tiny"), "exported", cwd=tmp_path)
    assert (tmp_path / "exported/model.safetensors").is_file()
    assert (tmp_path / "exported/README.md").is_file()
    done = toto("export", "hf", str(trained / "runs/tiny"), "exported", cwd=tmp_path, code=2)
    assert "exported exists already" in done.stderr


def test_recomputed_activations_train_the_same(trained, tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=4))
    toto("train", recipe, "--set", "training.recompute=true", cwd=tmp_path)
    assert training_losses(tmp_path / "runs/tiny") == training_losses(trained / "runs/tiny")


def test_baselines_of_a_small_source_are_counted_over_few_epochs(
    tmp_path, tiny_datasets, monkeypatch
):
    monkeypatch.setattr("toto.jobs.held_out.baseline_tokens", lambda recipe: 2**30)
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=2))
    counted = {}
    for epochs in (1, 3):
        monkeypatch.setattr("toto.jobs.held_out.BASELINE_EPOCHS", epochs)
        done = toto("train", recipe, "--output", f"runs/{epochs}", cwd=tmp_path)
        (line,) = re.findall(r"counting tokens of videos: (\d+) of \1 batches", done.stdout)
        counted[epochs] = int(line)
    assert counted[3] == 3 * counted[1]


def test_what_went_wrong_besides_is_printed_below_the_error(tmp_path, monkeypatch):
    error = RunError("step 9: the loss is not finite")
    error.add_note("the checkpoint of step 8 could not be saved")
    monkeypatch.setattr("toto.cli.main.app", mock.Mock(side_effect=error))
    done = toto("train", cwd=tmp_path, code=1)
    assert done.stderr.splitlines() == [f"error: {error}", f"besides: {error.__notes__[0]}"]
