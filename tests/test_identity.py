"""Fingerprints outlive new fields: what is already written keeps its identity."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar, Literal

import pytest
import torch
from safetensors.torch import save_file

from toto.backbones.config import LlamaConfig
from toto.data.manifest import Manifest, ShardEntry, TokenInfo
from toto.data.tokens import require_tokenizer
from toto.errors import CheckpointError, DataError
from toto.heads.config import AttentionConfig, AverageConfig, CrossAttentionConfig
from toto.tasks.probe_bank import Probe
from toto.tokenizers.base import TokenGrid, Tokenizer
from toto.tokenizers.config import DvaeConfig, PatchConfig, TokenizerConfig, VqganConfig
from toto.tokenizers.dvae import Dvae
from toto.tokenizers.weights import read_identity, save_weights, shipped_weights

TINY = {
    "weights": "random:0",
    "width": 8,
    "num_codes": 32,
    "blocks_per_group": 1,
    "decoder_stem": 8,
}


class LaterDvaeConfig(DvaeConfig):
    """The dVAE of a later version, with one more field."""

    registered_name: ClassVar[str] = "dvae"
    clamp: float = 1e-5

    def build(self) -> Dvae:
        return Dvae(self)


class LaterLlamaConfig(LlamaConfig):
    registered_name: ClassVar[str] = "llama"
    qk_norm: bool = False


class LaterAttentionConfig(AttentionConfig):
    registered_name: ClassVar[str] = "attention"
    dropout: float = 0.0


class LaterTokenInfo(TokenInfo):
    order: Literal["raster", "hilbert"] = "raster"


def test_shipped_weights_keep_the_fingerprint_that_datasets_and_checkpoints_recorded() -> None:
    recorded = {"dvae-tiny": "aa980eacadb239ab925458c319b6cd075ec188cca57da1f5d8bf4a65c7910ada"}
    assert recorded.keys() == shipped_weights().keys()
    for name, fingerprint in recorded.items():
        source = f"toto:{name}"
        config = DvaeConfig.model_validate(read_identity(source) | {"weights": source})
        assert config.build().fingerprint() == fingerprint


def test_configs_keep_the_bytes_that_fingerprints_hash() -> None:
    patches = PatchConfig()
    # Runs older than `input_norm` normalised by the patch, and recorded no such field.
    older = PatchConfig(input_norm="patch")
    assert older.identity_json() == b'{"name":"patch","patch_size":16}'
    assert older.build().has_fingerprint(hashlib.sha256(older.identity_json()).hexdigest())
    assert patches.identity()["input_norm"] == "imagenet"
    dvae = DvaeConfig().identity_json(exclude={"weights"})
    assert dvae == (
        b'{"name":"dvae","num_codes":8192,"width":256,"blocks_per_group":2,"decoder_stem":128}'
    )
    for config in (DvaeConfig(), VqganConfig(), patches, LlamaConfig(preset="1b"),
                   AverageConfig(), AttentionConfig(), CrossAttentionConfig()):  # fmt: skip
        left_out = config.model_dump().keys() - config.identity(exclude={"weights"}).keys()
        assert left_out <= {"weights"}, config.registered_name


def test_a_new_field_counts_only_when_it_is_not_at_its_default() -> None:
    before = DvaeConfig(**TINY).build().fingerprint()
    assert LaterDvaeConfig(**TINY).build().fingerprint() == before
    assert LaterDvaeConfig(**TINY, clamp=1e-3).build().fingerprint() != before
    llama = LlamaConfig(preset="tiny")
    assert LaterLlamaConfig(preset="tiny").identity() == llama.identity()
    assert LaterLlamaConfig(preset="tiny", qk_norm=True).identity() != llama.identity()


def test_weights_of_before_a_new_field_load_and_its_other_values_are_refused(tmp_path) -> None:
    path = tmp_path / "before.safetensors"
    original = DvaeConfig(**TINY).build()
    save_weights(original, path)
    later = LaterDvaeConfig(**TINY | {"weights": str(path)}).build()
    assert later.fingerprint() == original.fingerprint()
    with pytest.raises(CheckpointError, match=r"clamp: 1e-05 in the file, 0\.001 in the recipe"):
        LaterDvaeConfig(**TINY | {"weights": str(path)}, clamp=1e-3).build()


def test_a_function_that_leaves_no_trace_in_the_tensors_is_compared(tmp_path) -> None:
    sizes = {"width": 8, "num_codes": 16, "code_dim": 4, "latent_dim": 4, "blocks_per_level": 1,
             "width_multipliers": (1, 2), "attention_levels": ()}  # fmt: skip
    path = tmp_path / "vqgan.safetensors"
    save_weights(VqganConfig(**sizes, norm_groups=4, weights="random:0").build(), path)
    with pytest.raises(CheckpointError) as error:
        VqganConfig(**sizes, norm_groups=8, weights=str(path)).build()
    assert "norm_groups: 4 in the file, 8 in the recipe" in str(error.value)
    assert "all fit" in str(error.value)


def test_datasets_keep_their_fingerprint_when_token_info_grows() -> None:
    tokens = {"tokenizer": {"name": "dvae"}, "fingerprint": "f" * 64, "resolution": 32,
              "grid": (4, 4)}  # fmt: skip
    shard = ShardEntry(name="shard-00000.tar", samples=1, bytes=512, sha256="a" * 64)

    def manifest(info: TokenInfo) -> Manifest:
        return Manifest(kind="images", form="tokens", shards=(shard,)).model_copy(
            update={"tokens": info}
        )

    pinned = manifest(TokenInfo(**tokens)).fingerprint()
    assert pinned == "a4b68d3e10564343c46661bd57c4792c9d835cf0e31c0ed30d5766a8ee7853fb"
    assert manifest(LaterTokenInfo(**tokens)).fingerprint() == pinned
    assert manifest(LaterTokenInfo(**tokens, order="hilbert")).fingerprint() != pinned


def test_a_probe_starts_from_the_same_weights_when_its_head_has_a_new_field() -> None:
    def weights(head: AttentionConfig) -> torch.Tensor:
        return Probe(1, head, 1e-3, 0.0, 0, width=8, num_classes=3).classifier.weight

    assert torch.equal(weights(LaterAttentionConfig()), weights(AttentionConfig()))
    assert not torch.equal(weights(LaterAttentionConfig(dropout=0.5)), weights(AttentionConfig()))


class Levels(Tokenizer):
    def encode(self, pixels_BCHW: torch.Tensor) -> TokenGrid:
        raise NotImplementedError

    decode = encode


class LevelsConfig(TokenizerConfig):
    """A tokenizer of a user, whose fields have defaults."""

    registered_name: ClassVar[str] = "levels"
    levels: int = 16
    gain: float = 1e-5

    codebook_size: ClassVar[int] = 16

    def grid(self, resolution: int) -> tuple[int, int]:
        return resolution, resolution

    def build(self) -> Levels:
        return Levels(self)


class RecordedTokens:
    """A dataset with tokens, as `require_tokenizer` sees it."""

    form, path = "tokens", "data/tokens"

    def __init__(self, fingerprint: str) -> None:
        self.tokens = TokenInfo(
            tokenizer={"name": "levels"}, fingerprint=fingerprint, resolution=8, grid=(8, 8)
        )


def test_tokens_of_a_plug_in_stay_readable_under_the_fingerprint_of_before() -> None:
    tokenizer = LevelsConfig().build()
    # sha256 of '{"name":"levels","levels":16,"gain":0.00001}', as toto hashed configs until 2026.
    everything = "1f18cdc828c6dc1aed55d857698dc8dd9780a4bea8610baeba060fb5c6f7040a"
    require_tokenizer(RecordedTokens(everything), tokenizer)
    require_tokenizer(RecordedTokens(tokenizer.fingerprint()), tokenizer)
    with pytest.raises(DataError, match="another tokenizer"):
        require_tokenizer(RecordedTokens(everything), LevelsConfig(levels=8).build())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_leave_no_trace_in_weights(tmp_path, prefix: str) -> None:
    original = DvaeConfig(**TINY).build()
    tensors = {f"{prefix}{name}": t.contiguous() for name, t in original.state_dict().items()}
    path = tmp_path / "wrapped.safetensors"
    save_file(tensors, path)
    config = DvaeConfig(**TINY | {"weights": str(path)})
    assert config.build().fingerprint() == original.fingerprint()
    first, *_ = tensors
    tensors[first.removeprefix(prefix)] = tensors.pop(first)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        config.build()
    assert f"{len(tensors) - 1} of {len(tensors)} names begin with" in str(error.value)


def test_identity_is_plain_json() -> None:
    info = TokenInfo(tokenizer={}, fingerprint="f", resolution=32, grid=(4, 4))
    assert json.loads(info.identity_json()) == info.model_dump(mode="json")
