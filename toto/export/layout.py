"""How weights of toto and of transformers correspond, one table a family, read both ways."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.backbones.gpt2 import sine_cosine_positions
from toto.errors import UserError
from toto.sequence import END_ID, PAD_ID, VIDEO_START_ID
from toto.tensor_names import mixed_prefixes, without_wrappers
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

__all__ = [
    "Entry",
    "Family",
    "Setting",
    "changed_settings",
    "family_of",
    "from_theirs",
    "to_theirs",
]

READOUT = "lm_head.weight"
"""Its name in every family, where it is not tied to the embedding."""

ROPE_BASE, ROPE_TYPE = "rope_theta", "rope_type"

Tensors = dict[str, "Tensor"]

# Fields of every backbone that need no key of config.json: a tied readout has its own, µP is
# refused before, and the readout of patches does not exist in a model of codes.
EXPRESSED = {"tie_embeddings", "mup_base_width", "patch_readout"}


def _never_derived(name: str, tensor: Tensor, theirs: Mapping[str, Any]) -> bool:
    return False


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
class Setting:
    """One key of config.json on which the outputs of a model depend.

    Attributes:
        theirs: the key.
        value: what our backbone computes, in their terms.
        absent: what transformers takes where the key is missing or null.
        ours: the field of our Config behind it; None: toto's family has no other value.
    """

    theirs: str
    value: Any
    absent: Any
    ours: str | None = None


@dataclass(frozen=True)
class Family:
    """What transformers calls a family, and how its parts are named there.

    Attributes:
        config: model type, architecture and sizes, as config.json has them, but for ids.
        settings: the keys of config.json that decide what the weights compute.
        embedding: name of the embedding.
        entries: of the backbone.
        made: tensors that they hold and we compute.
        made_of: fields of our Config that `made` expresses.
        is_derived: whether a tensor of theirs, by name, follows from their config.json, so that
            it can be left out. It raises UserError where name and content contradict.
    """

    config: dict[str, Any]
    settings: list[Setting]
    embedding: str
    entries: list[Entry]
    made: Tensors
    made_of: frozenset[str] = frozenset()
    is_derived: Callable[[str, Tensor, Mapping[str, Any]], bool] = _never_derived

    @property
    def prefix(self) -> str:
        """What the names of the model without its readout begin with in a model with one."""
        return self.embedding.split(".")[0] + "."


def family_of(config: BackboneConfig, *, vocab_size: int, length: int) -> Family:
    """The family of a backbone.

    Args:
        config: its sizes.
        vocab_size: V, the special ids included.
        length: the most positions of a sequence.

    Raises:
        UserError: a backbone that transformers does not have, or one with a setting that its class
            cannot express.
    """
    make = _FAMILIES.get(type(config))
    if make is None:
        names = ", ".join(str(kind.registered_name) for kind in _FAMILIES)
        raise UserError(
            f"backbone {config.registered_name}: transformers has none like it. It has {names}"
        )
    family = make(config, length)
    _require_expressed(config, family)
    settings = [
        *family.settings,
        Setting("vocab_size", vocab_size, None),
        Setting("tie_word_embeddings", config.tie_embeddings, _tied(family), "tie_embeddings"),
    ]
    common = {setting.theirs: setting.value for setting in settings if setting.theirs != ROPE_TYPE}
    ids = {"pad_token_id": PAD_ID, "bos_token_id": VIDEO_START_ID, "eos_token_id": END_ID}
    config_json = common | family.config | ids | {"torch_dtype": "float32"}
    return replace(family, config=config_json, settings=settings)


def changed_settings(theirs: Mapping[str, Any], family: Family) -> list[tuple[Setting, Any]]:
    """Return the settings in which a config.json differs from our backbone, with its values."""
    base, kind = rope_of(theirs)
    said = {**theirs, ROPE_BASE: base, ROPE_TYPE: kind}
    if said.get("time_step_rank") == "auto":
        del said["time_step_rank"]
    found = [
        (setting, setting.absent if said.get(setting.theirs) is None else said[setting.theirs])
        for setting in family.settings
    ]
    return [(setting, value) for setting, value in found if value != setting.value]


def _tied(family: Family) -> bool:
    """What transformers takes where config.json does not say whether the readout is tied."""
    architectures: list[str] = family.config["architectures"]
    return architectures != ["LlamaForCausalLM"]


def _require_expressed(config: BackboneConfig, family: Family) -> None:
    """Refuse a field that no key of config.json stands for, unless it has its default.

    Raises:
        UserError: names each such field.
    """
    known = EXPRESSED | family.made_of | {setting.ours for setting in family.settings}
    unknown = [
        f"{name}: {getattr(config, name)!r}"
        for name, field in type(config).model_fields.items()
        if name not in known and (field.is_required() or getattr(config, name) != field.default)
    ]
    if unknown:
        raise UserError(
            f"backbone.{', backbone.'.join(unknown)}: transformers' "
            f"{family.config['architectures'][0]} has no setting for it, and would compute "
            "something else with these weights. Such a model cannot be exported"
        )


def to_theirs(state: Tensors, family: Family) -> Tensors:
    """Return the weights of an AutoregressiveModel under transformers' names.

    A tied readout is left out.

    Raises:
        UserError: tensors that transformers' class has no place for; each is named.
    """
    left = sorted(
        state.keys()
        - {"interface.embedding.weight", "interface.readout.weight"}
        - {f"backbone.{entry.ours}" for entry in family.entries}
    )
    if left:
        raise UserError(
            f"transformers' {family.config['architectures'][0]} has no place for "
            f"{number_of(len(left), 'tensor')} of this model: {', '.join(left)}. Without "
            "them it would "
            "compute something else, so that this model cannot be exported"
        )
    found = {family.embedding: state["interface.embedding.weight"], **family.made}
    if "interface.readout.weight" in state:
        found[READOUT] = state["interface.readout.weight"]
    for entry in family.entries:
        tensor = state[f"backbone.{entry.ours}"]
        parts = torch.split(tensor, list(entry.sizes)) if entry.sizes else (tensor,)
        for name, part in zip(entry.theirs, parts, strict=True):
            found[name] = part.T if entry.transposed else part
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def from_theirs(tensors: Tensors, family: Family, theirs: Mapping[str, Any]) -> Tensors:
    """Return the `state_dict()` of an AutoregressiveModel: the inverse of `to_theirs`.

    Args:
        tensors: by transformers' names; those of a wrapped or headless model are understood too.
        family: of our backbone.
        theirs: the content of their config.json.

    Raises:
        UserError: a tensor is missing or has no place, or one that we compute is another there.
    """
    tied = family.config["tie_word_embeddings"]
    wanted = [family.embedding, *(name for entry in family.entries for name in entry.theirs)]
    wanted += [] if tied else [READOUT]
    tensors = without_wrappers(tensors, wanted)
    if not any(name.startswith(family.prefix) for name in tensors):
        # `AutoModel` saves the model without its readout, and without the prefix on all names.
        tensors = {
            name if name == READOUT else family.prefix + name: t for name, t in tensors.items()
        }
    missing = [name for name in wanted if name not in tensors]
    if missing:
        advice = mixed_prefixes(tensors) or "Give the recipe's backbone the sizes of that model"
        raise UserError(
            f"{number_of(len(missing), 'tensor')} missing, {missing[0]} first. {advice}"
        )
    left = sorted(
        name
        for name in tensors.keys() - {*wanted, *family.made}
        if not family.is_derived(name, tensors[name], theirs)
    )
    if tied and READOUT in left and torch.equal(tensors[READOUT], tensors[family.embedding]):
        left.remove(READOUT)  # the tied matrix, written twice
    if left:
        raise UserError(
            f"tensors that have no place in this backbone: {len(left)}, {left[0]} first. "
            + (mixed_prefixes(tensors) or "Give the recipe's backbone the sizes of that model")
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
    settings = [
        Setting("model_type", "llama", None, "name"),
        Setting("hidden_size", width, 4096, "width"),
        Setting("intermediate_size", config.ffn_dim, 11008, "ffn_dim"),
        Setting("num_hidden_layers", config.num_layers, 32, "num_layers"),
        Setting("num_attention_heads", config.num_heads, 32, "num_heads"),
        Setting("num_key_value_heads", config.num_kv_heads, config.num_heads, "num_kv_heads"),
        Setting("head_dim", config.head_dim, width // config.num_heads),
        Setting("rms_norm_eps", config.norm_eps, 1e-6, "norm_eps"),
        Setting(ROPE_BASE, config.rope_base, 10_000.0, "rope_base"),
        Setting(ROPE_TYPE, "default", "default"),
        Setting("attention_bias", False, False),
        Setting("mlp_bias", False, False),
        Setting("hidden_act", "silu", "silu"),
    ]
    there = {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": length,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
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

    return Family(
        there, settings, "model.embed_tokens.weight", list(entries()), {},
        is_derived=_is_inverse_frequency,
    )  # fmt: skip


def _is_inverse_frequency(name: str, tensor: Tensor, theirs: Mapping[str, Any]) -> bool:
    """Whether it is a buffer of rotary positions, which transformers wrote until its 4.32."""
    if not name.endswith("rotary_emb.inv_freq"):
        return False
    base = float(rope_of(theirs)[0])
    exponents = torch.arange(len(tensor), dtype=torch.float64) / len(tensor)
    # 1 % because the buffer may have been saved in bf16.
    if not torch.allclose(tensor.double(), base**-exponents, rtol=1e-2, atol=0.0):
        raise UserError(
            f"{name}: its values are not those of the RoPE base {base:g} in config.json. Correct "
            "rope_theta there, or remove the inv_freq tensors if config.json is right"
        )
    return True


def rope_of(theirs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return RoPE's base and type as a config.json says them, in whichever version's keys."""
    # transformers 5 has `rope_parameters`; before, `rope_scaling` came with a `rope_theta`.
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"config.json: {rope!r} is no mapping of RoPE's parameters. Correct it")
    base = rope.get("rope_theta", theirs.get(ROPE_BASE))
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", theirs.get("partial_rotary_factor", 1.0))
    return (10_000.0 if base is None else base), (kind if partial == 1.0 else "partial")


