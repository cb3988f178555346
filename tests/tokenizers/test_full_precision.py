"""Tokens do not depend on the device or on who asks: no TF32, no autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from toto.tokenizers.base import Tokenizer
from toto.tokenizers.config import DvaeConfig, VqganConfig

SMALL: list[Tokenizer] = [
    DvaeConfig(
        num_codes=16, width=8, blocks_per_group=1, decoder_stem=8, weights="random:0"
    ).build(),
    VqganConfig(
        num_codes=16, code_dim=8, latent_dim=8, width=32, width_multipliers=(1, 1),
        blocks_per_level=1, attention_levels=(), weights="random:0",
    ).build(),
]  # fmt: skip


@pytest.mark.parametrize("tokenizer", SMALL, ids=lambda one: one.config.registered_name)
def test_convolutions_run_without_tf32_and_the_setting_comes_back(tokenizer: Tokenizer) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(*_: Any) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))

    for module in tokenizer.modules():
        module.register_forward_hook(look)
    before = torch.backends.cudnn.allow_tf32
    assert before, "torch's default; without it the test could not fail"
    with torch.autocast("cpu", torch.bfloat16):
        tokenizer.decode(tokenizer.encode(torch.rand(1, 3, 32, 32)))
    assert len(seen) > 10
    assert set(seen) == {(False, False)}
    assert torch.backends.cudnn.allow_tf32 == before
