"""Published weights become tokenizers of ours: what a file is, and its sizes, by its content."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toto.errors import CheckpointError
from toto.tokenizers.config import DvaeConfig, VqganConfig
from toto.tokenizers.pickles import Inert, read_pickled
from toto.tokenizers.weights import tensor_differences

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
        paths: the dVAE's encoder and decoder, or one checkpoint of VQGAN as Lightning writes it.
            What they are is seen from their content.

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
        tensors = {name: t for name, t in state.items() if _first(name) in VQGAN_PARTS}
        ignored = Counter(_first(name) for name in state.keys() - tensors.keys())
        return Converted(_build(_vqgan_config, tensors, source), ignored)
    said = ", ".join(f"{path} is {kind}" for path, kind in zip(paths, kinds, strict=True))
    raise CheckpointError(
        f"{said}. Give {ENCODER} and {DECODER}, in this order, or one checkpoint of VQGAN"
    )


def _read_part(path: Path) -> tuple[str, Tensors]:
    """What the file is, and its tensors by name."""
    content = read_pickled(path)
    if isinstance(content, Inert) and content.stands_for in MODULES:
        return MODULES[content.stands_for], _module_tensors(content, path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if isinstance(state, dict) and all(isinstance(tensor, Tensor) for tensor in state.values()):
        return CHECKPOINT, {str(name): tensor for name, tensor in state.items()}
    raise CheckpointError(
        f"{path} holds neither {ENCODER} or decoder nor tensors under state_dict. {AS_PUBLISHED}"
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
    config_of: Callable[[Shapes], CodebookConfig], tensors: Tensors, source: str
) -> Tokenizer:
    """The tokenizer of these tensors, all of them and no others."""
    try:
        config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except KeyError as error:
        raise CheckpointError(f"{source}: no tensor {error.args[0]}. {AS_PUBLISHED}") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: tensors of impossible sizes. {AS_PUBLISHED}") from error
    with torch.device("meta"):
        tokenizer = config.build()
    found = tensor_differences(tokenizer, tensors)
    if found:
        name = config.registered_name
        raise CheckpointError(f"{source}: not the tensors of one {name}: {found}. {AS_PUBLISHED}")
    tokenizer.load_state_dict(tensors, strict=True, assign=True)
    return tokenizer
