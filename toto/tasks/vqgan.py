"""Training a VQGAN: autoencoder, codebook and patch discriminator, in one step.

Source: Esser et al. 2021 (arXiv 2012.09841), §3.1; CompVis/taming-transformers, whose losses
these are. There two optimizers step one after the other on each batch, so that the discriminator
judges images that were decoded again after the autoencoder's step; here one optimizer moves both
sides from one backward pass: the discriminator sees the images detached, and the autoencoder sees
the discriminator's weights detached, so that each gets the gradient of its own loss alone. Each
side's gradient is clipped to a norm of its own (the source clips none): a discriminator with large
gradients does not slow the autoencoder.

The discriminator's BatchNorm and the adaptive weight are those of one micro-batch.

`restart_after` is ours: a code that no vector of so many micro-batches was nearest to becomes one
of the vectors at hand. Ranks count the codes of their micro-batches together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from toto.tasks.discriminator import PatchDiscriminator, hinge_loss
from toto.tasks.perceptual import perceptual_distance
from toto.tasks.tokenizer import TokenizerTask, code_counts, mean_of
from toto.tokenizers.quality import psnr
from toto.training.distributed import Ranks
from toto.training.task import Mean, TaskOutput

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.data.batch import Batch
    from toto.tasks.config import VqganTaskConfig
    from toto.tokenizers.codebook import Codebook
    from toto.tokenizers.vqgan import Vqgan

__all__ = ["DeadCodes", "VqganTask"]

# Bounds of the adaptive weight, and what keeps its quotient finite.
MAX_ADAPTIVE_WEIGHT = 1e4
GRADIENT_EPS = 1e-4


class VqganTask(TokenizerTask):
    """The losses of a VQGAN on the frames of a batch, each a picture of its own.

    Metrics: `loss` (L1, perceptual and codebook terms), `l1` and `psnr` (dB), `codebook`; in
    training mode, from the discriminator's first step on, also `generator`, `discriminator` and
    `adaptive_weight`; in evaluation mode also `codes`, and everything in fp32, as `Vqgan.encode`
    and `decode` give it.
    """

    def __init__(self, vqgan: Vqgan, config: VqganTaskConfig) -> None:
        super().__init__()
        self.config = config
        parts: dict[str, nn.Module] = {
            "vqgan": vqgan,
            "discriminator": PatchDiscriminator(
                config.discriminator_width, config.discriminator_layers
            ),
        }
        if config.restart_after is not None:
            parts["dead_codes"] = DeadCodes(vqgan.config.num_codes, config.restart_after)
        self.parts = nn.ModuleDict(parts)
        self.features = None
        if config.perceptual is not None:
            self.features = config.perceptual.build().requires_grad_(False).eval()
        self.at_step(0)

    @property
    def tokenizer(self) -> Vqgan:
        """The autoencoder with its codebook."""
        return self.parts["vqgan"]  # type: ignore[return-value]  # ModuleDict knows Module alone

    @property
    def discriminator(self) -> PatchDiscriminator:
        """What tells decoded pictures from real ones."""
        return self.parts["discriminator"]  # type: ignore[return-value]

    @property
    def trainable(self) -> nn.ModuleDict:
        """The VQGAN, its discriminator, and for how long codes went unused."""
        return self.parts

    def train(self, mode: bool = True) -> VqganTask:
        """Training or evaluation mode; the feature network always evaluates."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self

    @property
    def clipped_apart(self) -> tuple[str, ...]:
        """The discriminator's: the other side's gradient must not depend on its length."""
        return ("discriminator.",)

    def meet(self, ranks: Ranks) -> None:
        """Codes that are unused on all ranks are dead."""
        if "dead_codes" in self.parts:
            self._dead_codes.ranks = ranks

    def at_step(self, step: int) -> None:
        """The discriminator takes part from its start step on."""
        self.adversarial = step >= self.config.discriminator_start

    def param_roles(self) -> dict[str, ParamRole]:
        """The codes' vectors are `embed`, the last convolutions `readout`, others `hidden`."""
        return {name: _role(name) for name, _ in self.parts.named_parameters()}

    def forward(self, batch: Batch) -> TaskOutput:
        """Loss and metrics of one micro-batch."""
        pixels_BCHW = self.pictures(batch)
        if self.training:
            return self._trained(pixels_BCHW)
        with torch.autocast(pixels_BCHW.device.type, enabled=False):
            return self._evaluated(pixels_BCHW)

    def _trained(self, pixels_BCHW: Tensor) -> TaskOutput:
        z_BCHW = self.tokenizer.latents(pixels_BCHW).float()
        codes_BHW = self._nearest(z_BCHW)
        vectors_BCHW = self.tokenizer.quantize.look_up(codes_BHW)
        # Straight through: the decoder's gradient reaches the encoder as if nothing were rounded.
        decoded_BCHW = self.tokenizer.decoded(z_BCHW + (vectors_BCHW - z_BCHW).detach()).float()
        reconstruction, codebook, metrics = self._losses(
            pixels_BCHW, decoded_BCHW, z_BCHW, vectors_BCHW
        )
        loss = reconstruction + codebook
        if self.adversarial:
            adversarial, more = self._adversarial(reconstruction, pixels_BCHW, decoded_BCHW)
            loss = loss + adversarial
            metrics |= more
        return TaskOutput(loss, metrics)

    def _evaluated(self, pixels_BCHW: Tensor) -> TaskOutput:
        z_BCHW = self.tokenizer.latents(pixels_BCHW)
        codes_BHW = self.tokenizer.quantize.nearest(z_BCHW)
        vectors_BCHW = self.tokenizer.quantize.look_up(codes_BHW)
        reconstruction, codebook, metrics = self._losses(
            pixels_BCHW, self.tokenizer.decoded(vectors_BCHW), z_BCHW, vectors_BCHW
        )
        metrics["codes"] = code_counts(codes_BHW, self.tokenizer.config.num_codes)
        return TaskOutput(reconstruction + codebook, metrics)

    def _nearest(self, z_BCHW: Tensor) -> Tensor:
        codebook = self.tokenizer.quantize
        if "dead_codes" not in self.parts:
            return codebook.nearest(z_BCHW)
        self._dead_codes.restart_(codebook, z_BCHW)
        codes_BHW = codebook.nearest(z_BCHW)
        self._dead_codes.count_(codes_BHW)
        return codes_BHW

    @property
    def _dead_codes(self) -> DeadCodes:
        return self.parts["dead_codes"]  # type: ignore[return-value]

    def _losses(
        self, pixels_BCHW: Tensor, decoded_BCHW: Tensor, z_BCHW: Tensor, vectors_BCHW: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Mean]]:
        """Reconstruction and codebook losses, and the metrics of both modes."""
        config = self.config
        # Images of taming-transformers are in [-1, 1], where differences are twice as large.
        l1 = 2 * (pixels_BCHW - decoded_BCHW).abs().mean()
        reconstruction = l1
        if self.features is not None:
            distance_B = perceptual_distance(self.features, pixels_BCHW, decoded_BCHW)
            reconstruction = l1 + config.perceptual_weight * distance_B.mean()
        commitment = (z_BCHW - vectors_BCHW.detach()).square().mean()
        pull = (vectors_BCHW - z_BCHW.detach()).square().mean()
        codebook = config.commitment_weight * commitment + config.codebook_weight * pull
        values = pixels_BCHW.numel()
        metrics = {
            "loss": mean_of(reconstruction + codebook, values),
            "l1": mean_of(l1, values),
            "codebook": mean_of(codebook, values),
            "psnr": mean_of(psnr(decoded_BCHW.detach().clamp(0, 1), pixels_BCHW)),
        }
        return reconstruction, codebook, metrics

    def _adversarial(
        self, reconstruction: Tensor, pixels_BCHW: Tensor, decoded_BCHW: Tensor
    ) -> tuple[Tensor, dict[str, Mean]]:
        """Return the losses of both sides, the generator's adaptively weighted, and their metrics.

        The adaptive weight gives the generator's gradient at the decoder's last layer the length of
        the reconstruction's; `discriminator_weight` multiplies it.
        """
        discriminator = self.discriminator
        frozen = {name: tensor.detach() for name, tensor in discriminator.named_parameters()}
        generator = -functional_call(discriminator, frozen, (decoded_BCHW,)).float().mean()
        last = self.tokenizer.decoder.conv_out.weight
        (towards_pixels,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
        (towards_real,) = torch.autograd.grad(generator, last, retain_graph=True)
        adaptive = towards_pixels.norm() / (towards_real.norm() + GRADIENT_EPS)
        adaptive = adaptive.clamp(0, MAX_ADAPTIVE_WEIGHT).detach()
        hinge = hinge_loss(
            discriminator(pixels_BCHW).float(), discriminator(decoded_BCHW.detach()).float()
        )
        values = pixels_BCHW.numel()
        metrics = {
            "generator": mean_of(generator, values),
            "discriminator": mean_of(hinge, values),
            "adaptive_weight": mean_of(adaptive, values),
        }
        return self.config.discriminator_weight * adaptive * generator + hinge, metrics


class DeadCodes(nn.Module):
    """Counts for how many micro-batches each code went unused, and restarts those of `after`.

    A micro-batch here is one of every rank, side by side.

    Args:
        num_codes: V.
        after: micro-batches without use.
        ranks: whose codes count.
    """

    idle_V: Tensor

    def __init__(self, num_codes: int, after: int, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.after = after
        self.ranks = ranks or Ranks()
        self.register_buffer("idle_V", torch.zeros(num_codes, dtype=torch.int64))

    @torch.no_grad()
    def restart_(self, codebook: Codebook, z_BCHW: Tensor) -> None:
        """Put dead codes where vectors at hand lie, each another one, as far as these suffice.

        The vectors are those of the first rank.
        """
        dead = (self.idle_V >= self.after).nonzero().flatten()
        z_MC = z_BCHW.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randperm(len(z_MC), device=z_MC.device)[: len(dead)]
        restarted = dead[torch.randperm(len(dead), device=dead.device)[: len(chosen)]]
        codebook.embedding.weight[restarted] = z_MC[chosen]
        self.idle_V[restarted] = 0
        if len(dead):
            self.ranks.copy_first_(codebook.embedding.weight)
            self.ranks.copy_first_(self.idle_V)

    @torch.no_grad()
    def count_(self, codes_BHW: Tensor) -> None:
        """One more micro-batch, with these codes in use."""
        uses_V = torch.bincount(codes_BHW.flatten(), minlength=len(self.idle_V))
        self.ranks.sum_(uses_V)
        self.idle_V += 1
        self.idle_V[uses_V > 0] = 0


def _role(name: str) -> ParamRole:
    if name == "vqgan.quantize.embedding.weight":
        return "embed"
    return "readout" if name.startswith("vqgan.decoder.conv_out.") else "hidden"
