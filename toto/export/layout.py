"""How weights of toto and of transformers correspond, one table a family, read both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.backbones.gpt2 import sine_cosine_positions
from toto.errors import UserError
from toto.sequence import END_ID, PAD_ID, VIDEO_START_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

__all__ = ["Entry", "Family", "family_of", "from_theirs", "to_theirs"]

READOUT = "lm_head.weight"
"""Its name in every family, where it is not tied to the embedding."""

Tensors = dict[str, "Tensor"]


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and what it is there.

    Attributes:
        ours: its name, below `backbone.`.
        theirs: names of the tensors that ours is made of, along the first axis.
        sizes: of those along that axis; empty for one tensor.
        transposed: they keep the matrix the other way round.
    """

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """What transformers calls a family, and how its parts are named there.

    Attributes:
        config: model type, architecture and sizes, as config.json has them, but for ids.
        embedding: name of the embedding.
        entries: of the backbone.
        made: tensors that they hold and we compute.
    """

    config: dict[str, Any]
    embedding: str
    entries: list[Entry]
    made: Tensors


def family_of(config: BackboneConfig, *, vocab_size: int, length: int) -> Family:
    """The family of a backbone.

    Args:
        config: its sizes.
        vocab_size: V, the special ids included.
        length: the most positions of a sequence.

    Raises:
        UserError: a backbone that transformers does not have.
    """
    for kind, make in _FAMILIES.items():
        if type(config) is kind:
            family = make(config, length)
            common = {
                "architectures": [family.config.pop("architecture")],
                "vocab_size": vocab_size,
                "tie_word_embeddings": config.tie_embeddings,
                "pad_token_id": PAD_ID,
                "bos_token_id": VIDEO_START_ID,
                "eos_token_id": END_ID,
                "torch_dtype": "float32",
            }
            return Family(family.config | common, family.embedding, family.entries, family.made)
    names = ", ".join(str(kind.registered_name) for kind in _FAMILIES)
    raise UserError(
        f"backbone {config.registered_name}: transformers has none like it. It has {names}"
    )


def to_theirs(state: Tensors, family: Family) -> Tensors:
    """Weights of an AutoregressiveModel under transformers' names; a tied readout is left out."""
    found = {family.embedding: state["interface.embedding.weight"], **family.made}
    if "interface.readout.weight" in state:
        found[READOUT] = state["interface.readout.weight"]
    for entry in family.entries:
        tensor = state[f"backbone.{entry.ours}"]
        parts = torch.split(tensor, list(entry.sizes)) if entry.sizes else (tensor,)
        for name, part in zip(entry.theirs, parts, strict=True):
            found[name] = part.T if entry.transposed else part
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def from_theirs(tensors: Tensors, family: Family) -> Tensors:
    """The inverse of `to_theirs`.

    Raises:
        UserError: a tensor is missing or has no place, or one that we compute is another there.
    """
    tied = family.config["tie_word_embeddings"]
    wanted = [family.embedding, *(name for entry in family.entries for name in entry.theirs)]
    wanted += [] if tied else [READOUT]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(
            f"{len(missing)} tensors are missing, {missing[0]} first. Is it a model of this "
            "family, and not one in several shards?"
        )
    left = sorted(tensors.keys() - {*wanted, *family.made})
    if tied and READOUT in left and torch.equal(tensors[READOUT], tensors[family.embedding]):
        left.remove(READOUT)  # the tied matrix, written twice
    if left:
        raise UserError(
            f"tensors that have no place in this backbone: {len(left)}, {left[0]} first. Give the "
            "recipe's backbone the sizes of that model"
        )
    for name, made in family.made.items():
        rows = min(len(made), len(tensors.get(name, made)))
        if not torch.equal(tensors.get(name, made)[:rows], made[:rows]):
            raise UserError(
                f"{name} is not what toto computes in its place, and cannot be taken in"
            )
    state = {"interface.embedding.weight": tensors[family.embedding]}
    if not tied:
        state["interface.readout.weight"] = tensors[READOUT]
    for entry in family.entries:
        parts = [tensors[name] for name in entry.theirs]
        parts = [part.T if entry.transposed else part for part in parts]
        state[f"backbone.{entry.ours}"] = torch.cat(parts).contiguous()
    return state


