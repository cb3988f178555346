from __future__ import annotations

import torch

from toto.layers.norm import RMSNorm


def test_divides_by_the_root_mean_square_and_applies_the_gain():
    norm = RMSNorm(4, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = torch.tensor([[1.0, -1.0, 7.0, 7.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[0.2, -0.4, 4.2, 5.6]]))


def test_bf16_input_is_normalised_in_fp32_and_returned_in_bf16():
    norm = RMSNorm(64, eps=1e-5)
    x = 100 * torch.randn(3, 64).bfloat16()
    torch.testing.assert_close(norm(x), norm(x.float()).bfloat16(), atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.float()).dtype == torch.float32
