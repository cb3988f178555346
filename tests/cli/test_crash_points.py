"""Every command that writes: killed before any file operation, and given again, nothing differs."""

from __future__ import annotations

import random
import re
import shutil
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from command_line import toto, write_recipe
from crash_points import VQGAN, forks, fresh, snapshot
from tiny_runs import tiny_recipe
from toy_davis import make_davis

from toto.tokenizers.config import VqganConfig

SAMPLED = 2
"""Points of each command in the default suite; with the slow marker, all of them."""
TIMES = r".*(history\.jsonl|metrics\.jsonl|checkpoint\.json|\.log)"
"""Files that say when something ran, how fast, and as which process."""
EVENTS = r".*/events\.out\.tfevents.*"
"""TensorBoard begins a file at each start, named by the time and the process."""

DONE = "exists already"


@dataclass(frozen=True)
class Verb:
    """A command, and what it is given again as where it refuses what it left."""

    words: str
    again: str | None = None


FINETUNE = "finetune runs/tiny --steps 2 --set training.save_every=1 --output runs/tuned"

VERBS = {
    "pack": Verb("pack videos-train packed"),
    "tokenize": Verb("tokenize data/pictures tokens --recipe tiny.yaml"),
    "doctor": Verb("doctor data/twice --fix"),
    "train": Verb(
        "train tiny.yaml --output runs/new", again="train tiny.yaml --output runs/new --resume"
    ),
    "probe": Verb("probe runs/tiny --set epochs=1"),
    "generate": Verb("generate runs/tiny --samples 1 --out generated"),
    "features": Verb("features runs/tiny data/videos-val features"),
    "report": Verb("report runs/tiny"),
    "export": Verb("export hf runs/tiny exported"),
    "token-loss": Verb("analyze token-loss runs/tiny data/videos-val"),
    "ngrams": Verb("analyze ngrams data/tokens --out ngrams"),
    "quality": Verb("tokenizer eval data/pictures quality --tokenizer tiny.yaml"),
    "finetune": Verb(FINETUNE, again=f"{FINETUNE} --resume"),
    "tokenizer train": Verb(
        "tokenizer train dvae.yaml --output runs/new",
        again="tokenizer train dvae.yaml --output runs/new --resume",
    ),
    "tokenizer report": Verb("report runs/tokenizer"),
    "convert": Verb("tokenizer convert vqgan.ckpt --out new/vqgan.safetensors"),
    "weights get": Verb("weights get vqgan-1024 --from vqgan.ckpt"),
    "track": Verb("track runs/tiny --davis davis --resolution 32 --layers 1 --sequences one"),
    "overwrite": Verb("generate runs/tiny --samples 1 --out earlier --overwrite"),
    "coordinates": Verb(
        "analyze coordinates '{name: llama, preset: tiny, num_layers: 1}' --out slopes "
        "--widths 64,128 --steps 1"
    ),
    "view": Verb("view data/videos-val page.html --samples 1 --frames 2 --resolution 32"),
    "ablate": Verb("ablate architecture --small --show"),
    "paper": Verb("report --paper"),
    "samples": Verb("moving digits"),
}


@pytest.fixture(scope="module")
def world(tiny_folders, tiny_datasets, tmp_path_factory):
    """What the commands need: folders, datasets (one with a duplicate), tokens, and a run."""
    world = tmp_path_factory.mktemp("world")
    for name in ("videos-train", "videos-val", "pictures"):
        shutil.copytree(tiny_folders / name, world / name)
        shutil.copytree(tiny_datasets / name, world / "data" / name)
    write_recipe(world, tiny_recipe("data", steps=2, save_every=1, eval_every=2))
    toto("train", "tiny.yaml", cwd=world)
    toto("tokenize", "data/pictures", "data/tokens", "--recipe", "tiny.yaml", cwd=world)
    shutil.copytree(world / "pictures", world / "twice")
    shutil.copy(world / "twice/0.png", world / "twice/again.png")
    toto("pack", "twice", "data/twice", cwd=world)
    make_davis(world / "davis", frames=3)
    toto("generate", "runs/tiny", "--samples", "2", "--out", "earlier", cwd=world)
    state = VqganConfig(weights="random:0", **VQGAN).build().state_dict()
    torch.save({"state_dict": OrderedDict(state)}, world / "vqgan.ckpt")
    recipe = tiny_recipe("data", steps=2, save_every=1, eval_every=2) | {"verb": "tokenizer"}
    recipe["tokenizer"] |= {"weights": None}
    del recipe["backbone"]
    write_recipe(world, recipe, "dvae.yaml")
    toto("tokenizer", "train", "dvae.yaml", "--output", "runs/tokenizer", cwd=world)
    return world


@pytest.fixture(scope="module")
def clean():
    with forks() as process:
        yield process


def contents(folder):
    found = snapshot(folder, re.compile(f"{TIMES}|{EVENTS}"))
    return {name: content for name, content in found.items() if not re.fullmatch(EVENTS, name)}


def check(verb, clean, world, tmp_path, points):
    """The same bytes as without a kill, at each of the points that `points` picks of so many."""
    folder, log = tmp_path / "w", tmp_path / "log"
    fresh(world, folder)
    code, operations = clean.run(verb.words, folder, log)
    assert code == 0, log.read_text()
    expected = contents(folder)
    assert operations > 0
    faults = []
    for point in points(operations):
        fresh(world, folder)
        code, _ = clean.run(verb.words, folder, log, kill_before=point)
        if code == 0:  # a thread did fewer operations this time
            continue
        assert code == -9, log.read_text()
        code, _ = clean.run(verb.words, folder, log)
        if code and verb.again:
            code, _ = clean.run(verb.again, folder, log)
        found = contents(folder)
        # Killed after the last rename the result is there, and the command says so.
        if (code and DONE not in log.read_text()) or found != expected:
            names = sorted(n for n in expected | found if expected.get(n) != found.get(n))
            faults.append(f"killed before {point} of {operations}: code {code}, {names[:6]}")
            faults.append(log.read_text()[-600:])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", VERBS)
def test_killed_before_some_operation_and_given_again(name, clean, world, tmp_path):
    chosen = random.Random(name)
    points = lambda n: sorted(chosen.sample(range(n), min(n, SAMPLED)))  # noqa: E731
    check(VERBS[name], clean, world, tmp_path, points)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", VERBS)
def test_killed_before_each_operation_and_given_again(name, clean, world, tmp_path):
    check(VERBS[name], clean, world, tmp_path, range)
