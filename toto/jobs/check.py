"""`toto check`: the contract, run on one component."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toto.backbones.config import BACKBONES
from toto.errors import UserError
from toto.heads.config import HEADS
from toto.jobs.component import parse_component
from toto.jobs.console import say
from toto.registry import import_plugin
from toto.testing import (
    TEST_RESOLUTION,
    check_backbone,
    check_head,
    check_tokenizer,
    missing_options,
)
from toto.tokenizers.config import TOKENIZERS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_component"]


def check_component(
    part: str, text: str, *, imports: Sequence[str], resolution: int | None
) -> None:
    """Run the contract on a component; print what holds and which optional methods it lacks.

    Args:
        part: tokenizer, backbone or head.
        text: its name, or its mapping as YAML.
        imports: plug-ins to import first.
        resolution: of a tokenizer's test images; None for TEST_RESOLUTION.

    Raises:
        UserError: an unknown component, a resolution for what is no tokenizer, or a broken
            contract.
    """
    if resolution is not None and part != "tokenizer":
        raise UserError(f"--resolution: a {part} sees no images. Leave it out")
    for reference in imports:
        import_plugin(reference, Path.cwd())
    missing = []
    if part == "tokenizer":
        tokenizer = parse_component(TOKENIZERS, text)
        lines = check_tokenizer(tokenizer, resolution=resolution or TEST_RESOLUTION)
    elif part == "backbone":
        backbone = parse_component(BACKBONES, text)
        lines = check_backbone(backbone)
        missing = missing_options(backbone)
    else:
        lines = check_head(parse_component(HEADS, text))
    say(f"{part} {text}")
    for line in lines:
        say(f"  holds: {line}")
    for line in missing:
        say(f"  optional: {line}")
