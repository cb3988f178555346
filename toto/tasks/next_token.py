"""The task of the paper: predict each next token of a sequence (§3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from toto.sequence import SequenceLayout
from toto.tokenizers.base import TokenGrid
from toto.training.task import Mean, Task, TaskOutput

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.data.batch import Batch
    from toto.heads.config import HeadConfig
    from toto.model import AutoregressiveModel
    from toto.tokenizers.base import Tokenizer
    from toto.training.config import OptimizerConfig

__all__ = ["Classifier", "ModelTask", "NextTokenTask", "to_frames"]


@dataclass(frozen=True)
class Classifier:
    """What one entry of the metric "accuracy" is of.

    Attributes:
        layer: whose features it reads: 0 the embedding, k the output of block k.
        head: its pooling.
        lr: its peak learning rate; None: that of the run.
    """

    layer: int
    head: HeadConfig
    lr: float | None


class ModelTask(Task["Batch"]):
    """A model that learns, over a frozen tokenizer that turns pixels into what it learns.

    Args:
        model: what is trained.
        tokenizer: the one the model was made for; batches that hold codes do not need it to run.
        target_tokenizer: the one of its targets; None where the inputs are the targets.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        tokenizer: Tokenizer,
        target_tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.target_tokenizer = target_tokenizer
        if target_tokenizer is not None:
            target_tokenizer.requires_grad_(False).eval()

    @property
    def trainable(self) -> nn.Module:
        """The model."""
        return self.model

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """What tells classes apart; none: there is no metric "accuracy"."""
        return ()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode of the model; tokenizers always evaluate."""
        super().train(mode)
        self.tokenizer.eval()
        if self.target_tokenizer is not None:
            self.target_tokenizer.eval()
        return self

    def tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the model takes in and what it predicts: codes `BTHW` or patches `BTHWC`.

        Patch targets are made from the inputs by `Tokenizer.patch_targets`. A target tokenizer
        encodes the same crop, shrunk until it gives the inputs' grid.
        """
        frames = to_frames(self.tokenizer, batch)
        if self.target_tokenizer is None:
            is_codes = batch.codes_BTHW is not None or self.tokenizer.config.output == "codes"
            return frames, frames if is_codes else self.tokenizer.patch_targets(frames)
        height, width = frames.shape[2:4]
        full = batch.frames().shape[-1]
        resolution = self.target_tokenizer.config.resolution_of((height, width), full)
        return frames, to_frames(self.target_tokenizer, batch, resolution=resolution)

    def param_roles(self) -> dict[str, ParamRole]:
        """The model's."""
        return self.model.param_roles()

    def lr_scales(self, optimizer: OptimizerConfig) -> dict[str, float]:
        """`decay ** (top - layer)`, with the layers of the model (Bao et al. 2021; MAE's code)."""
        if optimizer.layer_decay == 1.0:
            return {}
        top = self.model.backbone.config.num_layers + 1
        layers = self.model.param_layers()
        return {name: optimizer.layer_decay ** (top - layer) for name, layer in layers.items()}

    @property
    def width_ratio(self) -> float:
        """The model's."""
        return self.model.width_ratio

    def compile_blocks(self) -> None:
        """The model's blocks and its readout with the loss."""
        self.model.compile_blocks()


