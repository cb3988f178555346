from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from toto.backbones.config import BACKBONES, BackboneConfig, Gpt2Config
from toto.errors import CheckpointError, UserError
from toto.export.hf import RECORD, WEIGHTS, ModelRecord, read_model, write_model
from toto.jobs.train import _load_initial
from toto.layers.masks import PerImage
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig, PatchConfig

TOKENIZER = DvaeConfig(num_codes=60)
BACKBONE_CONFIGS = {
    "llama": {"name": "llama", "width": 48, "num_layers": 2, "num_heads": 4, "ffn_dim": 72},
    "llama-grouped-untied": {
        "name": "llama",
        "width": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_dim": 72,
        "rope_base": 500.0,
        "tie_embeddings": False,
    },
    "gpt2": {
        "name": "gpt2",
        "width": 48,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_dim": 72,
        "position_scale": 0.5,
    },
    "mamba": {"name": "mamba", "width": 40, "num_layers": 2, "state_size": 6, "conv_kernel": 3},
}


def record_of(config: BackboneConfig) -> ModelRecord:
    return ModelRecord(
        backbone=config.model_dump(mode="json"),
        tokenizer=TOKENIZER.model_dump(mode="json"),
        fingerprint="f" * 64,
        resolution=32,
        frames=2,
        grid=(4, 4),
        step=7,
    )


def model_of(config: BackboneConfig) -> AutoregressiveModel:
    torch.manual_seed(0)
    model = AutoregressiveModel(TOKENIZER, config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=BACKBONE_CONFIGS)
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    return BACKBONES.parse(BACKBONE_CONFIGS[request.param])


@torch.no_grad()
def test_transformers_gives_the_same_logits(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = model_of(config)
    write_model(model, record_of(config), tmp_path / "out")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(64, (2, 33))
    ours = model.next_logits(ids, model.new_cache(33))
    torch.testing.assert_close(ours, peer(ids).logits[:, -1], atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.1


def test_what_was_written_comes_back_exactly(config, tmp_path):
    model = model_of(config)
    write_model(model, record_of(config), tmp_path / "out")
    fresh = AutoregressiveModel(TOKENIZER, config)
    fresh.load_state_dict(read_model(tmp_path / "out", fresh))
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    card = (tmp_path / "out/README.md").read_text()
    assert "code + 4" in card
    assert json.loads((tmp_path / "out" / RECORD).read_text())["grid"] == [4, 4]


def test_what_transformers_has_not_is_refused(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    model = model_of(config)
    model.mask = PerImage(16)
    with pytest.raises(UserError, match="trained otherwise"):
        write_model(model, record_of(config), tmp_path / "out")
    for base in (config.width // 2, config.width):
        mup = config.model_copy(update={"mup_base_width": base})
        with pytest.raises(UserError, match="under µP"):
            write_model(model_of(mup), record_of(mup), tmp_path / "out")
    patches = AutoregressiveModel(PatchConfig(patch_size=8), config)
    record = record_of(config).__dict__ | {"tokenizer": {"name": "patch"}}
    with pytest.raises(UserError, match="no ids"):
        write_model(patches, ModelRecord(**record), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(UserError, match="not empty"):
        write_model(model_of(config), record_of(config), tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        write_model(model_of(config), record_of(config), tmp_path / "full/x")


def test_no_tensor_is_left_behind(tmp_path):
    tied = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    untied = tied.model_copy(update={"tie_embeddings": False})
    out = {name: tmp_path / name for name in ("tied", "untied")}
    write_model(model_of(tied), record_of(tied), out["tied"])
    write_model(model_of(untied), record_of(untied), out["untied"])
    shallower = tied.model_copy(update={"num_layers": 1})
    with pytest.raises(UserError, match=r"no place in this backbone: 9, model\.layers\.1"):
        read_model(out["tied"], AutoregressiveModel(TOKENIZER, shallower))
    with pytest.raises(UserError, match=r"no place in this backbone: 1, lm_head\.weight"):
        read_model(out["untied"], AutoregressiveModel(TOKENIZER, tied))
    with pytest.raises(UserError, match=r"1 tensors are missing, lm_head\.weight first"):
        read_model(out["tied"], AutoregressiveModel(TOKENIZER, untied))
    twice = load_file(out["tied"] / WEIGHTS)
    twice["lm_head.weight"] = twice["model.embed_tokens.weight"].clone()
    save_file(twice, out["tied"] / WEIGHTS)
    model = AutoregressiveModel(TOKENIZER, tied)
    assert read_model(out["tied"], model).keys() == model.state_dict().keys()


def test_other_models_are_not_taken_in(tmp_path):
    config = Gpt2Config(width=48, num_layers=1, num_heads=4, ffn_dim=72)
    out = tmp_path / "out"
    write_model(model_of(config), record_of(config), out)
    other = config.model_copy(update={"position_scale": 2.0})
    with pytest.raises(UserError, match=r"wpe\.weight is not what toto computes"):
        read_model(out, AutoregressiveModel(TOKENIZER, other))
    deeper = config.model_copy(update={"num_layers": 2})
    with pytest.raises(UserError, match="12 tensors are missing"):
        read_model(out, AutoregressiveModel(TOKENIZER, deeper))
    (out / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_model(out, AutoregressiveModel(TOKENIZER, config))


def test_training_begins_from_codes_of_the_same_tokenizer(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    out, model = tmp_path / "out", model_of(config)
    write_model(model, record_of(config), out)

    def begin(fingerprint):
        fresh = AutoregressiveModel(TOKENIZER, config)
        tokenizer = SimpleNamespace(fingerprint=lambda: fingerprint)
        _load_initial(f"hf:{out}", SimpleNamespace(model=fresh, tokenizer=tokenizer))
        return torch.equal(fresh.backbone.norm.weight, model.backbone.norm.weight)

    assert begin("f" * 64)
    with pytest.raises(CheckpointError, match=r"codes of another tokenizer.*out/toto\.json"):
        begin("e" * 64)
    (out / RECORD).write_text("{}")
    with pytest.raises(CheckpointError, match=r"toto\.json cannot be read: KeyError"):
        begin("f" * 64)
    (out / RECORD).unlink()  # not of toto's making: nothing tells
    assert begin("e" * 64)
