from __future__ import annotations

import json
import os

import pytest
import torch

from toto.errors import RecipeError, UserError
from toto.recipe.reader import (
    check_recipe,
    find_recipe,
    list_recipes,
    merge,
    read_probe_recipe,
    read_recipe,
)
from toto.recipe.yaml_reader import dump_yaml
from toto.tasks.discriminator import PatchDiscriminator

GOOD = {
    "verb": "train",
    "name": "good",
    "output": "runs/good",
    "tokenizer": {"name": "dvae", "weights": "random:0", "num_codes": 16, "width": 8},
    "backbone": {"name": "llama", "preset": "tiny"},
    "clip": {"frames": 2, "stride": 1, "resolution": 16},
    "data": {"sources": {"digits": {"path": "a"}}},
    "schedule": {"warmup_steps": 1},
    "training": {"steps": 4, "batch_tokens": 32, "micro_batch": 2},
}


def wrong(**changes):
    return merge(json.loads(json.dumps(GOOD)), changes)


def problems_of(raw):
    with pytest.raises(RecipeError) as caught:
        check_recipe(raw, "r.yaml")
    return {problem.path: problem for problem in caught.value.problems}


def test_a_good_recipe_round_trips_through_json_and_yaml(tmp_path):
    recipe = check_recipe(GOOD, "r.yaml")
    dumped = recipe.model_dump(mode="json")
    assert check_recipe(json.loads(json.dumps(dumped)), "r") == recipe
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(dumped))
    assert read_recipe(str(path)) == recipe
    assert dumped["tokenizer"]["name"] == "dvae"
    assert dumped["backbone"]["ffn_dim"] == 192, "a preset is resolved into numbers"


def test_official_weights_of_the_published_sizes_need_not_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "none"))
    for tokenizer in (
        {"name": "dvae", "weights": "official:dvae"},
        {"name": "vqgan", "weights": "official:vqgan-1024", "num_codes": 1024},
        {"name": "vqgan", "weights": "official:vqgan-16384"},
    ):
        raw = GOOD | {"tokenizer": tokenizer}
        assert check_recipe(raw, "r.yaml").tokenizer.weights == tokenizer["weights"]
    assert not (tmp_path / "none").exists()


INF = float("inf")
DVAE = GOOD["tokenizer"]
PATCHES = {"tokenizer": {"name": "patch", "patch_size": 8}}

