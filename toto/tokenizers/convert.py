"""Published weights become tokenizers of ours: what a file is, and its sizes, by its content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from toto.errors import CheckpointError
from toto.tensor_names import mixed_prefixes, without_wrappers
from toto.tokenizers.config import DvaeConfig, VqganConfig
from toto.tokenizers.pickles import Inert, read_pickled
from toto.tokenizers.weights import is_safetensors, read_safetensors, tensor_differences

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from toto.tokenizers.base import Tokenizer
    from toto.tokenizers.config import CodebookConfig

__all__ = ["Converted", "convert"]

ENCODER = "the dVAE's encoder"
DECODER = "the dVAE's decoder"
CHECKPOINT = "a checkpoint"
MODULES = {"dall_e.encoder.Encoder": ENCODER, "dall_e.decoder.Decoder": DECODER}
HALF_INPUT = "blocks.input.w"
DVAE_INPUT = f"encoder.{HALF_INPUT}"
VQGAN_PARTS = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")

AS_PUBLISHED = "Give the files as they were published"

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Converted:
    """A tokenizer with the weights of published files.

    Attributes:
        tokenizer: its tensors are mapped to the files, which must stay while it is used.
        ignored: how many tensors of the files it has no use for, by the first part of their names.
    """

    tokenizer: Tokenizer
    ignored: Mapping[str, int]


def convert(paths: Sequence[Path]) -> Converted:
    """Build the tokenizer whose weights the files are, strictly.

    Args:
        paths: the dVAE's encoder and decoder, as modules or as their state_dicts; or one checkpoint
            of VQGAN as Lightning writes it, or the state_dict of either tokenizer, as a file of
            torch.save or safetensors. What they are is seen from their content. Prefixes of
            torch.compile and DistributedDataParallel are removed where all names have them.

    Raises:
        CheckpointError: a file cannot be read without running it, is something else, or its
            tensors are not those of one tokenizer.
    """
    parts = [_read_part(path) for path in paths]
    kinds = [kind for kind, _ in parts]
    source = " and ".join(map(str, paths))
    if kinds == [ENCODER, DECODER]:
        (_, encoder), (_, decoder) = parts
        tensors = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
        tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
        return Converted(_build(_dvae_config, tensors, source), {})
    if kinds == [CHECKPOINT]:
        ((_, state),) = parts
        if DVAE_INPUT in state:
            return Converted(_build(_dvae_config, state, source), {})
        tensors = {name: t for name, t in state.items() if _first(name) in VQGAN_PARTS}
        ignored = Counter(_first(name) for name in state.keys() - tensors.keys())
        return Converted(_build(_vqgan_config, tensors, source, mixed_prefixes(state)), ignored)
    said = ", ".join(f"{path} is {kind}" for path, kind in zip(paths, kinds, strict=True))
    raise CheckpointError(
        f"{said}. Give {ENCODER} and {DECODER}, in this order, or one checkpoint of VQGAN"
    )


def _read_part(path: Path) -> tuple[str, Tensors]:
    """What the file is, and its tensors by name."""
    content = read_safetensors(path) if is_safetensors(path) else read_pickled(path)
    if isinstance(content, Inert) and content.stands_for in MODULES:
        return MODULES[content.stands_for], _module_tensors(content, path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if _is_state(state):
        tensors = without_wrappers({str(name): tensor for name, tensor in state.items()})
        return _kind_of(tensors), tensors
    raise CheckpointError(
        f"{path} holds neither {ENCODER} or decoder nor tensors under state_dict. "
        f"{_how_to_save(content, path)}"
    )


def _is_state(value: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether it is a state_dict: tensors by name, at least one."""
    return isinstance(value, dict) and bool(value) and all(map(_is_tensor, value.values()))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _kind_of(tensors: Tensors) -> str:
    """Half a dVAE, of which the encoder takes the three colours; or a checkpoint."""
    first = tensors.get(HALF_INPUT)
    if first is None or first.ndim != 4:
        return CHECKPOINT
    return ENCODER if first.shape[1] == 3 else DECODER


def _how_to_save(content: object, path: Path) -> str:
    """What to do with a file whose tensors are at a place of their own."""
    places = (
        [key for key, value in content.items() if _is_state(value)]
        if isinstance(content, dict)
        else []
    )
    if not places:
        return AS_PUBLISHED
    return (
        f"It has tensors under {', '.join(map(repr, places))}. Save those of the tokenizer alone: "
        f'torch.save(torch.load({str(path)!r}, weights_only=True)[{places[0]!r}], "weights.pt")'
    )


def _module_tensors(module: Inert, path: Path) -> Tensors:
    """Parameters and buffers of a pickled module and its children, named as in its state_dict."""
    tensors: Tensors = {}
    waiting: list[tuple[str, object]] = [("", module)]
    seen: set[int] = set()
    while waiting:
        prefix, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        try:
            state: Any = node.state  # type: ignore[attr-defined]  # told by the exception
            waiting += [(f"{prefix}{name}.", child) for name, child in state["_modules"].items()]
            own = {**state["_parameters"], **state["_buffers"]}
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: {prefix.rstrip('.') or 'the module'} is no module as torch pickles them. "
                f"{AS_PUBLISHED}"
            ) from error
        tensors |= {f"{prefix}{name}": t for name, t in own.items() if isinstance(t, Tensor)}
    return tensors


def _first(name: str) -> str:
    return name.split(".")[0]


def _dvae_config(shapes: Shapes) -> DvaeConfig:
    return DvaeConfig(
        num_codes=shapes["encoder.blocks.output.conv.w"][0],
        width=shapes["encoder.blocks.input.w"][0],
        blocks_per_group=_count(shapes, "encoder.blocks.group_1.block_"),
        decoder_stem=shapes["decoder.blocks.input.w"][0],
    )


def _vqgan_config(shapes: Shapes) -> VqganConfig:
    """The groups of GroupNorm leave no trace: 32, as published."""
    num_codes, code_dim = shapes["quantize.embedding.weight"]
    width = shapes["encoder.conv_in.weight"][0]
    levels = range(_count(shapes, "encoder.down."))
    return VqganConfig(
        num_codes=num_codes,
        code_dim=code_dim,
        latent_dim=shapes["quant_conv.weight"][1],
        width=width,
        width_multipliers=tuple(
            shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] // width for level in levels
        ),
        blocks_per_level=_count(shapes, "encoder.down.0.block."),
        attention_levels=tuple(
            level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in shapes
        ),
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different numbers follow the prefix in the names."""
    return len({_first(name.removeprefix(prefix)) for name in shapes if name.startswith(prefix)})


def _build(
    config_of: Callable[[Shapes], CodebookConfig], tensors: Tensors, source: str, advice: str = ""
) -> Tokenizer:
    """The tokenizer of these tensors, all of them and no others; `advice` for when they are not."""
    advice = advice or AS_PUBLISHED
    try:
        config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except KeyError as error:
        raise CheckpointError(f"{source}: no tensor {error.args[0]}. {advice}") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: tensors of impossible sizes. {advice}") from error
    with torch.device("meta"):
        tokenizer = config.build()
    found = tensor_differences(tokenizer, tensors)
    if found:
        name = config.registered_name
        raise CheckpointError(f"{source}: not the tensors of one {name}: {found}. {advice}")
    tokenizer.load_state_dict(tensors, strict=True, assign=True)
    return tokenizer
