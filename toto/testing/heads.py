"""The contract of a pooling head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from toto.heads.base import Head
from toto.testing.contract import (
    check_count,
    check_step,
    close,
    described,
    difference,
    expect,
    generator,
)

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.heads.config import HeadConfig

__all__ = ["check_head"]


def check_head(config: HeadConfig, *, width: int = 32) -> list[str]:
    """Check shape, parameter count, masking, gradients and an optimizer step of a pooling head.

    Args:
        config: the head's.
        width: D of the test features.

    Returns:
        What was checked, a line each.

    Raises:
        ContractError: the first breach.
    """
    torch.manual_seed(0)
    head = config.build(width)
    expect(isinstance(head, Head), f"build() returned {described(head)} instead of a Head")
    count = check_count(head, config.num_params(width), f"num_params({width})")
    expect(
        config.normalises in ("tokens", "pooled"),
        f"normalises is {config.normalises!r} instead of 'tokens' or 'pooled'",
    )
    features_BLD = torch.randn(2, 10, width, generator=generator(), requires_grad=True)
    pooled_BD = head(features_BLD)
    expect(
        pooled_BD.shape == (2, width),
        f"forward returned {list(pooled_BD.shape)} for features of shape [2, 10, {width}] instead "
        f"of [2, {width}]",
    )
    valid_BL = torch.arange(10).expand(2, 10) < 6
    masked_BD, short_BD = head(features_BLD, valid_BL), head(features_BLD[:, :6])
    expect(
        close(masked_BD, short_BD),
        "tokens where valid_BL is False take part: the pooled vector differs from that of the "
        f"valid tokens alone by {difference(masked_BD, short_BD):.2g}",
    )
    pooled_BD.square().sum().backward()
    expect(features_BLD.grad is not None, "no gradient reaches the features")
    roles: dict[str, ParamRole] = {name: "probe" for name, _ in head.named_parameters()}
    if roles:
        check_step(head, roles, lambda: head(features_BLD.detach()))
    return [
        f"pools [B, L, {width}] to [B, {width}], {count:,} parameters, masks, gradients",
        "an optimizer step changes every parameter",
    ]