# fmt: off
ERRORS = [
    ({"tokenizer": {"num_cods": 4}}, "tokenizer.num_cods", "unknown key", "mean num_codes?"),
    ({"tokenizer": {"num_codes": "many"}}, "tokenizer.num_codes", "'many' does not fit", "Change"),
    ({"tokenizer": {"name": "dvea"}}, "tokenizer", "unknown tokenizer 'dvea'", ""),
    ({"tokenizer": {"weights": None}}, "tokenizer.weights", "missing", "toto:dvae-tiny"),
    ({"tokenizer": {"weights": "w.pkl"}}, "tokenizer.weights", "names no weights", ""),
    ({"backbone": {"preset": "lage"}}, "backbone", "unknown preset 'lage'", ""),
    ({"backbone": {"num_heads": 5}}, "backbone", "does not divide by num_heads 5", ""),
    ({"trainig": {}}, "trainig", "unknown key", "Did you mean training?"),
    ({"training": {"batch_tokens": 30}}, "training.batch_tokens", "not a multiple of", "Take 32"),
    ({"training": {"micro_batch": 5}}, "training.micro_batch", "a step has 4", "Take 4"),
    ({"training": {"precision": "fp16"}}, "training.precision", "does not fit", "Change"),
    ({"schedule": {"warmup_steps": 9}}, "schedule.warmup_steps", "run of 4", "fewer"),
    ({"training": {"keep_every": 501}}, "training.keep_every", "no multiple of", "Take 1000"),
    (
        {"training": {"deepspeed": {"extra": {"scheduler": {"type": "WarmupLR"}}}}},
        "training.deepspeed.extra.scheduler",
        "toto sees to it itself",
        "Leave it out",
    ),
    (
        {"training": {"deepspeed": {"zero_stage": 0, "offload_optimizer": True}}},
        "training.deepspeed.offload_optimizer",
        "at zero_stage 0 the optimizer's state stays on the GPU",
        "Take zero_stage 1, 2 or 3",
    ),
    ({"clip": {"resolution": 20}}, "clip.resolution", "no multiple of 8 px", "Change it"),
    ({"task": {"name": "dvae"}}, "task.name", "no task of `verb: train`", "toto list tasks"),
    (
        {"data": {"sources": {"digits": {"path": "a", "validation": "a"}}}},
        "data.sources.digits.validation",
        "also trained on",
        "Hold out",
    ),
    ({"data": {"sources": {"digits": {"pth": "b"}}}}, "data.sources.digits.pth", "unknown", "path"),
    (
        {"tokenizer": {"name": "patch", "patch_size": 8}, "data": {"tokens": "once"}},
        "data.tokens",
        "gives patches",
        "in_run",
    ),
    (
        {"data": {"root": "d", "sources": {"digits": {"path": "a", "validation": "./x/../a"}}}},
        "data.sources.digits.validation",
        "also trained on, by source digits",
        "Hold out",
    ),
    ({"optimizer": {"lr": -1}}, "optimizer.lr", "greater than 0", "Change"),
    ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas.1", "less than 1", "Change"),
    ({"data": {"sources": {"digits": {"weight": INF}}}}, "data.sources.digits.weight", "inf", ""),
    ({"seed": 10**23}, "seed", "less than", "Change"),
    ({"tokenizer": {"weights": f"random:{10**23}"}}, "tokenizer.weights", "names no", "18 digits"),
    ({"tokenizer": {"weights": "official:dva"}}, "tokenizer.weights", "'dva'", "mean 'dvae'?"),
    (
        {"tokenizer": {"weights": "official:vqgan-1024"}},
        "tokenizer",
        "official:vqgan-1024 is a vqgan, not a dvae",
        "name: vqgan",
    ),
    (
        {"tokenizer": {"weights": "official:dvae"}},
        "tokenizer",
        "official:dvae has other sizes",
        "num_codes: 8192, width: 256",
    ),
    ({"tokenizer": {"name": None}}, "tokenizer", "has no name", "Tokenizers are dvae"),
    ({"tokenizer": {"name": 3}}, "tokenizer", "the name 3 is no word", "Tokenizers are dvae"),
    ({"tokenizer": {"name": ["dvae"]}}, "tokenizer", "['dvae'] is no word", "Tokenizers are"),
    ({"backbone": {"preset": ["small"]}}, "backbone", "unknown preset ['small']", "'small'?"),
    ({"verb": ["train"]}, "verb", "unknown verb ['train']", "train, tokenizer"),
    ({"imports": 5}, "imports", "5 is no list", "imports: [mine.py]"),
    ({"imports": "grey.py"}, "imports", "'grey.py' is no list", "imports: [grey.py]"),
    ({"imports": [["grey.py"]]}, "imports", "is no list of modules", "imports: [mine.py]"),
    (PATCHES | {"target_tokenizer": {"name": "dvea"}}, "target_tokenizer", "unknown tokenizer", ""),
    (
        PATCHES | {"target_tokenizer": DVAE | {"num_cods": 4}},
        "target_tokenizer.num_cods",
        "unknown key; DvaeConfig has",
        "mean num_codes?",
    ),
    (
        PATCHES | {"target_tokenizer": {"name": "dvae"}},
        "target_tokenizer.weights",
        "missing",
        "toto:dvae-tiny",
    ),
    ({"target_tokenizer": DVAE}, "target_tokenizer", "dvae gives codes", "take patches in"),
    (
        {"target_tokenizer": {"name": "patch", "patch_size": 8}},
        "target_tokenizer",
        "dvae gives codes, which are their own targets",
        "Remove target_tokenizer",
    ),
    (
        PATCHES | {"target_tokenizer": {"name": "patch"}},
        "target_tokenizer",
        "patch gives patches, and patch inputs regress",
        "such as dvae",
    ),
    (
        {"tokenizer": {"name": "patch", "patch_size": 4}, "target_tokenizer": DVAE},
        "target_tokenizer",
        "dvae gives no grid of 4 × 4 tokens at any resolution up to 16 px, and the inputs have",
        "larger patches",
    ),
    (
        {"backbone": {"patch_readout": "mlp"}},
        "backbone.patch_readout",
        "mlp regresses patches, and the targets are codes of dvae",
        "patch_readout: linear",
    ),
    (
        PATCHES | {"target_tokenizer": DVAE, "backbone": {"patch_readout": "mlp"}},
        "backbone.patch_readout",
        "the targets are codes of dvae",
        "patch_readout: linear",
    ),
    (PATCHES | {"clip": {"resolution": 20}}, "clip.resolution", "no multiple of 8 px", "Change"),
]
# fmt: on