class NextTokenTask(ModelTask):
    """The next token of every position.

    The trained loss is the mean over all targets, the end included; under a prefix mask over those
    after the prefix. The metrics leave the end out, as the paper's figures do: "loss", and
    "frame_loss" with one entry per frame; nats a token for code targets, mean squared error for
    patches. In training mode also "source_loss", with one entry per source of the mixture.

    Args:
        model: what is trained.
        tokenizer: the one the model was made for; batches that hold codes do not need it to run.
        target_tokenizer: the one of its targets; None where the inputs are the targets.
        num_sources: of the mixture that `source_B` counts; 0: the loss is not told apart.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        tokenizer: Tokenizer,
        target_tokenizer: Tokenizer | None = None,
        *,
        num_sources: int = 0,
    ) -> None:
        super().__init__(model, tokenizer, target_tokenizer)
        self.num_sources = num_sources

    def forward(self, batch: Batch) -> TaskOutput:
        """See the class."""
        frames, targets = self.tokens(batch)
        losses_BL = self.model.losses(frames, batch.is_image_B, targets)
        return self.output(losses_BL, frames, batch)

    def output(self, losses_BL: Tensor, frames: Tensor, batch: Batch) -> TaskOutput:
        """Loss and metrics of a batch whose frames and losses are known."""
        visual_BL = losses_BL.detach()[:, : frames.shape[1:4].numel()].double()
        predicted_BL = torch.ones_like(visual_BL)
        given = self.model.mask.num_given
        predicted_BL[:, :given] = 0
        by_frame = [part.view(*frames.shape[:2], -1) for part in (visual_BL, predicted_BL)]
        totals_BT, counts_BT = (by_frame[0] * by_frame[1]).sum(2), by_frame[1].sum(2)
        frame_loss = Mean(totals_BT.sum(0), counts_BT.sum(0))
        metrics = {
            "loss": Mean(frame_loss.total.sum(), frame_loss.count.sum()),
            "frame_loss": frame_loss,
        }
        if self.training and self.num_sources:
            sums_B = Mean(totals_BT.sum(1), counts_BT.sum(1))
            metrics["source_loss"] = _by_source(sums_B, batch.source_B, self.num_sources)
        return TaskOutput(losses_BL[:, given:].mean(), metrics)

    def is_padding(self, batch: Batch) -> bool:
        """As the batch says: a picture as long as the prefix has no target, but maybe a label."""
        return batch.padding

    def num_targets(self, batch: Batch) -> int:
        """T·H·W a sequence, and the end for codes, less a prefix; padding has none."""
        if batch.padding:
            return 0
        frames = batch.frames()
        size = frames.shape[2:4]
        if batch.pixels_BTCHW is not None:
            size = torch.Size(self.tokenizer.config.grid(frames.shape[-1]))
        target = self.target_tokenizer or self.tokenizer
        targets = SequenceLayout(frames.shape[1], *size).num_targets(target.config.output)
        return len(batch) * (targets - self.model.mask.num_given)


def _by_source(mean_B: Mean, source_B: Tensor, num_sources: int) -> Mean:
    """The sequences' means summed to one entry per source."""
    empty = mean_B.total.new_zeros(num_sources)
    return Mean(
        empty.index_add(0, source_B, mean_B.total), empty.index_add(0, source_B, mean_B.count)
    )


def to_frames(tokenizer: Tokenizer, batch: Batch, *, resolution: int | None = None) -> Tensor:
    """What a model takes: the batch's codes, or its pixels as `codes_BTHW` or `patches_BTHWC`.

    Pixels are tokenized in fp32 whatever the run's precision, so that the tokens do not depend
    on it.

    Args:
        tokenizer: on the batch's device.
        batch: pixels, or codes of that tokenizer.
        resolution: the side that pixels are shrunk to first; None: as they are.
    """
    if batch.codes_BTHW is not None:
        return batch.codes_BTHW
    pixels_BTCHW = batch.frames()
    with torch.no_grad(), torch.autocast(pixels_BTCHW.device.type, enabled=False):
        pixels_BCHW = pixels_BTCHW.flatten(0, 1).float() / 255
        if resolution not in (None, pixels_BCHW.shape[-1]):
            pixels_BCHW = _shrunk(pixels_BCHW, resolution)
        grid = tokenizer.encode(pixels_BCHW)
    tokens = grid.codes_BHW if isinstance(grid, TokenGrid) else grid.patches_BHWC
    return tokens.view(*pixels_BTCHW.shape[:2], *tokens.shape[1:])


def _shrunk(pixels_BCHW: Tensor, resolution: int) -> Tensor:
    """Bicubic and antialiased, as clips are resized when they are read."""
    resized_BCHW = interpolate(
        pixels_BCHW, size=(resolution, resolution), mode="bicubic", antialias=True
    )
    return resized_BCHW.clamp(0, 1)  # bicubic overshoots
