"""Published files become tokenizers with the same logits and ids; anything else is refused."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickled import Call, made_up, touching
from safetensors.torch import save_file
from torch import Tensor, nn

from toto.errors import CheckpointError
from toto.tokenizers.config import DvaeConfig, VqganConfig
from toto.tokenizers.convert import convert
from toto.tokenizers.dvae import Dvae
from toto.tokenizers.vqgan import Vqgan
from toto.tokenizers.weights import save_checked_weights

DVAE: dict[str, Any] = {"width": 8, "num_codes": 48, "blocks_per_group": 1, "decoder_stem": 12}
VQGAN: dict[str, Any] = {
    "num_codes": 64,
    "code_dim": 12,
    "latent_dim": 20,
    "width": 32,
    "width_multipliers": (1, 2, 1),
    "attention_levels": (1, 2),
    "blocks_per_level": 1,
}
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def pictures(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def refusal(*paths: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        convert(paths)
    return str(error.value)


@pytest.fixture(scope="module")
def modules() -> tuple[nn.Module, nn.Module]:
    """The published encoder and decoder, small, with random weights and biases."""
    dall_e = pytest.importorskip("dall_e", reason="the published dVAE is not installed")
    sizes = {"n_hid": 8, "n_blk_per_group": 1, "vocab_size": 48}
    encoder, decoder = dall_e.Encoder(**sizes), dall_e.Decoder(n_init=12, **sizes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        # Random weights favour a code or two: take their lead away.
        lead_V = encoder(0.8 * pictures() + 0.1).mean((0, 2, 3))
        encoder.get_parameter("blocks.output.conv.b").sub_(lead_V)
    return encoder, decoder


@pytest.fixture
def published(tmp_path: Path, modules: tuple[nn.Module, nn.Module]) -> tuple[Path, Path]:
    """The files as OpenAI made them: torch.save of the whole module."""
    paths = (tmp_path / "encoder.pkl", tmp_path / "decoder.pkl")
    for module, path in zip(modules, paths, strict=True):
        torch.save(module, path)
    return paths


@torch.no_grad()
def test_the_published_dvae_converts_to_equal_logits_ids_and_pictures(
    tmp_path: Path,
    published: tuple[Path, Path],
    modules: tuple[nn.Module, nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dall_e"]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    converted = convert(published)
    assert converted.ignored == {}
    out = tmp_path / "dvae.safetensors"
    save_checked_weights(converted.tokenizer, out)
    for path in published:
        path.unlink()
    dvae = DvaeConfig(weights=str(out), **DVAE).build()
    assert isinstance(dvae, Dvae)
    encoder, decoder = modules
    logits = encoder(0.8 * pictures() + 0.1)
    torch.testing.assert_close(dvae.encoder_logits(pictures()), logits, rtol=1e-5, atol=1e-5)
    codes = dvae.encode(pictures()).codes_BHW
    assert torch.equal(codes, logits.argmax(dim=1))
    assert codes.unique().numel() > 20
    one_hot = nn.functional.one_hot(codes, 48).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(dvae.code_stats(codes), decoder(one_hot), rtol=1e-5, atol=1e-5)


def test_the_order_and_number_of_files_are_held_to(published: tuple[Path, Path]) -> None:
    encoder, decoder = published
    wanted = "Give the dVAE's encoder and the dVAE's decoder, in this order, or one checkpoint"
    for paths in ((decoder, encoder), (encoder, encoder), (encoder,), (encoder, decoder, decoder)):
        message = refusal(*paths)
        for path in paths:
            assert f"{path} is the dVAE's {path.stem}" in message
        assert wanted in message


def test_a_hostile_half_is_refused_and_not_run(
    tmp_path: Path, published: tuple[Path, Path]
) -> None:
    mark = tmp_path / "was-run"
    torch.save({"state_dict": touching(mark)}, published[1])
    message = refusal(*published)
    assert str(published[1]) in message
    assert "system" in message
    assert not mark.exists()


@pytest.fixture
def half(tmp_path: Path) -> Callable[..., Path]:
    """Pickles a module by hand, with these parameters, as the dVAE's encoder or decoder."""

    def write(name: str, parameters: dict[str, Any], **state: object) -> Path:
        with made_up(f"dall_e.{name}.{name.title()}", "dall_e.utils.Conv2d") as (root, leaf):
            tree: dict[str, Any] = {}
            for path, value in parameters.items():
                *parts, last = path.split(".")
                node = tree
                for part in parts:
                    node = node.setdefault(part, {})
                node[last] = value
            module = _module(root, leaf, tree)
            module.__dict__.update(state)
            path = tmp_path / f"{name}.pkl"
            torch.save(module, path)
        return Path(path)

    return write


