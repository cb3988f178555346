"""`toto.load`: a trained model in the hands of a user's own program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from toto.errors import UserError
from toto.generation.config import SamplingConfig
from toto.generation.continuation import continue_video
from toto.jobs.seen_as import Seen, seen_as
from toto.jobs.trained import load_trained, require_next_tokens, resolve_run
from toto.sequence import SequenceLayout
from toto.tokenizers.base import PatchGrid, TokenGrid
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from toto.jobs.trained import Trained
    from toto.recipe.schemas import TrainRecipe

__all__ = ["LoadedModel", "load"]

DEFAULT_SAMPLING = SamplingConfig()


def load(
    run: str | Path,
    *,
    resolution: int | None = None,
    frames: int | None = None,
    rope_base: float | None = None,
    attention: Literal["causal", "full"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
) -> LoadedModel:
    """Load the model of a run or checkpoint, in evaluation mode, on a GPU where there is one.

    Plug-ins that the run used must have been imported: a checkpoint never imports code.

    Args:
        run: its path.
        resolution: side of the frames in pixels, instead of the trained one.
        frames: the most frames of a sequence, instead of the trained number; beyond that number
            the model extrapolates. None: the trained number, or at another resolution as many as
            have the trained number of tokens.
        rope_base: RoPE's base, instead of the trained one.
        attention: the attention mask, instead of the trained one.
        precision: of the model's passes: `fp32`, or `bf16` by autocast. The weights and the
            tokenizer are fp32 in either case. None: the run's precision, but fp32 in place of bf16
            on a machine that computes bf16 by emulation alone. `LoadedModel.precision` says which.

    Raises:
        CheckpointError: there is no such run, or its files or its tokenizer are not those it had.
        UserError: the tokenizer has no such resolution, the backbone no RoPE or no such mask.
    """
    seen = Seen(resolution=resolution, frames=frames, rope_base=rope_base, attention=attention)
    found = seen_as(resolve_run(str(run)), seen)
    return LoadedModel(load_trained(found, precision=precision))


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer. Pixels are float in [0, 1], `[B, T, 3, H, W]`, square.

    Frames have the recipe's resolution (`recipe.clip.resolution`), and a sequence has at most
    `recipe.clip.frames`: as many as the model was trained on, unless `load` was told otherwise.
    """

    trained: Trained

    @property
    def recipe(self) -> TrainRecipe:
        """The resolved recipe of the run."""
        return self.trained.found.recipe

    @property
    def device(self) -> torch.device:
        """The device of the model and of all results."""
        return self.trained.device

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The precision of the model's passes; results are fp32."""
        return self.trained.precision

    @torch.no_grad()
    def encode(self, pixels_BTCHW: Tensor) -> Tensor:
        """Return what the model takes in: codes `BTHW` int64 from 0, or patches `BTHWC` float32.

        Patches are normalised as the recipe's `tokenizer.input_norm` says.

        Raises:
            UserError: pixels of another shape or range.
        """
        _check_pixels(pixels_BTCHW, self.recipe.clip.resolution)
        grid = self.trained.tokenizer.encode(pixels_BTCHW.to(self.device).flatten(0, 1))
        tokens = grid.patches_BHWC if isinstance(grid, PatchGrid) else grid.codes_BHW
        return tokens.view(*pixels_BTCHW.shape[:2], *tokens.shape[1:])

    @torch.no_grad()
    def decode(self, codes_BTHW: Tensor) -> Tensor:
        """Return the pixels `[B, T, 3, H, W]` in [0, 1] of codes from 0.

        Raises:
            UserError: the model takes patches in.
        """
        if self.recipe.tokenizer.output != "codes":
            raise UserError(
                "patches have no codes to decode: what a patch model takes in are the pixels, and "
                "what it predicts is normalised by a mean and a std that it does not predict"
            )
        grid = TokenGrid(codes_BTHW.to(self.device).flatten(0, 1))
        pixels_BCHW = self.trained.tokenizer.decode(grid).clamp(0, 1)
        return pixels_BCHW.view(*codes_BTHW.shape[:2], *pixels_BCHW.shape[1:])

    @torch.no_grad()
    def features(
        self, pixels_BTCHW: Tensor, layers: Sequence[int], *, images: bool = False
    ) -> dict[int, Tensor]:
        """Return the hidden states of each token after each of `layers`: `{layer: BTHWD}`, fp32.

        Args:
            pixels_BTCHW: frames of videos, or separate images.
            layers: 0 is the embedding, k the output of block k; negatives count from the end.
            images: the T frames are separate images: the sequence begins with the image start id.

        Raises:
            UserError: pixels of another shape or range, or more frames than `recipe.clip.frames`.
            ValueError: a layer that does not exist.
        """
        self._require_frames(pixels_BTCHW, self.recipe.clip.frames)
        frames = self.encode(pixels_BTCHW)
        is_image_B = torch.full((len(frames),), images, device=self.device)
        with self.trained.autocast():
            found = self.trained.model.features(frames, is_image_B, layers)
        layout = SequenceLayout(*frames.shape[1:4])
        return {layer: layout.visual_to_grid(x_BLD.float()) for layer, x_BLD in found.items()}

    def generate(
        self,
        pixels_BTCHW: Tensor,
        frames: int,
        *,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        seeds: Sequence[int] | None = None,
        images: bool = False,
    ) -> Tensor:
        """Return the prompts with `frames` sampled frames: pixels `[B, T + frames, 3, H, W]`.

        All frames are decoded from tokens, those of the prompt too. Whenever the context is full,
        its oldest half is dropped, so more frames can be sampled than the model was trained on.

        Args:
            pixels_BTCHW: the prompts; at least one frame.
            frames: number of frames to append.
            sampling: temperature, top-k and top-p.
            seeds: one a prompt; 0, 1, 2, … unless given.
            images: the frames are separate images: the sequence begins with the image start id.

        Raises:
            UserError: patch inputs, a run that learned classes, pixels of another shape or range,
                a prompt with more frames than the context holds (`recipe.context_frames`; none
                where the model carries a state, as Mamba does), or a context of one frame, which
                the frame to be generated fills.
        """
        if self.recipe.tokenizer.output != "codes":
            raise UserError(
                "patches cannot be generated: a predicted patch is normalised by its own mean and "
                "std, which the model does not predict. Load a run whose tokenizer gives codes"
            )
        require_next_tokens(self.trained.found)
        if self.recipe.context_frames is not None:
            self._require_frames(pixels_BTCHW, self.recipe.context_frames)
        if self.recipe.context_frames == 1:
            raise UserError(
                "this model was trained on sequences of one frame, so the frame to be generated "
                "fills its context and no frame of a prompt would be seen. Load a run of two or "
                "more frames"
            )
        codes_BTHW = self.encode(pixels_BTCHW)
        with self.trained.autocast():
            continued_BTHW = continue_video(
                self.trained.model,
                codes_BTHW,
                torch.full((len(codes_BTHW),), images, device=self.device),
                frames=frames,
                context_frames=self.recipe.context_frames,
                sampling=sampling,
                seeds=list(range(len(codes_BTHW))) if seeds is None else seeds,
            )
        return self.decode(continued_BTHW)

    def _require_frames(self, pixels_BTCHW: Tensor, most: int) -> None:
        """Refuse a sequence beyond the trained positions, where the model would extrapolate.

        Raises:
            UserError: says how to ask for it.
        """
        if pixels_BTCHW.ndim == 5 and pixels_BTCHW.shape[1] > most:
            given = pixels_BTCHW.shape[1]
            raise UserError(
                f"{number_of(given, 'frame')} in a sequence, and this model takes at most "
                f"{most}, as "
                "many as it was trained on. Cut the video, or load the model for longer ones: "
                f"toto.load(RUN, frames={given})"
            )


def _check_pixels(pixels_BTCHW: Tensor, resolution: int) -> None:
    wanted = (3, resolution, resolution)
    if pixels_BTCHW.ndim != 5 or pixels_BTCHW.shape[2:] != wanted:
        raise UserError(
            f"pixels are [B, T, 3, {resolution}, {resolution}], not {list(pixels_BTCHW.shape)}. "
            "Crop and resize the frames first"
        )
    if not pixels_BTCHW.is_floating_point() or pixels_BTCHW.min() < 0 or pixels_BTCHW.max() > 1:
        raise UserError("pixels are float in [0, 1]. Divide uint8 by 255")
