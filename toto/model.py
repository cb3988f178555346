"""The model that is trained: frames → embedding → backbone → readout → a loss for each target.

What differs between codes and patches, as inputs and as targets, stands in one Interface for each
combination; the model knows neither.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from toto.backbones.config import PATCH_MLP_RATIO
from toto.errors import UserError
from toto.layers.loss import LinearCrossEntropy, LinearSquaredError
from toto.layers.masks import CAUSAL, Mask
from toto.sequence import NUM_SPECIAL_IDS, SequenceLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.backbones.base import Cache, ParamRole
    from toto.backbones.config import BackboneConfig
    from toto.tokenizers.config import TokenizerConfig

__all__ = [
    "AutoregressiveModel",
    "CodeInterface",
    "Interface",
    "PatchInterface",
    "PatchToCodeInterface",
]

INIT_STD = 0.02


class Interface(nn.Module, ABC):
    """Both ends of a model: frames to the backbone's input, its output to losses.

    Every parameter is part of the embedding or of the readout.

    Attributes:
        loss: the last product of the readout, and what it costs.
        output_scale: multiplies what the last product takes in; 1 / m under µP.
    """

    loss: LinearCrossEntropy | LinearSquaredError
    output_scale: float = 1.0

    @abstractmethod
    def embed(self, frames: Tensor, is_image_B: Tensor) -> Tensor:
        """Frames and which of them are images → `BLD` fp32: the start, then the visual tokens."""

    @abstractmethod
    def losses(self, last_BLD: Tensor, targets: Tensor) -> Tensor:
        """The backbone's output → the loss of each target, fp32 `BL`."""

    @abstractmethod
    def embed_ids(self, ids_BL: Tensor) -> Tensor:
        """Input ids, specials included → `BLD` fp32.

        Raises:
            UserError: the model takes no ids.
        """

    @abstractmethod
    def logits(self, last_BD: Tensor) -> Tensor:
        """The backbone's output at one position → logits of the next id, fp32 `BV`.

        Raises:
            UserError: the model takes no ids.
        """

    @abstractmethod
    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every parameter, by its name in `named_parameters()`."""

    def compile_losses(self) -> None:
        """Compile the readout with its loss in place; the embedding stays eager."""
        self.loss.compile(dynamic=False)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.output_scale == 1.0 else x * self.output_scale


class CodeInterface(Interface):
    """Codes in, codes out: an embedding, a readout (perhaps the same matrix) and cross-entropy.

    Frames and targets are `codes_BTHW` int64, the tokenizer's own, from 0.

    Args:
        codebook_size: codes of the tokenizer; V is that and the special ids.
        width: D.
        tied: the readout is the embedding's matrix.
    """

    def __init__(self, codebook_size: int, width: int, tied: bool) -> None:
        super().__init__()
        vocab_size = codebook_size + NUM_SPECIAL_IDS
        self.embedding = nn.Embedding(vocab_size, width)
        self.readout = None if tied else nn.Linear(width, vocab_size, bias=False)
        self.loss = LinearCrossEntropy()

    @property
    def readout_weight(self) -> Tensor:
        """The readout's matrix, VD."""
        return self.embedding.weight if self.readout is None else self.readout.weight

    def embed(self, frames: Tensor, is_image_B: Tensor) -> Tensor:
        """See `Interface.embed`."""
        return self.embed_ids(_layout(frames).inputs(frames, is_image_B))

    def losses(self, last_BLD: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats; L = T·H·W + 1, the end last."""
        ids_BL = _layout(targets).targets(targets)
        losses_BL: Tensor = self.loss(self._scaled(last_BLD), self.readout_weight, ids_BL)
        return losses_BL

    def embed_ids(self, ids_BL: Tensor) -> Tensor:
        """See `Interface.embed_ids`."""
        x_BLD: Tensor = self.embedding(ids_BL)
        return x_BLD

    def logits(self, last_BD: Tensor) -> Tensor:
        """See `Interface.logits`."""
        return nn.functional.linear(self._scaled(last_BD), self.readout_weight).float()

    def param_roles(self) -> dict[str, ParamRole]:
        """A tied matrix counts as the embedding."""
        roles: dict[str, ParamRole] = {"embedding.weight": "embed"}
        if self.readout is not None:
            roles["readout.weight"] = "readout"
        return roles


class PatchInputs(Interface):
    """Patches in, whatever comes out: a linear embedding and a learned start vector.

    Frames are `patches_BTHWC` float32: pixels, normalised as the tokenizer's config says.

    Args:
        patch_dim: C.
        width: D.
    """

    def __init__(self, patch_dim: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(patch_dim, width, bias=False)
        self.starts = nn.Embedding(2, width)  # row 0 video, row 1 image

    def embed(self, frames: Tensor, is_image_B: Tensor) -> Tensor:
        """The start and all patches, the last one included."""
        start_B1D = self.starts(is_image_B.long())[:, None]
        # Autocast would make the residual stream bf16 here.
        return torch.cat((start_B1D, self.embedding(frames.flatten(1, 3)).float()), dim=1)

    def embed_ids(self, ids_BL: Tensor) -> Tensor:
        """Refused: patches have no ids."""
        raise UserError(_NO_IDS)

    def logits(self, last_BD: Tensor) -> Tensor:
        """Refused: no id that is drawn could be embedded."""
        raise UserError(_NO_IDS)

    def param_roles(self) -> dict[str, ParamRole]:
        """The embedding of patches is a matrix that decays, as MAE's; the start vectors do not."""
        return {
            "embedding.weight": "filter",
            "starts.weight": "embed",
            "readout.weight": "readout",
        }


class PatchInterface(PatchInputs):
    """Patches in, patches out: squared error of the next one. There is no end target.

    Targets are `patches_BTHWC` float32, those of `Tokenizer.patch_targets`: not the inputs.

    Args:
        patch_dim: C.
        width: D.
        readout: `linear`, or `mlp`: first to 4·D values through a GELU.
    """

    def __init__(self, patch_dim: int, width: int, readout: Literal["linear", "mlp"]) -> None:
        super().__init__(patch_dim, width)
        hidden = width if readout == "linear" else PATCH_MLP_RATIO * width
        self.hidden = None if readout == "linear" else nn.Linear(width, hidden, bias=False)
        self.readout = nn.Linear(hidden, patch_dim, bias=False)
        self.loss = LinearSquaredError()

    def losses(self, last_BLD: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over the C values of each patch; L = T·H·W."""
        x_BLD = last_BLD[:, :-1]
        if self.hidden is not None:
            x_BLD = nn.functional.gelu(self.hidden(x_BLD))
        losses_BL: Tensor = self.loss(
            self._scaled(x_BLD), self.readout.weight, targets.flatten(1, 3)
        )
        return losses_BL

    def param_roles(self) -> dict[str, ParamRole]:
        """Both sides of the MLP's first matrix grow with the width: it is hidden."""
        roles = super().param_roles()
        return roles if self.hidden is None else roles | {"hidden.weight": "hidden"}


class PatchToCodeInterface(PatchInputs):
    """Patches in, codes out: the next code of a tokenizer that cuts the same grid, cross-entropy.

    Targets are `codes_BTHW` int64 from 0; the end is a target too, as for codes.

    Args:
        patch_dim: C.
        codebook_size: codes of the target tokenizer; V is that and the special ids.
        width: D.
    """

    def __init__(self, patch_dim: int, codebook_size: int, width: int) -> None:
        super().__init__(patch_dim, width)
        self.readout = nn.Linear(width, codebook_size + NUM_SPECIAL_IDS, bias=False)
        self.loss = LinearCrossEntropy()

    def losses(self, last_BLD: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats; L = T·H·W + 1, the end last."""
        ids_BL = _layout(targets).targets(targets)
        losses_BL: Tensor = self.loss(self._scaled(last_BLD), self.readout.weight, ids_BL)
        return losses_BL


class AutoregressiveModel(nn.Module):
    """A causal backbone between the two ends that its tokenizers ask for.

    Weights are fp32; for bf16 the caller wraps the calls in `torch.autocast`, under which norms,
    rotations, the residual stream and losses stay fp32.

    Args:
        tokenizer: of the inputs.
        backbone: between the ends.
        target_tokenizer: of the targets; None where the inputs are the targets.
        mask: who reads whom, one that the backbone's config names.

    Raises:
        ValueError: a target tokenizer beside inputs that are codes, or that gives patches.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig,
        backbone: BackboneConfig,
        target_tokenizer: TokenizerConfig | None = None,
        mask: Mask = CAUSAL,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.interface = _make_interface(tokenizer, backbone, target_tokenizer)
        self.interface.output_scale = 1 / backbone.width_ratio
        roles = self.interface.param_roles()
        for name, parameter in self.interface.named_parameters():
            fan_in = backbone.width_ratio if roles[name] == "hidden" else 1.0
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(fan_in))
        self.backbone = backbone.build()

    def losses(self, frames: Tensor, is_image_B: Tensor, targets: Tensor | None = None) -> Tensor:
        """The loss of each target, fp32 `BL`.

        Args:
            frames: `codes_BTHW` int64 from 0, or `patches_BTHWC` float32.
            is_image_B: bool; True for T separate images, False for a video.
            targets: `codes_BTHW` of the target tokenizer; None: the frames themselves.

        Returns:
            For code targets nats, L = T·H·W + 1, the end last. For patches mean squared errors,
            L = T·H·W.
        """
        last_BLD = self.backbone(self.interface.embed(frames, is_image_B), self.mask)
        return self.interface.losses(last_BLD, frames if targets is None else targets)

    def losses_with_features(
        self,
        frames: Tensor,
        is_image_B: Tensor,
        targets: Tensor | None,
        layers: Sequence[int],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What `losses` and `features` give, in one pass where the backbone can."""
        x_BLD = self.interface.embed(frames, is_image_B)
        last_BLD, found = self.backbone.forward_with_features(x_BLD, layers, self.mask)
        losses_BL = self.interface.losses(last_BLD, frames if targets is None else targets)
        return losses_BL, {layer: x_BLD[:, 1:] for layer, x_BLD in found.items()}

    def features(
        self, frames: Tensor, is_image_B: Tensor, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """What stands at the visual tokens after each of `layers`: `{layer: [B, T·H·W, D]}`.

        Layers count as in `Backbone.features`: 0 is the embedding, negatives from the end.

        Raises:
            ValueError: a layer that does not exist.
        """
        x_BLD = self.interface.embed(frames, is_image_B)
        found = self.backbone.features(x_BLD, layers, self.mask)
        return {layer: x_BLD[:, 1:] for layer, x_BLD in found.items()}

    def new_cache(self, length: int) -> Cache:
        """An empty cache for `next_logits`, of at most `length` ids, the start included.

        Raises:
            UserError: under the model's mask nothing that was computed could be kept.
        """
        try:
            return self.backbone.new_cache(length, self.mask)
        except ValueError as error:
            raise UserError(f"nothing can be generated: {error}. Take a causal model") from error

    @torch.no_grad()
    def next_logits(self, ids_BL: Tensor, cache: Cache) -> Tensor:
        """Logits `BV`, fp32, of the id after the last of `ids_BL` (int64, specials included).

        Args:
            ids_BL: those that follow the ids that the cache has seen; a prefix comes as a whole.
            cache: of `new_cache`; takes them in.

        Raises:
            UserError: the model takes patches.
        """
        last_BLD = self.backbone.extend(self.interface.embed_ids(ids_BL), cache)
        return self.interface.logits(last_BLD[:, -1])

    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every parameter, by its name in `named_parameters()`."""
        return {
            f"{part}.{name}": role
            for part, module in (("interface", self.interface), ("backbone", self.backbone))
            for name, role in module.param_roles().items()
        }

    def param_layers(self) -> dict[str, int]:
        """The layer of every parameter: 0 the embedding, k block k, L + 1 last norm and readout.

        A tied readout is the embedding.

        Raises:
            UserError: the backbone does not say.
        """
        top = self.backbone.config.num_layers + 1
        roles = self.interface.param_roles()
        inputs = ("embed", "filter")
        ends = {f"interface.{name}": 0 if role in inputs else top for name, role in roles.items()}
        blocks = self.backbone.param_layers()
        return ends | {f"backbone.{name}": layer for name, layer in blocks.items()}

    @property
    def width_ratio(self) -> float:
        """M of µP; 1 without it."""
        return self.backbone.config.width_ratio

    def compile_blocks(self) -> None:
        """Compile the backbone's blocks and the readout's loss in place; `state_dict()` stays.

        Each pair of batch size and length is compiled once, in the first call that meets it.
        """
        self.backbone.compile_blocks()
        self.interface.compile_losses()


_NO_IDS = (
    "patches are continuous: there is no id to sample and go on from. "
    "Choose a checkpoint whose tokenizer gives codes, for example dvae"
)


def _layout(codes_BTHW: Tensor) -> SequenceLayout:
    return SequenceLayout(*codes_BTHW.shape[1:4])


def _make_interface(
    tokenizer: TokenizerConfig, backbone: BackboneConfig, target: TokenizerConfig | None
) -> Interface:
    width = backbone.width
    if target is not None:
        if (tokenizer.output, target.output) != ("patches", "codes"):
            raise ValueError(
                f"from {tokenizer.output} to {target.output} of another tokenizer is not there; "
                "a target tokenizer gives the codes that patches predict"
            )
        return PatchToCodeInterface(tokenizer.patch_dim, target.codebook_size, width)
    if tokenizer.output == "patches":
        return PatchInterface(tokenizer.patch_dim, width, backbone.patch_readout)
    return CodeInterface(tokenizer.codebook_size, width, backbone.tie_embeddings)