def _module(cls: type, child: type, tree: dict[str, Any]) -> object:
    module = cls()
    module.__dict__.update(
        _parameters={name: value for name, value in tree.items() if isinstance(value, Tensor)},
        _buffers=OrderedDict(),
        _modules={
            name: _module(child, child, value)
            for name, value in tree.items()
            if not isinstance(value, Tensor)
        },
    )
    return module


def tensors_of(part: str) -> dict[str, Tensor]:
    dvae = DvaeConfig(weights="random:0", **DVAE).build()
    return dict(dvae.get_submodule(part).state_dict())


def changed(tensors: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    return rest if value is None else rest | {name: value}


def test_modules_pickled_by_hand_convert_too(half: Callable[..., Path]) -> None:
    paths = [half(part, tensors_of(part)) for part in ("encoder", "decoder")]
    converted = convert(paths).tokenizer
    dvae = DvaeConfig(weights="random:0", **DVAE).build()
    assert converted.config == DvaeConfig(**DVAE)
    assert converted.fingerprint() == dvae.fingerprint()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.input.w", None, "no tensor encoder.blocks.input.w"),
        ("blocks.input.w", torch.ones(()), "tensors of impossible sizes"),
        ("blocks.input.w", torch.ones(7, 3, 7, 7), "tensors of impossible sizes"),
        (
            "blocks.group_1.block_1.res_path.conv_2.w",
            torch.ones(2, 2, 5, 5),
            "not the tensors of one dvae: encoder.blocks.group_1.block_1.res_path.conv_2.w: "
            "2×2×5×5 in the file, 2×2×3×3 wanted",
        ),
        ("blocks.more.w", torch.ones(1), "encoder.blocks.more.w: 1 in the file, missing wanted"),
        ("blocks.input.b", torch.ones(8).half(), "blocks.input.b: 8 float16 in the file, 8 wanted"),
        ("blocks.input.b", torch.ones(8).to_sparse(), "8 float32 sparse_coo in the file, 8 wanted"),
    ],
)
def test_tensors_of_no_dvae_are_named(
    half: Callable[..., Path], name: str, value: Tensor | None, message: str
) -> None:
    encoder = half("encoder", changed(tensors_of("encoder"), name, value))
    decoder = half("decoder", tensors_of("decoder"))
    refused = refusal(encoder, decoder)
    assert message in refused
    assert f"{encoder} and {decoder}" in refused
    assert "Give the files as they were published" in refused


def test_halves_of_two_dvaes_are_refused(half: Callable[..., Path]) -> None:
    other = DvaeConfig(weights="random:0", **(DVAE | {"num_codes": 40})).build()
    decoder = half("decoder", dict(other.get_submodule("decoder").state_dict()))
    message = refusal(half("encoder", tensors_of("encoder")), decoder)
    assert "decoder.blocks.input.w: 12×40×1×1 in the file, 12×48×1×1 wanted" in message


@pytest.mark.parametrize("state", [{"_modules": 3}, {"_modules": {"blocks": "text"}}])
def test_a_module_of_another_shape_is_refused(half: Callable[..., Path], state: Any) -> None:
    encoder = half("encoder", tensors_of("encoder"), **state)
    assert "is no module as torch pickles them" in refusal(encoder)


