"""Published weights as a user fetches, converts and uses them."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from command_line import toto, write_recipe
from flaky_server import serving
from tiny_runs import tiny_recipe

from toto.data import fetch
from toto.tokenizers.config import DvaeConfig, VqganConfig
from toto.tokenizers.official import OFFICIAL

DVAE = {"num_codes": 32, "width": 8, "blocks_per_group": 1, "decoder_stem": 8}
VQGAN = {"num_codes": 16, "code_dim": 8, "latent_dim": 8, "width": 32, "blocks_per_level": 1}
VQGAN |= {"width_multipliers": [1, 1, 1, 1], "attention_levels": [3]}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of what the authors would serve: small, and with random weights."""
    dall_e = pytest.importorskip("dall_e", reason="the published dVAE is not installed")
    folder = tmp_path_factory.mktemp("published")
    sizes = {"n_hid": 8, "n_blk_per_group": 1, "vocab_size": 32}
    torch.save(dall_e.Encoder(**sizes), folder / "encoder.pkl")
    torch.save(dall_e.Decoder(n_init=8, **sizes), folder / "decoder.pkl")
    state = VqganConfig(weights="random:0", **VQGAN).build().state_dict()
    state["loss.discriminator.main.0.weight"] = torch.ones(2)
    torch.save({"state_dict": OrderedDict(state), "epoch": 1}, folder / "last.ckpt")
    return folder


