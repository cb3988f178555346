from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from toto.backbones.config import BACKBONES, BackboneConfig, Gpt2Config, LlamaConfig, MaskConfig
from toto.backbones.gpt2 import sine_cosine_positions
from toto.errors import CheckpointError, UserError
from toto.export import layout
from toto.export.hf import RECORD, WEIGHTS, ModelRecord, read_model, write_model
from toto.jobs.initial import find_initial
from toto.layers.masks import PerImage
from toto.model import AutoregressiveModel
from toto.sequence import SequenceLayout
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


THEIRS = {
    "llama": ("LlamaConfig", {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
                              "num_attention_heads": 4, "pad_token_id": 0}),
    "gpt2": ("GPT2Config", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 34,
                            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "mamba": ("MambaConfig", {"hidden_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
                              "bos_token_id": 1, "eos_token_id": 2}),
}  # fmt: skip
OURS = {
    "llama": {"width": 48, "num_layers": 2, "num_heads": 4, "ffn_dim": 72, "norm_eps": 1e-6,
              "tie_embeddings": False},
    "gpt2": {"width": 48, "num_layers": 2, "num_heads": 4, "ffn_dim": 192},
    "mamba": {"width": 48, "num_layers": 2},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_saves_is_read_and_computes_the_same(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    kind, sizes = THEIRS[name]
    config = getattr(transformers, kind)(vocab_size=64, **sizes)
    peer = transformers.AutoModelForCausalLM.from_config(config).eval()
    ours = BACKBONES.parse({"name": name} | OURS[name])
    if name == "gpt2":  # its learned positions are ours only if they are sines and cosines
        positions = sine_cosine_positions(34, 48, torch.device("cpu"))
        peer.transformer.wpe.weight.copy_(ours.position_scale * positions)
    peer.save_pretrained(tmp_path / "theirs")
    model = AutoregressiveModel(TOKENIZER, ours).eval()
    there = read_model(tmp_path / "theirs", model)
    assert there.changed == []
    model.load_state_dict(there.state)
    ids = torch.randint(64, (2, 33))
    logits = model.next_logits(ids, model.new_cache(33))
    torch.testing.assert_close(logits, peer(ids).logits[:, -1], atol=1e-5, rtol=1e-5)


def test_what_was_written_comes_back_exactly(config, tmp_path):
    model = model_of(config)
    write_model(model, record_of(config), tmp_path / "out")
    fresh = AutoregressiveModel(TOKENIZER, config)
    there = read_model(tmp_path / "out", fresh)
    assert there.changed == []
    fresh.load_state_dict(there.state)
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


def rewrite(folder, **changes) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))


def test_no_tensor_is_left_behind(tmp_path):
    tied = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    untied = tied.model_copy(update={"tie_embeddings": False})
    out = {name: tmp_path / name for name in ("tied", "untied")}
    write_model(model_of(tied), record_of(tied), out["tied"])
    write_model(model_of(untied), record_of(untied), out["untied"])
    shallower = tied.model_copy(update={"num_layers": 1})
    with pytest.raises(UserError, match=r"num_layers\): 2 in config\.json, 1 here"):
        read_model(out["tied"], AutoregressiveModel(TOKENIZER, shallower))
    with pytest.raises(UserError, match=r"tie_embeddings\): False in config\.json, True here"):
        read_model(out["untied"], AutoregressiveModel(TOKENIZER, tied))
    with pytest.raises(UserError, match=r"Write backbone: \{tie_embeddings: True\} in the recipe"):
        read_model(out["tied"], AutoregressiveModel(TOKENIZER, untied))
    # A config.json that fits tensors of another model.
    rewrite(out["tied"], num_hidden_layers=1)
    with pytest.raises(UserError, match=r"no place in this backbone: 9, model\.layers\.1"):
        read_model(out["tied"], AutoregressiveModel(TOKENIZER, shallower))
    rewrite(out["tied"], num_hidden_layers=2, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"1 tensor missing, lm_head\.weight first"):
        read_model(out["tied"], AutoregressiveModel(TOKENIZER, untied))
    rewrite(out["tied"], tie_word_embeddings=True)
    twice = load_file(out["tied"] / WEIGHTS)
    twice["lm_head.weight"] = twice["model.embed_tokens.weight"].clone()
    save_file(twice, out["tied"] / WEIGHTS)
    model = AutoregressiveModel(TOKENIZER, tied)
    assert read_model(out["tied"], model).state.keys() == model.state_dict().keys()


def test_other_models_are_not_taken_in(tmp_path):
    config = Gpt2Config(width=48, num_layers=1, num_heads=4, ffn_dim=72)
    out = tmp_path / "out"
    write_model(model_of(config), record_of(config), out)
    other = config.model_copy(update={"position_scale": 2.0})
    with pytest.raises(UserError, match=r"wpe\.weight is not what toto computes"):
        read_model(out, AutoregressiveModel(TOKENIZER, other))
    deeper = config.model_copy(update={"num_layers": 2})
    rewrite(out, n_layer=2)
    with pytest.raises(UserError, match="12 tensors missing"):
        read_model(out, AutoregressiveModel(TOKENIZER, deeper))
    rewrite(out, n_layer=1)
    (out / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_model(out, AutoregressiveModel(TOKENIZER, config))
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read.*number of heads"):
        read_model(out, AutoregressiveModel(TOKENIZER, config))


# Each fits by shape, and computes something else.
OTHER_FUNCTIONS = {
    "heads": ("llama", {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 24},
              "num_attention_heads (backbone.num_heads): 2 in config.json, 4 here"),
    "epsilon": ("llama", {"rms_norm_eps": 1e-3}, "rms_norm_eps (backbone.norm_eps): 0.001 in"),
    "its default": ("llama", {"rms_norm_eps": None}, "(backbone.norm_eps): 1e-06 in config.json"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu' in config.json"),
    "scaled rotations": ("llama", {"rope_parameters": None,
                                   "rope_scaling": {"type": "linear", "factor": 2.0}},
                         "rope_type: 'linear' in config.json, 'default' here"),
    "partial rotations": ("llama", {"partial_rotary_factor": 0.5}, "rope_type: 'partial' in"),
    "another family": ("llama", {"model_type": "mistral"}, "model_type (backbone.name): 'mistral'"),
    "quantized": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: {'bits'"),
    "own code": ("llama", {"auto_map": {"AutoModel": "mine.Model"}}, "auto_map: "),
    "special ids": ("llama", {"bos_token_id": 60}, "bos_token_id: 60 in config.json, 1 here"),
    "gelu": ("gpt2", {"activation_function": "relu"}, "activation_function: 'relu'"),
    "gpt2 heads": ("gpt2", {"n_head": 2}, "n_head (backbone.num_heads): 2 in config.json, 4"),
    "scores": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer"),
    "mamba": ("mamba", {"layer_norm_epsilon": 1e-6}, "(backbone.norm_eps): 1e-06 in config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_FUNCTIONS)
def test_a_model_that_fits_by_shape_alone_is_refused(tmp_path, case):
    name, changes, message = OTHER_FUNCTIONS[case]
    config = BACKBONES.parse(BACKBONE_CONFIGS[name])
    write_model(model_of(config), record_of(config), tmp_path / "out")
    rewrite(tmp_path / "out", **changes)
    with pytest.raises(UserError) as error:
        read_model(tmp_path / "out", AutoregressiveModel(TOKENIZER, config))
    assert message in str(error.value)


def test_keys_that_are_absent_or_of_other_versions_mean_what_transformers_says(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"] | {"norm_eps": 1e-6})
    write_model(model_of(config), record_of(config), tmp_path / "out")
    rewrite(tmp_path / "out", rms_norm_eps=None, num_key_value_heads=None, head_dim=None,
            rope_parameters=None, rope_theta=None, attention_bias=None, mlp_bias=None,
            hidden_act=None, torch_dtype="bfloat16", dtype="bfloat16")  # fmt: skip
    model = AutoregressiveModel(TOKENIZER, config)
    assert read_model(tmp_path / "out", model).changed == []
    mamba = BACKBONES.parse(BACKBONE_CONFIGS["mamba"])
    write_model(model_of(mamba), record_of(mamba), tmp_path / "mamba")
    rewrite(tmp_path / "mamba", time_step_rank="auto", tie_word_embeddings=None)
    assert read_model(tmp_path / "mamba", AutoregressiveModel(TOKENIZER, mamba)).changed == []


def test_another_rope_base_is_taken_and_said(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    write_model(model_of(config), record_of(config), tmp_path / "out")
    carried = config.model_copy(update={"rope_base": 50_000.0})
    there = read_model(tmp_path / "out", AutoregressiveModel(TOKENIZER, carried))
    assert there.changed == [
        "rope_theta (backbone.rope_base): 10000.0 in config.json, 50000.0 here"
    ]


def rename(folder, new_name, **more) -> None:
    """Write the tensors under other names, and more of them."""
    tensors = load_file(folder / WEIGHTS)
    save_file({new_name(name): t for name, t in tensors.items()} | more, folder / WEIGHTS)


@pytest.mark.parametrize(
    "new_name",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
        lambda name: name.removeprefix("model."),
    ],
)
def test_wrapped_and_headless_models_are_read(tmp_path, new_name):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    model = model_of(config)
    write_model(model, record_of(config), tmp_path / "out")
    rename(tmp_path / "out", new_name)
    state = read_model(tmp_path / "out", AutoregressiveModel(TOKENIZER, config)).state
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_a_prefix_on_some_names_is_refused_with_the_change_to_make(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    write_model(model_of(config), record_of(config), tmp_path / "out")
    rename(tmp_path / "out", lambda name: f"module.{name}" if "layers.1" in name else name)
    with pytest.raises(UserError) as error:
        read_model(tmp_path / "out", AutoregressiveModel(TOKENIZER, config))
    assert "9 of 20 names begin with 'module.'" in str(error.value)
    assert "as 'model.layers.1." in str(error.value)


def test_buffers_that_follow_from_the_config_are_left_out_and_checked(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    write_model(model_of(config), record_of(config), tmp_path / "out")
    model = AutoregressiveModel(TOKENIZER, config)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    frequencies = 10_000.0 ** (-torch.arange(0, 12, 2) / 12)
    rename(tmp_path / "out", str, **{name: frequencies})
    assert read_model(tmp_path / "out", model).state.keys() == model.state_dict().keys()
    rename(tmp_path / "out", str, **{name: 500.0 ** (-torch.arange(0, 12, 2) / 12)})
    with pytest.raises(UserError, match=r"inv_freq: its values are not those of the RoPE base"):
        read_model(tmp_path / "out", model)

    gpt2 = BACKBONES.parse(BACKBONE_CONFIGS["gpt2"])
    write_model(model_of(gpt2), record_of(gpt2), tmp_path / "gpt2")
    model = AutoregressiveModel(TOKENIZER, gpt2)
    mask = torch.ones(1, 1, 34, 34, dtype=torch.uint8)
    bias = "transformer.h.0.attn.bias"
    masked = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    rename(tmp_path / "gpt2", str, **{bias: mask.tril()} | masked)
    assert read_model(tmp_path / "gpt2", model).state.keys() == model.state_dict().keys()
    rename(tmp_path / "gpt2", str, **{bias: mask})
    with pytest.raises(UserError, match=r"no place in this backbone: 1, transformer\.h\.0\.attn"):
        read_model(tmp_path / "gpt2", model)


def test_shards_are_read_and_pickles_are_refused_with_the_command(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    out, model = tmp_path / "out", model_of(config)
    write_model(model, record_of(config), out)
    tensors = load_file(out / WEIGHTS)
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, its in shards.items():
        save_file({name: tensors[name] for name in its}, out / shard)
    weight_map = {name: shard for shard, its in shards.items() for name in its}
    (out / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (out / WEIGHTS).unlink()
    state = read_model(out, AutoregressiveModel(TOKENIZER, config)).state
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    (out / f"{WEIGHTS}.index.json").unlink()
    (out / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        read_model(out, AutoregressiveModel(TOKENIZER, config))


class NormedLlamaConfig(LlamaConfig):
    """A LLaMA of a later version."""

    qk_norm: bool = False


def test_what_transformers_cannot_express_is_refused_by_name(tmp_path, monkeypatch):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    model = model_of(config)
    model.backbone.blocks[0].attention.register_parameter(
        "query_norm", torch.nn.Parameter(torch.ones(12))
    )
    with pytest.raises(UserError) as error:
        write_model(model, record_of(config), tmp_path / "out")
    assert "no place for 1 tensor of this model: backbone.blocks.0.attention.query_norm" in str(
        error.value
    )
    monkeypatch.setitem(layout._FAMILIES, NormedLlamaConfig, layout._FAMILIES[LlamaConfig])
    sizes = {key: value for key, value in BACKBONE_CONFIGS["llama"].items() if key != "name"}
    later = NormedLlamaConfig(**sizes, qk_norm=True)
    with pytest.raises(UserError, match=r"backbone\.qk_norm: True: .*LlamaForCausalLM has no"):
        write_model(model_of(later), record_of(later), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plain = NormedLlamaConfig(**sizes)
    write_model(model_of(plain), record_of(plain), tmp_path / "out")


def test_training_begins_from_codes_of_the_same_tokenizer(tmp_path):
    config = BACKBONES.parse(BACKBONE_CONFIGS["llama"])
    out, model = tmp_path / "out", model_of(config)
    write_model(model, record_of(config), out)

    def begin(fingerprint):
        fresh = AutoregressiveModel(TOKENIZER, config)
        tokenizer = SimpleNamespace(config=TOKENIZER, has_fingerprint=fingerprint.__eq__)
        recipe = SimpleNamespace(
            init_from=f"hf:{out}", tokenizer=TOKENIZER, backbone=config, target_tokenizer=None,
            mask=MaskConfig(), layout=SequenceLayout(2, 4, 4),
        )  # fmt: skip
        find_initial(recipe, tokenizer, None).load(fresh)
        return torch.equal(fresh.backbone.norm.weight, model.backbone.norm.weight)

    assert begin("f" * 64)
    with pytest.raises(CheckpointError, match=r"codes of another tokenizer.*out/toto\.json"):
        begin("e" * 64)
    (out / RECORD).write_text("{}")
    with pytest.raises(CheckpointError, match=r"toto\.json cannot be read: KeyError"):
        begin("f" * 64)
    (out / RECORD).unlink()  # not of toto's making: nothing tells
    assert begin("e" * 64)