def test_a_module_inside_itself_ends(tmp_path: Path) -> None:
    with made_up("dall_e.encoder.Encoder") as (cls,):
        module = _module(cls, cls, {})
        vars(module)["_modules"]["again"] = module
        torch.save(module, tmp_path / "encoder.pkl")
    assert "is the dVAE's encoder. Give" in refusal(tmp_path / "encoder.pkl")


@pytest.mark.parametrize("content", [torch.ones(2), {"model": {}}, {"state_dict": {"a": 1}}, [1]])
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pkl")
    message = refusal(tmp_path / "other.pkl")
    assert "holds neither the dVAE's encoder or decoder nor tensors under state_dict" in message


def vqgan() -> Vqgan:
    built = VqganConfig(weights="random:0", **VQGAN).build()
    assert isinstance(built, Vqgan)
    return built


def lightning(path: Path, state: dict[str, Any]) -> Path:
    """A checkpoint as Lightning 1.0 writes it for taming-transformers, callbacks and all."""
    with made_up(CALLBACK, "numpy.core.multiarray.scalar") as (callback, scalar):
        content = {
            "epoch": 5,
            "global_step": 100,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {
                callback: {
                    "monitor": "val/rec_loss",
                    "best_model_score": torch.tensor(0.5),
                    "best_model_path": "logs/checkpoints/epoch=5.ckpt",
                    "current_score": np.float64(0.5),
                    "of an older numpy": Call(scalar, 1, 2),
                }
            },
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}}],
            "lr_schedulers": [],
            "state_dict": OrderedDict(state),
        }
        torch.save(content, path)
    return path


@torch.no_grad()
def test_a_published_vqgan_checkpoint_converts_to_equal_ids_and_pictures(tmp_path: Path) -> None:
    original = vqgan()
    generator = torch.Generator().manual_seed(3)
    z = original.latents(pictures()).permute(0, 2, 3, 1).flatten(0, 2)
    chosen = torch.randperm(len(z), generator=generator)[: VQGAN["num_codes"]]
    original.quantize.embedding.weight.copy_(z[chosen])
    state = dict(original.state_dict())
    extra = {"loss.perceptual_loss.lin0.weight": torch.ones(1), "loss.logvar": torch.zeros(())}
    extra["colorize"] = torch.ones(3)
    converted = convert([lightning(tmp_path / "last.ckpt", state | extra)])
    assert converted.ignored == {"loss": 2, "colorize": 1}
    out = tmp_path / "vqgan.safetensors"
    save_checked_weights(converted.tokenizer, out)
    loaded = VqganConfig(weights=str(out), **VQGAN).build()
    assert loaded.fingerprint() == original.fingerprint()
    codes = loaded.encode(pictures())
    assert torch.equal(codes.codes_BHW, original.encode(pictures()).codes_BHW)
    assert codes.codes_BHW.unique().numel() > 20
    assert torch.equal(loaded.decode(codes), original.decode(codes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_levels": (2,), "width_multipliers": (1, 1, 2)},
        {"blocks_per_level": 2, "attention_levels": ()},
        {"width_multipliers": (2,), "attention_levels": (0,), "latent_dim": 12},
    ],
)
def test_sizes_are_read_off_the_tensors(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = VqganConfig(**(VQGAN | changes))
    torch.save({"state_dict": config.build().state_dict()}, tmp_path / "last.ckpt")
    assert convert([tmp_path / "last.ckpt"]).tokenizer.config == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("quantize.embedding.weight", None, "no tensor quantize.embedding.weight"),
        ("decoder.conv_in.bias", None, "decoder.conv_in.bias: missing in the file, 32 wanted"),
        ("post_quant_conv.weight", torch.ones(1, 1), "post_quant_conv.weight: 1×1 in the file"),
        ("encoder.conv_in.weight", torch.ones(48, 3, 3, 3), "tensors of impossible sizes"),
        # Remapped ids would not be the codebook's: not to be ignored.
        ("quantize.used", torch.ones(9), "quantize.used: 9 in the file, missing wanted"),
    ],
)
def test_tensors_of_no_vqgan_are_named(
    tmp_path: Path, name: str, value: Tensor | None, message: str
) -> None:
    state = changed(dict(vqgan().state_dict()), name, value)
    assert message in refusal(lightning(tmp_path / "last.ckpt", state))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("bare", [True, False])
