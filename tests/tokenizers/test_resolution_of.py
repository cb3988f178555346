"""The resolution at which a tokenizer gives a grid."""

from __future__ import annotations

import pytest

from toto.tokenizers.config import DvaeConfig, PatchConfig, TokenizerConfig


class EightPixels(TokenizerConfig):
    """Takes any size and leaves out what is beyond the last whole token."""

    registered_name = "eight"

    @property
    def codebook_size(self) -> int:
        return 4

    def grid(self, resolution: int) -> tuple[int, int]:
        return resolution // 8, resolution // 8

    def build(self):
        raise NotImplementedError


@pytest.mark.parametrize("largest", [128, 256])
def test_it_is_the_smallest_one(largest):
    assert DvaeConfig().resolution_of((16, 16), largest) == 128
    assert EightPixels().resolution_of((16, 16), largest) == 128
    assert PatchConfig(patch_size=4).resolution_of((16, 16), largest) == 64


def test_a_grid_that_it_never_has_is_refused():
    with pytest.raises(ValueError, match=r"dvae gives no grid of 16 × 16 tokens .* up to 127 px"):
        DvaeConfig().resolution_of((16, 16), 127)
    with pytest.raises(ValueError, match="no grid of 2 × 3"):
        DvaeConfig().resolution_of((2, 3), 256)
