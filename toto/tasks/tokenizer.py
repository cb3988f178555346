"""What the training of every tokenizer shares: frames of a batch in, codes counted."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.data.batch import Batch
from toto.training.task import Mean, Task

if TYPE_CHECKING:
    from toto.tokenizers.base import Tokenizer

__all__ = ["TokenizerTask", "code_counts", "mean_of"]


class TokenizerTask(Task[Batch]):
    """The loss of a tokenizer on the frames of a batch, each a picture of its own.

    Metrics in evaluation mode hold `psnr` (dB, mean over frames) and `codes`, whose total counts
    how often each code was used.
    """

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that is trained."""

    @property
    def can_be_parted(self) -> bool:
        """No: a step may read a weight beside its module, or set one."""
        return False

    def num_targets(self, batch: Batch) -> int:
        """Values, three a pixel; padding has none."""
        return 0 if batch.padding else _pixels(batch).numel()

    def pictures(self, batch: Batch) -> Tensor:
        """The frames of a batch as pictures: `B3HW` float32 in [0, 1].

        Raises:
            ValueError: the batch holds codes, not pixels.
        """
        return _pixels(batch).flatten(0, 1).float() / 255


def mean_of(values: Tensor, weight: int = 1) -> Mean:
    """The mean over all `values`, detached; `weight` where a value already is the mean of many."""
    total = values.detach().double().sum() * weight
    return Mean(total, torch.full_like(total, values.numel() * weight))


def code_counts(codes_BHW: Tensor, num_codes: int) -> Mean:
    """How often each of `num_codes` codes was used: the total, `V`."""
    counts_V = torch.bincount(codes_BHW.flatten(), minlength=num_codes).double()
    return Mean(counts_V, torch.full_like(counts_V, codes_BHW.numel()))


def _pixels(batch: Batch) -> Tensor:
    if batch.pixels_BTCHW is None:
        raise ValueError("a tokenizer is trained on pixels, and this batch holds codes")
    return batch.pixels_BTCHW