def _llama(config: LlamaConfig, length: int) -> Family:
    width, kv_width = config.width, config.num_kv_heads * config.head_dim
    there = {
        "model_type": "llama",
        "architecture": "LlamaForCausalLM",
        "hidden_size": width,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
    }

    def entries() -> Iterator[Entry]:
        yield Entry("norm.weight", ("model.norm.weight",))
        for index in range(config.num_layers):
            ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
            attention = [f"{theirs}self_attn.{letter}_proj.weight" for letter in "qkv"]
            yield Entry(
                f"{ours}attention.query_key_value.weight",
                tuple(attention),
                (width, kv_width, kv_width),
            )
            yield Entry(f"{ours}attention.output.weight", (f"{theirs}self_attn.o_proj.weight",))
            gated = [f"{theirs}mlp.{name}_proj.weight" for name in ("gate", "up")]
            yield Entry(f"{ours}mlp.gate_up.weight", tuple(gated), (config.ffn_dim,) * 2)
            yield Entry(f"{ours}mlp.down.weight", (f"{theirs}mlp.down_proj.weight",))
            yield Entry(f"{ours}attention_norm.weight", (f"{theirs}input_layernorm.weight",))
            yield Entry(f"{ours}mlp_norm.weight", (f"{theirs}post_attention_layernorm.weight",))

    return Family(there, "model.embed_tokens.weight", list(entries()), {})


def _gpt2(config: Gpt2Config, length: int) -> Family:
    there = {
        "model_type": "gpt2",
        "architecture": "GPT2LMHeadModel",
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_dim,
        "n_positions": length,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    entries = [Entry(f"norm.{part}", (f"transformer.ln_f.{part}",)) for part in ("weight", "bias")]
    for index in range(config.num_layers):
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                # Their products are x W, ours x Wᵀ.
                matrix = part == "weight" and not ours.endswith("norm")
                name = f"transformer.h.{index}.{theirs}.{part}"
                entries.append(Entry(f"blocks.{index}.{ours}.{part}", (name,), (), matrix))
    positions = sine_cosine_positions(length, config.width, torch.device("cpu"))
    made = {"transformer.wpe.weight": config.position_scale * positions}
    return Family(there, "transformer.wte.weight", entries, made)


def _mamba(config: MambaConfig, length: int) -> Family:
    there = {
        "model_type": "mamba",
        "architecture": "MambaForCausalLM",
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "state_size": config.state_size,
        "expand": config.expand,
        "intermediate_size": config.inner_width,
        "conv_kernel": config.conv_kernel,
        "time_step_rank": config.dt_rank,
        "layer_norm_epsilon": config.norm_eps,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "hidden_act": "silu",
    }
    names = {
        "norm.weight": "norm.weight",
        "in_proj.weight": "mixer.in_proj.weight",
        "conv.weight": "mixer.conv1d.weight",
        "conv.bias": "mixer.conv1d.bias",
        "x_proj.weight": "mixer.x_proj.weight",
        "dt_proj.weight": "mixer.dt_proj.weight",
        "dt_proj.bias": "mixer.dt_proj.bias",
        "a_log": "mixer.A_log",
        "skip": "mixer.D",
        "out_proj.weight": "mixer.out_proj.weight",
    }
    entries = [Entry("norm.weight", ("backbone.norm_f.weight",))]
    for index in range(config.num_layers):
        for ours, theirs in names.items():
            entries.append(Entry(f"blocks.{index}.{ours}", (f"backbone.layers.{index}.{theirs}",)))
    return Family(there, "backbone.embeddings.weight", entries, {})


_FAMILIES: dict[type[BackboneConfig], Callable[[Any, int], Family]] = {
    LlamaConfig: _llama,
    Gpt2Config: _gpt2,
    MambaConfig: _mamba,
}
