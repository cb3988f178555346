"""Every command that reads a checkpoint refuses one whose weights have changed."""

import os

import pytest
import torch
from command_line import toto, toto_process, write_recipe
from tiny_runs import tiny_recipe
from toy_davis import make_davis

import toto as library
from toto.errors import CheckpointError
from toto.tokenizers.config import DvaeConfig
from toto.tokenizers.weights import load_weights, save_weights

WEIGHTS = "checkpoints/step-00000002/model.safetensors"


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_datasets):
    """A folder with the run `runs/tiny`, one bit of whose weights is flipped."""
    home = tmp_path_factory.mktemp("damaged")
    raw = tiny_recipe(tiny_datasets, steps=2, baselines=False)
    toto("train", write_recipe(home, raw), cwd=home)
    flip_a_bit(home / "runs/tiny" / WEIGHTS, -2)
    return home


@pytest.fixture(scope="module")
def readers(home, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=2) | {"init_from": str(home / "runs/tiny")}
    make_davis(home / "davis")
    child = write_recipe(home, raw, "child.yaml")
    data = tiny_datasets / "videos-val"
    return {
        "probe": ("probe", "runs/tiny"),
        "generate": ("generate", "runs/tiny"),
        "features": ("features", "runs/tiny", data, "features"),
        "track": ("track", "runs/tiny", "--davis", "davis"),
        "export": ("export", "hf", "runs/tiny", "exported"),
        "report": ("report", "runs/tiny"),
        "token-loss": ("analyze", "token-loss", "runs/tiny", data),
        "finetune": ("finetune", "runs/tiny", "--output", "runs/tuned"),
        "init_from": ("train", child, "--output", "runs/child"),
        "resume": ("train", "tiny.yaml", "--resume"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "probe",
        "generate",
        "features",
        "track",
        "export",
        "report",
        "token-loss",
        "finetune",
        "init_from",
        "resume",
    ],
)
def test_a_flipped_bit_is_refused(home, readers, name):
    done = toto(*readers[name], cwd=home, code=2)
    assert "the content of model.safetensors is not what was written" in done.stderr


def test_load_refuses_it(home):
    with pytest.raises(CheckpointError, match=r"the content of model\.safetensors is not"):
        library.load(home / "runs/tiny")


def test_the_user_may_skip_the_verification_and_is_told(home):
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOTO_SKIP_CHECKSUMS": "1"}
    done = toto_process("export", "hf", "runs/tiny", "unverified", cwd=home, env=env)
    assert "TOTO_SKIP_CHECKSUMS is set: the checksums of" in done.stderr + done.stdout


def test_the_weights_of_a_tokenizer_are_verified(tmp_path):
    config = DvaeConfig(
        num_codes=8, width=4, blocks_per_group=1, decoder_stem=4, weights="random:0"
    )
    path = tmp_path / "tokenizer.safetensors"
    save_weights(config.build(), path)
    fresh = config.model_copy(update={"weights": "random:1"}).build()
    load_weights(fresh, str(path))
    flip_a_bit(path, -2)
    with pytest.raises(CheckpointError, match="is not what was written"):
        load_weights(fresh, str(path))
    assert all(torch.isfinite(tensor).all() for tensor in fresh.state_dict().values())