@pytest.fixture
def server(published, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_SECONDS", 0.01)
    with serving(published) as server:
        yield server


@pytest.fixture
def home(tmp_path, server, monkeypatch):
    """Where weights go; the small files take the place of the published ones."""
    for name, sizes in (("dvae", DVAE), ("vqgan-1024", VQGAN)):
        official = OFFICIAL[name]
        files = tuple(
            replace(file, address=f"{server.address}/{file.name}") for file in official.files
        )
        monkeypatch.setitem(OFFICIAL, name, replace(official, files=files, sizes=sizes))
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "weights"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def recipe_of(tmp_path, data, **tokenizer):
    raw = tiny_recipe(data, steps=2)
    raw["tokenizer"] = tokenizer
    return write_recipe(tmp_path, raw)


def tokenize(recipe, data, **expected):
    return toto("tokenize", data / "pictures", "tokens", "--recipe", recipe, **expected)


def test_the_dvae_is_fetched_once_and_then_used(tmp_path, tiny_datasets, server, home):
    recipe = recipe_of(tmp_path, tiny_datasets, name="dvae", weights="official:dvae", **DVAE)
    assert "official:dvae" in toto("show", recipe, cwd=tmp_path).stdout
    refused = tokenize(recipe, tiny_datasets, cwd=tmp_path, code=2)
    assert "toto weights get dvae" in " ".join(refused.stderr.split())
    assert sum(server.served.values()) == 0, "nothing is fetched unasked"

    got = toto("weights", "get", "dvae", cwd=tmp_path).stdout
    assert f"fetching {server.address}/encoder.pkl: 0 of 0 MB" in got
    assert f"{server.address}/encoder.pkl: " in got
    assert "in a recipe: tokenizer: {name: dvae, " in got
    assert "weights: official:dvae}" in got
    assert names(home) == ["dvae.json", "dvae.safetensors"]
    tokenize(recipe, tiny_datasets, cwd=tmp_path)
    again = toto("weights", "get", "dvae", cwd=tmp_path).stdout
    assert "is here already" in again
    assert server.served == {"encoder.pkl": 1, "decoder.pkl": 1}


def test_a_vqgan_is_fetched_from_a_checkpoint(tmp_path, tiny_datasets, home):
    got = toto("weights", "get", "vqgan-1024", cwd=tmp_path).stdout
    assert "ignored: loss, 1 tensor" in got
    assert names(home) == ["vqgan-1024.json", "vqgan-1024.safetensors"]
    tokenizer = {"name": "vqgan", "weights": "official:vqgan-1024"} | VQGAN
    tokenize(recipe_of(tmp_path, tiny_datasets, **tokenizer), tiny_datasets, cwd=tmp_path)


def test_the_list_tells_what_is_here(tmp_path, published, home):
    before = toto("weights", "list", cwd=tmp_path).stdout
    assert "not here: toto weights get dvae" in before
    assert "980 MB" in before
    assert "Modified MIT" in before
    toto("weights", "get", "dvae", "--from", published, cwd=tmp_path)
    after = toto("weights", "list", cwd=tmp_path).stdout
    assert f"here: {home}/dvae.safetensors" in after
    digest = json.loads((home / "dvae.json").read_text())["encoder.pkl"]["sha256"]
    assert f"SHA-256 {digest}" in after


@pytest.mark.parametrize("kind", ["folder", "address", "address/", "relative"])
def test_other_sources_give_the_same_weights(tmp_path, published, server, home, kind):
    source = {
        "folder": published,
        "address": server.address,
        "address/": f"{server.address}/",
        "relative": "mirror",
    }[kind]
    (tmp_path / "mirror").symlink_to(published)
    got = toto("weights", "get", "dvae", "--from", source, cwd=tmp_path).stdout
    there = server.address if "address" in kind else tmp_path / "mirror"
    assert f"{published if kind == 'folder' else there}/encoder.pkl: " in got
    weights = DvaeConfig(weights=str(home / "dvae.safetensors"), **DVAE).build()
    assert weights.fingerprint()[:12] in got


@pytest.mark.parametrize("source", ["{published}", "{published}/last.ckpt", "{address}/last.ckpt"])
def test_one_file_may_be_named_itself(tmp_path, published, server, home, source):
    source = source.format(published=published, address=server.address)
    toto("weights", "get", "vqgan-1024", "--from", source, cwd=tmp_path)
    assert (home / "vqgan-1024.safetensors").is_file()


def test_an_address_with_a_query_is_asked_for_whole(tmp_path, published, server, home, monkeypatch):
    """As both VQGANs are published; the server takes the query for a part of the name."""
    query = "?p=last.ckpt&dl=1"
    (published / "files").mkdir(exist_ok=True)
    (published / "files" / query).write_bytes((published / "last.ckpt").read_bytes())
    official = OFFICIAL["vqgan-1024"]
    file = replace(official.files[0], address=f"{server.address}/files/{query}")
    monkeypatch.setitem(OFFICIAL, "vqgan-1024", replace(official, files=(file,)))
    toto("weights", "get", "vqgan-1024", cwd=tmp_path)
    assert server.served == {query: 1}
    assert names(home) == ["vqgan-1024.json", "vqgan-1024.safetensors"]


def test_a_changed_file_is_refused_until_it_is_accepted(tmp_path, published, server, home):
    toto("weights", "get", "dvae", "--from", published, cwd=tmp_path)
    kept = (home / "dvae.safetensors").read_bytes()
    record = home / "dvae.json"
    before = json.loads(record.read_text())
    server.content = {"decoder.pkl": (published / "decoder.pkl").read_bytes() + b"more"}
    done = toto("weights", "get", "dvae", "--from", server.address, cwd=tmp_path, code=2)
    error = " ".join(done.stderr.split())
    assert f"{server.address}/decoder.pkl is not the file that was received before" in error
    assert before["decoder.pkl"]["sha256"] in error
    assert f"that of {published}/decoder.pkl was" in error
    assert f"remove {record}" in error
    assert json.loads(record.read_text()) == before
    assert (home / "dvae.safetensors").read_bytes() == kept
    assert names(home) == ["dvae.json", "dvae.safetensors"]

    server.content = {}
    toto("weights", "get", "dvae", "--from", server.address, cwd=tmp_path)
    assert json.loads(record.read_text()) == before, "the first source stays recorded"
    (home / "dvae.safetensors").unlink()
    record.unlink()
    toto("weights", "get", "dvae", cwd=tmp_path)
    assert json.loads(record.read_text())["decoder.pkl"]["source"].startswith(server.address)


def test_a_fetch_that_breaks_is_tried_again(tmp_path, server, home):
    server.faults = {"encoder.pkl": ["truncate", 503]}
    toto("weights", "get", "dvae", cwd=tmp_path)
    assert server.served["encoder.pkl"] == 3
    assert names(home) == ["dvae.json", "dvae.safetensors"]


@pytest.mark.parametrize("fault", ["drop", "truncate", 404, 503])
def test_what_does_not_come_leaves_nothing_and_says_what_to_do(tmp_path, server, home, fault):
    server.always = {"decoder.pkl": fault}
    done = toto("weights", "get", "dvae", cwd=tmp_path, code=2)
    error = " ".join(done.stderr.split())
    assert f"{server.address}/decoder.pkl" in error
    assert "toto weights get dvae --from FOLDER, which holds encoder.pkl and decoder.pkl" in error
    assert not home.exists()


def test_no_network_is_one_message_with_address_and_way_out(tmp_path, server, home):
    address = server.address
    server.shutdown()
    server.server_close()
    done = toto("weights", "get", "vqgan-1024", cwd=tmp_path, code=2)
    error = " ".join(done.stderr.split())
    assert f"{address}/last.ckpt cannot be fetched" in error
    assert "toto weights get vqgan-1024 --from FILE" in error


def test_what_is_not_the_weights_is_refused(tmp_path, published, server, home):
    server.content = {"encoder.pkl": b"<html>log in first</html>"}
    done = toto("weights", "get", "dvae", cwd=tmp_path, code=2)
    assert "is no file of torch.save" in " ".join(done.stderr.split())
    assert f"dvae from {server.address}/encoder.pkl" in done.stderr
    done = toto("weights", "get", "vqgan-16384", "--from", published, cwd=tmp_path, code=2)
    error = " ".join(done.stderr.split())
    assert '"num_codes":16,' in error
    assert 'where vqgan-16384 is {"name":"vqgan","num_codes":16384' in error
    assert not home.exists(), "a refused file is not recorded either"


def test_mistakes_are_named(tmp_path, published, home):
    for arguments, message in (
        (["dva"], "unknown official weights 'dva'; there are dvae, vqgan-1024, vqgan-16384"),
        (["dvae", "--from", published / "encoder.pkl"], "is one file, and dvae is made of"),
        (["dvae", "--from", tmp_path], f"no file {tmp_path}/encoder.pkl"),
        (["vqgan-1024", "--from", "none.ckpt"], f"no file {tmp_path}/none.ckpt"),
        (["dvae", "--from", "nope://there"], "nope://there/encoder.pkl"),
    ):
        done = toto("weights", "get", *arguments, cwd=tmp_path, code=2)
        assert message in " ".join(done.stderr.split())
    home.mkdir(parents=True, exist_ok=True)
    (home / "dvae.json").write_text("[]")
    done = toto("weights", "get", "dvae", cwd=tmp_path, code=2)
    assert f"{home}/dvae.json is damaged" in " ".join(done.stderr.split())


def test_weights_are_kept_below_the_home_folder_by_default(tmp_path, published, home, monkeypatch):
    monkeypatch.delenv("TOTO_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    toto("weights", "get", "dvae", "--from", published, cwd=tmp_path)
    assert (tmp_path / ".cache/toto/weights/dvae.safetensors").is_file()


def test_files_are_converted_and_then_named_in_a_recipe(tmp_path, tiny_datasets, published):
    files = [published / "encoder.pkl", published / "decoder.pkl"]
    done = toto("tokenizer", "convert", *files, "--out", "new/dvae.safetensors", cwd=tmp_path)
    assert "new/dvae.safetensors: dvae, 0.0M parameters" in done.stdout
    recipe = recipe_of(tmp_path, tiny_datasets, name="dvae", weights="new/dvae.safetensors", **DVAE)
    tokenize(recipe, tiny_datasets, cwd=tmp_path)
    swapped = toto(
        "tokenizer", "convert", *reversed(files), "--out", "x.safetensors", cwd=tmp_path, code=2
    )
    assert "in this order" in swapped.stderr
    other = toto("tokenizer", "convert", *files, "--out", "x.pt", cwd=tmp_path, code=2)
    assert "Write --out x.safetensors" in other.stderr
    assert names(tmp_path / "new") == ["dvae.safetensors"]
    assert not (tmp_path / "x.safetensors").exists()