@pytest.mark.parametrize(("change", "path", "what", "mend"), ERRORS)
def test_each_mistake_says_where_what_and_the_mend(change, path, what, mend):
    problem = problems_of(wrong(**change))[path]
    assert what in problem.what
    assert mend in problem.mend


def test_patches_may_predict_codes_of_a_coarser_picture(tmp_path):
    raw = wrong(
        tokenizer={"name": "patch", "patch_size": 16},
        target_tokenizer=DVAE,
        clip={"resolution": 64},
        training={"batch_tokens": 64},
    )
    recipe = check_recipe(raw, "r.yaml")
    assert recipe.target.registered_name == "dvae"
    assert recipe.target_resolution == 32
    dumped = recipe.model_dump(mode="json")
    assert check_recipe(json.loads(json.dumps(dumped)), "r") == recipe
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(dumped))
    assert read_recipe(str(path)) == recipe
    assert read_recipe(str(path), ["target_tokenizer=null"]).target_tokenizer is None


def test_without_a_target_tokenizer_the_inputs_are_the_targets():
    recipe = check_recipe(GOOD, "r.yaml")
    assert recipe.target is recipe.tokenizer
    assert recipe.target_resolution == recipe.clip.resolution
    assert recipe.model_dump(mode="json")["target_tokenizer"] is None


def test_mistakes_in_both_tokenizers_come_at_once():
    raw = wrong(**PATCHES, target_tokenizer={"name": "dvae", "num_cods": 4})
    raw["backbone"]["patch_readout"] = "mlp"
    raw["clip"]["resolution"] = 20
    assert set(problems_of(raw)) == {
        "clip.resolution",
        "target_tokenizer.num_cods",
        "target_tokenizer.weights",
        "backbone.patch_readout",
    }


def test_imports_that_are_no_list_are_refused_in_a_file_too(tmp_path):
    for imports in (5, "grey.py", [3]):
        path = write(tmp_path / "r.yaml", GOOD | {"imports": imports})
        with pytest.raises(RecipeError, match=r"imports: .* is no list"):
            read_recipe(path)


def test_a_task_trains_the_tokenizer_that_it_is_for():
    raw = wrong(verb="tokenizer", tokenizer={"name": "patch", "patch_size": 8})
    del raw["backbone"]
    problem = problems_of(raw)["task.name"]
    assert problem.what == "task dvae trains tokenizer dvae, not patch"
    raw["tokenizer"] = {"name": "vqgan"}
    assert problems_of(raw)["task.name"].what == "task dvae trains tokenizer dvae, not vqgan"
    assert check_recipe(raw | {"task": "vqgan"}, "r.yaml").task.registered_name == "vqgan"
    raw["tokenizer"] = GOOD["tokenizer"]
    assert check_recipe(raw, "r.yaml").verb == "tokenizer"