def _gpt2(config: Gpt2Config, length: int) -> Family:
    settings = [
        Setting("model_type", "gpt2", None, "name"),
        Setting("n_embd", config.width, 768, "width"),
        Setting("n_layer", config.num_layers, 12, "num_layers"),
        Setting("n_head", config.num_heads, 12, "num_heads"),
        Setting("n_inner", config.ffn_dim, 4 * config.width, "ffn_dim"),
        Setting("layer_norm_epsilon", config.norm_eps, 1e-5, "norm_eps"),
        Setting("activation_function", "gelu_new", "gelu_new"),
        Setting("scale_attn_weights", True, True),
        Setting("scale_attn_by_inverse_layer_idx", False, False),
        Setting("add_cross_attention", False, False),
    ]
    there = {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": length,
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
    return Family(
        there, settings, "transformer.wte.weight", entries, made,
        frozenset({"position_scale"}), _is_causal_mask,
    )  # fmt: skip


def _is_causal_mask(name: str, tensor: Tensor, theirs: Mapping[str, Any]) -> bool:
    """Whether it is a buffer of GPT-2's causal mask, which transformers wrote until its 4.31."""
    if re.fullmatch(r"transformer\.h\.\d+\.attn\.masked_bias", name):
        return tensor.numel() == 1
    if not re.fullmatch(r"transformer\.h\.\d+\.attn\.bias", name):
        return False
    return torch.equal(tensor.bool(), tensor.bool().new_ones(tensor.shape).tril())


def _mamba(config: MambaConfig, length: int) -> Family:
    settings = [
        Setting("model_type", "mamba", None, "name"),
        Setting("hidden_size", config.width, 768, "width"),
        Setting("num_hidden_layers", config.num_layers, 32, "num_layers"),
        Setting("state_size", config.state_size, 16, "state_size"),
        Setting("expand", config.expand, 2, "expand"),
        Setting("conv_kernel", config.conv_kernel, 4, "conv_kernel"),
        Setting("time_step_rank", config.dt_rank, -(-config.width // 16), "dt_rank"),
        Setting("layer_norm_epsilon", config.norm_eps, 1e-5, "norm_eps"),
        Setting("use_bias", False, False),
        Setting("use_conv_bias", True, True),
        Setting("hidden_act", "silu", "silu"),
    ]
    there = {
        "architectures": ["MambaForCausalLM"],
        "intermediate_size": config.inner_width,
        "residual_in_fp32": True,
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
    return Family(there, settings, "backbone.embeddings.weight", entries, {})


_FAMILIES: dict[type[BackboneConfig], Callable[[Any, int], Family]] = {
    LlamaConfig: _llama,
    Gpt2Config: _gpt2,
    MambaConfig: _mamba,
}