def test_wrapped_and_bare_state_dicts_convert(tmp_path: Path, prefix: str, bare: bool) -> None:
    original = vqgan()
    state = prefixed(dict(original.state_dict()), prefix)
    torch.save(state if bare else {"state_dict": state}, tmp_path / "last.ckpt")
    converted = convert([tmp_path / "last.ckpt"])
    assert converted.tokenizer.fingerprint() == original.fingerprint()
    assert converted.ignored == {}


def test_a_prefix_on_some_names_is_refused_with_the_change_to_make(tmp_path: Path) -> None:
    state = dict(vqgan().state_dict())
    half = {name: tensor for name, tensor in state.items() if name.startswith("decoder.")}
    mixed = {name: t for name, t in state.items() if name not in half} | prefixed(half, "module.")
    torch.save(mixed, tmp_path / "last.ckpt")
    message = refusal(tmp_path / "last.ckpt")
    assert f"{len(half)} of {len(state)} names begin with 'module.'" in message
    assert "as 'decoder." in message


def test_tensors_at_another_place_are_refused_with_the_line_to_run(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"model": dict(vqgan().state_dict()), "epoch": 3}, path)
    message = refusal(path)
    line = f"torch.save(torch.load({str(path)!r}, weights_only=True)['model'], \"weights.pt\")"
    assert line in message
    torch.save(torch.load(path, weights_only=True)["model"], tmp_path / "weights.pt")
    assert convert([tmp_path / "weights.pt"]).tokenizer.fingerprint() == vqgan().fingerprint()


def test_safetensors_and_state_dicts_of_a_dvae_convert(tmp_path: Path) -> None:
    dvae = DvaeConfig(weights="random:0", **DVAE).build()
    whole = {name: tensor.contiguous() for name, tensor in dvae.state_dict().items()}
    save_file(prefixed(whole, "module."), tmp_path / "dvae.safetensors")
    converted = convert([tmp_path / "dvae.safetensors"]).tokenizer
    assert converted.fingerprint() == dvae.fingerprint()
    for part in ("encoder", "decoder"):
        torch.save(tensors_of(part), tmp_path / f"{part}.pt")
    paths = [tmp_path / "encoder.pt", tmp_path / "decoder.pt"]
    assert convert(paths).tokenizer.fingerprint() == dvae.fingerprint()
    assert "in this order" in refusal(*reversed(paths))


def test_callbacks_of_unknown_classes_are_refused_by_name(tmp_path: Path) -> None:
    with made_up("my_lab.callbacks.Uploader") as (callback,):
        content = {"state_dict": dict(vqgan().state_dict()), "callbacks": {callback: {"n": 1}}}
        torch.save(content, tmp_path / "last.ckpt")
    message = refusal(tmp_path / "last.ckpt")
    assert "my_lab.callbacks.Uploader" in message
    assert 'torch.save({"state_dict": model.state_dict()}, "weights.ckpt")' in message


def test_a_checkpoint_beside_a_module_is_refused(tmp_path: Path, half: Callable[..., Path]) -> None:
    checkpoint = lightning(tmp_path / "last.ckpt", dict(vqgan().state_dict()))
    message = refusal(checkpoint, half("encoder", tensors_of("encoder")))
    assert f"{checkpoint} is a checkpoint" in message


def test_the_file_appears_only_when_a_tokenizer_was_built_from_it(
    tmp_path: Path, half: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = convert([half(part, tensors_of(part)) for part in ("encoder", "decoder")])
    out = tmp_path / "out" / "dvae.safetensors"
    out.parent.mkdir()
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: path.write_text("not whole"))
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        save_checked_weights(converted.tokenizer, out)
    assert list(out.parent.iterdir()) == []