TINY_VQGAN = {
    "name": "vqgan", "num_codes": 8, "width": 8, "width_multipliers": [1, 2], "norm_groups": 4,
    "attention_levels": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "start", "resolution", "refused"),
    [(3, 2, 16, True), (3, 4, 16, False), (2, 2, 16, False), (2, 2, 8, True)],
)
def test_a_discriminator_that_would_see_no_patch_is_refused(layers, start, resolution, refused):
    task = {"name": "vqgan", "discriminator_start": start, "discriminator_layers": layers}
    raw = wrong(verb="tokenizer", clip={"resolution": resolution})
    raw |= {"tokenizer": TINY_VQGAN, "task": task}
    raw["training"]["batch_tokens"] = 4 * 2 * (resolution // 2) ** 2
    del raw["backbone"]
    discriminator = PatchDiscriminator(4, layers)
    pictures = torch.zeros(1, 3, resolution, resolution)
    if not refused:
        check_recipe(raw, "r.yaml")
        assert start == 4 or discriminator(pictures).numel() > 0
        return
    problem = problems_of(raw)["task.discriminator_layers"]
    assert f"they need {3 * 2**layers} px" in problem.what
    with pytest.raises((RuntimeError, ValueError)):
        discriminator(pictures)


def test_a_source_of_a_tokenizer_is_not_called_as_all_of_them():
    raw = wrong(verb="tokenizer", data={"sources": {"all": {"path": "b"}}})
    del raw["backbone"]
    assert "holds all sources together" in problems_of(raw)["data.sources.all"].what
    check_recipe(wrong(data={"sources": {"all": {"path": "b"}}}), "r.yaml")


def test_all_mistakes_come_at_once_those_across_sections_too():
    raw = wrong(
        optimizer={"lr": "fast"},
        training={"batch_tokens": 30},
        tokenizer={"num_cods": 4},
        schedule={"warmup_steps": 100},
        task={"name": "dvae"},
    )
    raw["tokenizer"]["extra"] = 1
    raw["clip"]["resolution"] = 20
    paths = set(problems_of(raw))
    assert "clip.resolution" in paths, "an unknown key in tokenizer hides no mistake beside it"
    assert paths >= {"optimizer.lr", "tokenizer.num_cods", "tokenizer.extra"}
    assert paths >= {"schedule.warmup_steps", "task.name"}


def test_a_missing_section_is_named_with_its_meaning():
    raw = wrong()
    del raw["training"]
    del raw["data"]["sources"]["digits"]["path"]
    found = problems_of(raw)
    assert found["training"].what == "missing"
    assert "a packed dataset" in found["data.sources.digits.path"].mend


def test_an_unknown_verb_lists_the_verbs():
    assert "train, tokenizer" in problems_of(wrong(verb="trian"))["verb"].mend


def write(path, value):
    path.write_text(dump_yaml(value))
    return str(path)


def test_base_is_merged_and_a_renamed_component_replaces_the_section(tmp_path):
    write(tmp_path / "base.yaml", GOOD)
    over = {
        "base": "base.yaml",
        "name": "over",
        "tokenizer": {"name": "patch", "patch_size": 8},
        "training": {"steps": 7},
    }
    recipe = read_recipe(write(tmp_path / "over.yaml", over))
    assert recipe.tokenizer.registered_name == "patch"
    assert recipe.training.steps == 7
    assert recipe.training.batch_tokens == 32


def test_the_sources_of_a_recipe_replace_those_of_its_base(tmp_path):
    write(tmp_path / "base.yaml", {**GOOD, "data": {**GOOD["data"], "workers": 2}})
    own = {"base": "base.yaml", "data": {"sources": {"mine": {"path": "mine-train"}}}}
    recipe = read_recipe(write(tmp_path / "own.yaml", own))
    assert list(recipe.data.sources) == ["mine"]
    assert recipe.data.workers == 2
    untouched = read_recipe(write(tmp_path / "same.yaml", {"base": "base.yaml"}))
    assert list(untouched.data.sources) == list(GOOD["data"]["sources"])


def test_bases_form_a_chain(tmp_path):
    write(tmp_path / "a.yaml", GOOD)
    write(tmp_path / "b.yaml", {"base": "a.yaml", "training": {"steps": 5}, "seed": 3})
    recipe = read_recipe(write(tmp_path / "c.yaml", {"base": "b", "training": {"steps": 6}}))
    assert (recipe.name, recipe.training.steps, recipe.seed) == ("good", 6, 3)


def test_a_cycle_of_bases_is_named(tmp_path):
    for name, base in (("start", "a"), ("a", "b"), ("b", "a")):
        write(tmp_path / f"{name}.yaml", {"base": base})
    with pytest.raises(RecipeError, match=r"\S*/a\.yaml → \S*/b\.yaml → \S*/a\.yaml") as caught:
        read_recipe(str(tmp_path / "start.yaml"))
    assert "start.yaml →" not in str(caught.value), "the first file is not part of the cycle"
    with pytest.raises(RecipeError, match=r"own\.yaml → \S*own\.yaml"):
        read_recipe(write(tmp_path / "own.yaml", {"base": "own"}))


@pytest.mark.parametrize("base", ["recipes/quickstart.yaml", "quickstart.yaml", "quickstart"])
def test_a_base_may_be_a_shipped_recipe(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mine.yaml", {"base": base, "training": {"steps": 77}})
    assert read_recipe(path).training.steps == 77
    assert read_recipe(path).data.make == "samples"
    own = tmp_path / (base if base.endswith(".yaml") else f"{base}.yaml")
    own.parent.mkdir(exist_ok=True)
    write(own, GOOD)
    assert read_recipe(path).data.make is None, "a file of that name goes first"


def test_a_shipped_recipe_builds_on_a_shipped_one_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ablation_dvae16.yaml", GOOD)
    assert read_recipe("arch_gpt2").tokenizer.weights == "official:dvae"


@pytest.mark.parametrize("base", ["quickstrat.yaml", "elsewhere/quickstart.yaml"])
def test_a_base_that_is_nowhere_is_refused(tmp_path, monkeypatch, base):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there" / "mine.yaml", {"base": base})
    with pytest.raises(RecipeError, match=rf"no file {base}.*Did you mean quickstart\?") as caught:
        read_recipe(path)
    assert str(tmp_path / "here") in str(caught.value)
    assert str(tmp_path / "there") in str(caught.value)


def with_paths(base=None):
    raw = wrong(
        tokenizer={"weights": "small.safetensors"},
        data={"root": "packed", "sources": {"digits": {"path": "a"}}},
        init_from="parent",
    )
    return raw | {"imports": ["plug.py"]} | ({"base": base} if base else {})


def make_what_paths_name(folder):
    folder.mkdir(exist_ok=True)
    for name in ("small.safetensors", "plug.py"):
        (folder / name).write_text("")
    for name in ("packed", "parent"):
        (folder / name).mkdir()


def paths_of(recipe):
    return (recipe.imports, recipe.data.root, recipe.tokenizer.weights, recipe.init_from)


def test_paths_start_at_the_working_directory(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    make_what_paths_name(here)
    there.mkdir()
    monkeypatch.chdir(here)
    recipe = read_recipe(write(there / "r.yaml", with_paths()))
    found = ((str(here / "plug.py"),), "packed", "small.safetensors", "parent")
    assert paths_of(recipe) == found


def test_paths_are_found_in_the_folder_of_the_file_that_names_them(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    make_what_paths_name(there)
    here.mkdir()
    monkeypatch.chdir(here)
    write(there / "r.yaml", with_paths())
    found = ((str(there / "plug.py"),), "../there/packed", "../there/small.safetensors")
    assert paths_of(read_recipe("../there/r.yaml")) == (*found, "../there/parent")
    # A recipe in a third folder that builds on it means the same files.
    (tmp_path / "third").mkdir()
    write(tmp_path / "third" / "s.yaml", {"base": "../there/r.yaml", "init_from": "hf:parent"})
    recipe = read_recipe("../third/s.yaml")
    assert [os.path.realpath(path) for path in paths_of(recipe)[1:3]] == [
        str(there / "packed"),
        str(there / "small.safetensors"),
    ]
    assert recipe.init_from == "hf:parent", "found nowhere: as written"


@pytest.mark.parametrize("key", ["imports", "data.root", "tokenizer.weights", "init_from"])
def test_a_path_that_is_in_both_folders_is_refused(tmp_path, monkeypatch, key):
    here, there = tmp_path / "here", tmp_path / "there"
    make_what_paths_name(here)
    make_what_paths_name(there)
    monkeypatch.chdir(here)
    raw = with_paths()
    keep = {"imports": ["plug.py"]} if key == "imports" else {"imports": []}
    raw |= keep
    if key != "data.root":
        del raw["data"]["root"]
    if key != "tokenizer.weights":
        raw["tokenizer"]["weights"] = "random:0"
    if key != "init_from":
        del raw["init_from"]
    path = write(there / "r.yaml", raw)
    with pytest.raises(RecipeError, match=rf"{key}: \S+ is in the working directory") as caught:
        read_recipe(path)
    assert str(here) in str(caught.value)
    assert str(there) in str(caught.value)
    monkeypatch.chdir(there)
    read_recipe(path)  # one folder, one file


def test_a_plug_in_that_is_nowhere_names_both_folders(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "there" / "r.yaml", GOOD | {"imports": ["mine.py"]})
    with pytest.raises(RecipeError, match=r"imports: no file mine\.py") as caught:
        read_recipe(path)
    for folder in (tmp_path, tmp_path / "there"):
        assert f"({folder})" in str(caught.value)


def test_overrides_are_yaml_and_checked_like_the_file(tmp_path):
    path = write(tmp_path / "good.yaml", GOOD)
    recipe = read_recipe(path, ["optimizer.lr=3e-3", "training.steps=9", "backbone.num_layers=1"])
    assert (recipe.optimizer.lr, recipe.training.steps, recipe.backbone.num_layers) == (3e-3, 9, 1)
    with pytest.raises(RecipeError, match=r"training\.step: unknown key.*Did you mean steps\?"):
        read_recipe(path, ["training.step=9"])
    with pytest.raises(RecipeError, match="key=value"):
        read_recipe(path, ["training.steps"])


def test_an_override_reaches_into_a_component_written_as_a_bare_name(tmp_path):
    raw = wrong()
    raw["tokenizer"] = "patch"
    path = write(tmp_path / "good.yaml", raw)
    recipe = read_recipe(path, ["tokenizer.patch_size=8"])
    assert recipe.tokenizer.patch_size == 8


def test_names_fall_back_to_the_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("recipes/quickstart.yaml") == find_recipe("quickstart")
    with pytest.raises(UserError, match="Did you mean quickstart"):
        find_recipe("quikstart")


def test_another_folder_is_not_searched_among_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("missing/quickstart.yaml", "../recipes/quickstart.yaml", "/quickstart"):
        with pytest.raises(UserError, match=f"no recipe {name}"):
            find_recipe(name)
    assert find_recipe("./recipes/quickstart").is_file()


@pytest.mark.parametrize("name", [".", "", "/"])
def test_a_folder_is_no_recipe(name):
    with pytest.raises(UserError, match="that is a folder"):
        find_recipe(name)


def test_a_suffix_is_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.yaml", GOOD)
    with pytest.raises(UserError, match=r"no recipe mine\.v2"):
        find_recipe("mine.v2")
    write(tmp_path / "mine.v2.yaml", GOOD)
    assert find_recipe("mine.v2").name == "mine.v2.yaml"


def test_every_shipped_recipe_is_sound_and_has_a_title():
    listed = list_recipes()
    assert listed
    for entry in listed:
        assert entry.title
        if entry.verb == "probe":
            assert "# Expected:" in entry.path.read_text()
            read_probe_recipe(str(entry.path))
        else:
            assert read_recipe(str(entry.path)).layout.num_visual > 0
        header = entry.path.read_text().partition("verb:")[0]
        for line in ("# Paper:", "# Command:", "# Hardware:", "# Measured:"):
            assert line in header


def test_a_missing_import_is_refused(tmp_path):
    path = write(tmp_path / "r.yaml", GOOD | {"imports": ["./mine.py"]})
    with pytest.raises(UserError, match="no file"):
        read_recipe(path)
    path = write(tmp_path / "r.yaml", GOOD | {"imports": ["no_such_module_here"]})
    with pytest.raises(UserError, match="no module"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("mask", "place", "said"),
    [
        ("{name: full}", "mask.name", "reads the one that it shall predict"),
        ("{name: prefix, frames: 16}", "mask.frames", "leaves none to predict"),
        ("{name: prefix}", "mask", "goes with it alone"),
        ("{name: causal, frames: 2}", "mask", "goes with it alone"),
    ],
)
def test_masks_that_leave_nothing_to_predict_are_refused(mask: str, place: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe("quickstart", overrides=[f"mask={mask}"])
    assert place in str(caught.value)
    assert said in str(caught.value)


def test_tokenizers_do_not_recompute() -> None:
    with pytest.raises(RecipeError, match="keep all they compute"):
        read_recipe("tokenizer_dvae_tiny", overrides=["training.recompute=true"])


def test_protocols_of_probes_are_read_overridden_and_kept_apart(tmp_path):
    path = write(tmp_path / "p.yaml", {"verb": "probe", "probes": {"epochs": 3}})
    protocol = read_probe_recipe(path, ["probes.heads=[attention]"])
    assert (protocol.name, protocol.probes.epochs, len(protocol.probes.heads)) == ("p", 3, 1)
    with pytest.raises(RecipeError, match=r"trains no model. toto probe RUN --recipe takes it"):
        read_recipe(path)
    with pytest.raises(RecipeError, match="'train' is no protocol of probes"):
        read_probe_recipe("recipes/quickstart.yaml")
    wrong = {"verb": "probe", "probes": {"epoch": 3, "test_crops": 2}}
    with pytest.raises(RecipeError, match=r"probes.epoch: unknown key") as refused:
        read_probe_recipe(write(tmp_path / "w.yaml", wrong))
    assert "probes.test_crops" in str(refused.value)


def test_protocols_of_the_paper_hold_its_numbers():
    k400 = read_probe_recipe("probe_k400").probes
    assert (k400.frames, k400.resolution, k400.test_clips, k400.test_crops) == (16, 128, 10, 3)
    linear = read_probe_recipe("probe_imagenet_linear_256").probes
    assert (linear.epochs, linear.resolution, linear.optimizer) == (90, 256, "lars")
    assert 0.1 * linear.batch_size / 256 in linear.learning_rates
    for name in ("probe_imagenet_attention_128", "probe_imagenet_attention_256"):
        probes = read_probe_recipe(name).probes
        assert probes.epochs == 90
        assert 6e-5 in probes.learning_rates
    (head,) = read_probe_recipe("probe_k400_mlp").probes.heads
    assert head.label == "cross_attention(num_heads=16)"
