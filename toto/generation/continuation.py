"""Continue videos frame by frame: the context is read once, then each token costs one position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from toto.generation.sampling import sample_codes, sequence_generators
from toto.sequence import NUM_SPECIAL_IDS, SequenceLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toto.generation.config import SamplingConfig

__all__ = ["NextTokenModel", "continue_video", "first_context_frame"]


class NextTokenModel(Protocol):
    """What generation asks of a model."""

    def new_cache(self, length: int) -> Any:
        """An empty cache, of at most `length` ids."""

    def next_logits(self, ids_BL: Tensor, cache: Any) -> Tensor:
        """Logits `BV` of the id that follows all ids that the cache has seen and now sees."""


def first_context_frame(frame: int, context_frames: int) -> int:
    """The oldest frame that the model sees while it predicts `frame`, both counted from 0.

    Whenever `context_frames` frames stand, the oldest half of them is dropped (the larger half of
    an odd number). The answer depends on the frame alone, so a video that was continued in two goes
    saw the same contexts as in one.
    """
    dropped = (context_frames + 1) // 2
    return dropped * max(0, (frame - context_frames) // dropped + 1)


@torch.inference_mode()
def continue_video(
    model: NextTokenModel,
    prompt_codes_BTHW: Tensor,
    is_image_B: Tensor,
    *,
    frames: int,
    context_frames: int | None,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Append `frames` sampled frames to each video.

    The model reads `start` and then the frames of its context, always from position 0: when the
    context is full, the oldest half of its frames is dropped and the rest is read anew. Nothing
    computed before could be reused there, since what a kept frame holds depends on those dropped.
    A model that carries a state on (`BackboneConfig.unbounded_context`) reads every frame once.
    The caller sets the model's mode, its device and autocast.

    Args:
        model: gives the logits of the next id.
        prompt_codes_BTHW: int64 codes of a tokenizer, from 0; T may be 0: nothing to begin with.
        is_image_B: bool; True makes the start id that of separate images.
        frames: number of frames to append.
        context_frames: frames that the model was trained on; None: no frame is ever dropped.
        sampling: temperature, top-k and top-p.
        seeds: one a sequence; the same seed and prompt give the same frames in any batch, as far as
            the model's logits do not depend on the batch.
        progress: called after each frame with the frames done and to be done in each sequence.

    Returns:
        int64 codes `B, T + frames, H, W`, the prompt first.

    Raises:
        ValueError: frames or context_frames below 1, or another number of seeds than sequences.
        RunError: the model gives NaN or infinite logits.
    """
    batch, prompt_frames, height, width = prompt_codes_BTHW.shape
    if context_frames is None:
        context_frames = prompt_frames + frames
    if frames < 1 or context_frames < 1 or len(seeds) != batch:
        raise ValueError(
            f"frames ({frames}) and context_frames ({context_frames}) must be 1 or more, and "
            f"seeds ({len(seeds)}) as many as sequences ({batch})"
        )
    layout = SequenceLayout(prompt_frames + frames, height, width)
    start_B1 = layout.start_ids(is_image_B)[:, None]
    codes_BL = prompt_codes_BTHW.new_empty(batch, layout.num_visual)
    first = prompt_frames * layout.tokens_per_frame
    codes_BL[:, :first] = prompt_codes_BTHW.flatten(1)
    generators = sequence_generators(seeds)
    context_length = SequenceLayout(context_frames, height, width).length
    read_from = None
    for index in range(first, layout.num_visual):
        oldest_frame = first_context_frame(layout.frame_of_visual(index), context_frames)
        if oldest_frame != read_from:
            read_from, cache = oldest_frame, model.new_cache(context_length)
            known_BL = codes_BL[:, oldest_frame * layout.tokens_per_frame : index]
            new_BL = torch.cat([start_B1, known_BL + NUM_SPECIAL_IDS], dim=1)
        else:
            new_BL = codes_BL[:, index - 1 : index] + NUM_SPECIAL_IDS
        codes_BL[:, index] = sample_codes(model.next_logits(new_BL, cache), sampling, generators)
        if progress is not None and (index + 1) % layout.tokens_per_frame == 0:
            progress(layout.frame_of_visual(index) + 1 - prompt_frames, frames)
    return layout.visual_to_grid(codes_BL)
