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
    rope_base: float | None = None,
    attention: Literal["causal", "full"] | None = None,
) -> LoadedModel:
    """The model of a run or checkpoint, in evaluation mode, on a GPU where there is one.

    Plug-ins that the run used must have been imported: a checkpoint never imports code.

    Args:
        run: its path.
        resolution: side of the frames in pixels, instead of the trained one.
        rope_base: RoPE's base, instead of the trained one.
        attention: who reads whom, instead of the trained mask.

    Raises:
        CheckpointError: there is no such run, or its files or its tokenizer are not those it had.
        UserError: the tokenizer has no such resolution, the backbone no RoPE or no such mask.
    """
    seen = Seen(resolution=resolution, rope_base=rope_base, attention=attention)
    return LoadedModel(load_trained(seen_as(resolve_run(str(run)), seen)))


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer. Pixels are float in [0, 1], `[B, T, 3, H, W]`, square.

    Frames have the recipe's resolution (`recipe.clip.resolution`), and a sequence should not be
    longer than `recipe.clip.frames`, which is what the model was trained on.
    """

    trained: Trained

    @property
    def recipe(self) -> TrainRecipe:
        """The resolved recipe of the run."""
        return self.trained.found.recipe

    @property
    def device(self) -> torch.device:
        """Where the model stands; results stand there too."""
        return self.trained.device

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
        """What stands at each token after each of `layers`: `{layer: BTHWD}`, fp32.

        Args:
            pixels_BTCHW: frames of videos, or separate pictures.
            layers: 0 is the embedding, k the output of block k; negatives count from the end.
            images: the T frames are separate pictures: the sequence begins with the other start.

        Raises:
            UserError: pixels of another shape or range.
            ValueError: a layer that does not exist.
        """
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
        """The prompts with `frames` sampled ones appended: pixels `[B, T + frames, 3, H, W]`.

        All of it is what the tokenizer decodes, the prompt too.

        Args:
            pixels_BTCHW: the prompts; at least one frame.
            frames: number of frames to append.
            sampling: temperature, top-k and top-p.
            seeds: one a prompt; 0, 1, 2, … unless given.
            images: the frames are separate pictures: the sequence begins with the other start.

        Raises:
            UserError: patch inputs, a run that learned classes, or pixels of another shape or
                range.
        """
        if self.recipe.tokenizer.output != "codes":
            raise UserError(
                "patches cannot be generated: a predicted patch is normalised by its own mean and "
                "std, which the model does not predict. Load a run whose tokenizer gives codes"
            )
        require_next_tokens(self.trained.found)
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


def _check_pixels(pixels_BTCHW: Tensor, resolution: int) -> None:
    wanted = (3, resolution, resolution)
    if pixels_BTCHW.ndim != 5 or pixels_BTCHW.shape[2:] != wanted:
        raise UserError(
            f"pixels are [B, T, 3, {resolution}, {resolution}], not {list(pixels_BTCHW.shape)}. "
            "Crop and resize the frames first"
        )
    if not pixels_BTCHW.is_floating_point() or pixels_BTCHW.min() < 0 or pixels_BTCHW.max() > 1:
        raise UserError("pixels are float in [0, 1]. Divide uint8 by 255")
