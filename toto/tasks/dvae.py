"""Training a dVAE: reconstruct frames from relaxed codes, and keep the codes near uniform.

Source: Ramesh et al. 2021 (arXiv 2102.12092), §2.1 and App. A.2, A.3. The loss is
`(NLL summed over values + β · KL summed over tokens) / values`: a token stands for 8 × 8 × 3
values, so β = 1 is the evidence lower bound.

Three settings are ours, for short runs. `usage_weight`, 0 by default: a token's KL to uniform is,
on average, what the codes tell of the image plus the KL of their mixture over the batch; the paper
weighs both by β, and more of the second spreads the codes at no cost in information.
`initial_logit_gain`, 1 by default, and `initial_code_gain`: fresh logits are small compared with
the Gumbel noise, and every code looks alike to the decoder; larger weights on both sides make codes
distinct from the first step. The vector that the decoder reads of a code is one column of a
convolution whose weights have variance 1/V, as if all V codes came at once; √V gives it unit
variance, whatever V is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.tasks.tokenizer import TokenizerTask, code_counts, mean_of
from toto.tokenizers.dvae import Dvae, map_pixels, reconstruction
from toto.tokenizers.quality import psnr
from toto.training.task import TaskOutput

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.data.batch import Batch
    from toto.tasks.config import DvaeTaskConfig
    from toto.tokenizers.dvae import Decoder, Encoder
    from toto.training.task import Mean

__all__ = ["DvaeTask", "cosine", "logit_laplace_nll"]


class DvaeTask(TokenizerTask):
    """The loss of a dVAE on the frames of a batch, each a picture of its own.

    In training mode codes are relaxed by Gumbel-softmax, with noise from torch's global generator;
    in evaluation mode they are the argmax, without noise and in fp32, as `Dvae.encode` gives them.

    Metrics: `loss` and `nll` (nats per value), `kl` (nats per token), `psnr` (dB, mean over
    frames); in evaluation mode also `codes`, whose total counts how often each code was used.
    """

    def __init__(self, dvae: Dvae, config: DvaeTaskConfig) -> None:
        super().__init__()
        self.dvae = dvae
        self.config = config
        if dvae.config.weights is None:
            _scale_(dvae.encoder, "output.conv.w", config.initial_logit_gain)
            gain = config.initial_code_gain
            _scale_(
                dvae.decoder, "input.w", math.sqrt(dvae.config.num_codes) if gain is None else gain
            )
        self.at_step(0)

    @property
    def tokenizer(self) -> Dvae:
        """The dVAE."""
        return self.dvae

    @property
    def trainable(self) -> Dvae:
        """The whole dVAE, encoder and decoder."""
        return self.dvae

    def at_step(self, step: int) -> None:
        """Set the temperature τ and the weight β of the KL for optimizer step `step`."""
        config = self.config
        self.temperature = cosine(
            config.temperature_start, config.temperature_end, step / config.temperature_steps
        )
        self.kl_weight = cosine(0.0, config.kl_weight, step / config.kl_warmup_steps)

    def param_roles(self) -> dict[str, ParamRole]:
        """The codes' vectors are `embed`, the two last convolutions `readout`, others `hidden`."""
        return {name: _role(name) for name, _ in self.dvae.named_parameters()}

    def forward(self, batch: Batch) -> TaskOutput:
        """Loss and metrics of one micro-batch."""
        pixels_BCHW = self.pictures(batch)
        metrics: dict[str, Mean] = {}
        if self.training:
            logits_BVHW = self.dvae.encoder_logits(pixels_BCHW).float()
            z_BVHW = nn.functional.gumbel_softmax(logits_BVHW, tau=self.temperature, dim=1)
            stats_BCHW = self.dvae.decoder_stats(z_BVHW).float()
        else:
            with torch.autocast(pixels_BCHW.device.type, enabled=False):
                logits_BVHW = self.dvae.encoder_logits(pixels_BCHW)
                codes_BHW = logits_BVHW.argmax(dim=1)
                stats_BCHW = self.dvae.code_stats(codes_BHW)
            metrics["codes"] = code_counts(codes_BHW, logits_BVHW.shape[1])
        nll_BCHW = logit_laplace_nll(stats_BCHW, map_pixels(pixels_BCHW))
        kl_BHW, usage_kl = kl_to_uniform(logits_BVHW)
        penalty = self.kl_weight * kl_BHW.mean() + self.config.usage_weight * usage_kl
        loss = nll_BCHW.mean() + penalty * kl_BHW.numel() / nll_BCHW.numel()
        metrics["loss"] = mean_of(loss, nll_BCHW.numel())
        metrics["nll"] = mean_of(nll_BCHW)
        metrics["kl"] = mean_of(kl_BHW)
        metrics["psnr"] = mean_of(psnr(reconstruction(stats_BCHW), pixels_BCHW))
        return TaskOutput(loss, metrics)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1; constant outside."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def logit_laplace_nll(stats_BCHW: Tensor, mapped_BCHW: Tensor) -> Tensor:
    """-ln of the logit-Laplace density, per value.

    `f(x | μ, b) = exp(-|logit x - μ| / b) / (2 b x (1 - x))` (Ramesh et al. 2021, App. A.3).

    Args:
        stats_BCHW: μ in the first three channels, ln b in the last three.
        mapped_BCHW: pixels inside (0, 1), as `map_pixels` gives them.
    """
    mu_BCHW, ln_b_BCHW = stats_BCHW.chunk(2, dim=1)
    deviation_BCHW = (torch.logit(mapped_BCHW) - mu_BCHW).abs() * torch.exp(-ln_b_BCHW)
    jacobian_BCHW = torch.log(mapped_BCHW * (1 - mapped_BCHW))
    return math.log(2) + ln_b_BCHW + jacobian_BCHW + deviation_BCHW


def kl_to_uniform(logits_BVHW: Tensor) -> tuple[Tensor, Tensor]:
    """KL to the uniform distribution over V codes, in nats: of each token, and of their mixture.

    Returns:
        Of each token's softmax, `BHW`, and of the mean softmax of all tokens, a scalar; the mean
        of the first less the second is what the codes tell of the picture.
    """
    log_q_BVHW = nn.functional.log_softmax(logits_BVHW, dim=1)
    num_tokens = log_q_BVHW.numel() // log_q_BVHW.shape[1]
    # By logarithms: the gradient stays finite where a code's share is too small for a float.
    log_mixture_V = log_q_BVHW.logsumexp(dim=(0, 2, 3)) - math.log(num_tokens)
    ln_v = math.log(logits_BVHW.shape[1])
    kl_BHW = (log_q_BVHW.exp() * log_q_BVHW).sum(dim=1) + ln_v
    return kl_BHW, (log_mixture_V.exp() * log_mixture_V).sum() + ln_v


@torch.no_grad()
def _scale_(part: Encoder | Decoder, block: str, gain: float) -> None:
    part.blocks.get_parameter(block).mul_(gain)


def _role(name: str) -> ParamRole:
    if name.startswith("decoder.blocks.input."):
        return "embed"
    return "readout" if ".output." in name else "hidden"
