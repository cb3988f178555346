"""`toto generate`: sequences that a model continues, or makes from the start id alone."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from toto.analysis.runs import Generated, GeneratedSample
from toto.errors import RecipeError, UserError
from toto.folders import results_in
from toto.generation.config import SamplingConfig
from toto.generation.continuation import continue_video, first_context_frame
from toto.jobs.console import progress_bar, say
from toto.jobs.generated_folder import RECORD, Shown, sample_files, write_generated
from toto.jobs.prompts import Clip, Prompt, PromptRequest, Prompts, find_prompts
from toto.jobs.result_folder import free_folder, named_folder
from toto.jobs.sources import root_explained
from toto.jobs.trained import (
    FoundRun,
    Trained,
    import_all,
    load_trained,
    require_next_tokens,
    resolve_run,
)
from toto.recipe.messages import explain
from toto.tokenizers.base import TokenGrid, Tokenizer
from toto.training.checkpoint import MODEL_FILE, FileRecord
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

    from toto.generation.media import Pixels
    from toto.recipe.schemas import TrainRecipe

__all__ = ["GenerateRequest", "start_generating"]

EVALUATION = "generate"


@dataclass(frozen=True)
class GenerateRequest:
    """The command's arguments; `out` None is a folder under RUN/eval."""

    run: str | None
    prompts: PromptRequest
    start: Literal["video", "image"]
    temperature: float
    top_k: int
    top_p: float
    out: Path | None
    overwrite: bool
    imports: tuple[str, ...]


def start_generating(request: GenerateRequest) -> None:
    """Continue the prompts and write the folder: a GIF, an MP4 and a sheet for each sequence.

    Raises:
        UserError: no such run or source, patches, a run that learned classes, options that make no
            sense together, a context of one frame that holds no prompt, less context than a prefix
            mask needs, or a folder that holds other files.
        DataError: prompts that cannot be read, or are shorter than they should be.
    """
    import_all(request.imports)
    sampling = _sampling(request)
    found = resolve_run(request.run)
    _refuse_patches(found)
    require_next_tokens(found)
    with root_explained(found.recipe.data.root, found.run):
        found_prompts = find_prompts(request.prompts, found.recipe)
    prompts, frames = found_prompts.prompts, request.prompts.frames
    _refuse_unseen_prompts(found, prompts)
    _refuse_partial_prefix(found.recipe, prompts, frames)
    trained = load_trained(found)
    with free_folder(
        _named_folder(trained, found_prompts, request, sampling),
        request.out,
        record=RECORD,
        overwrite=request.overwrite,
        command="toto generate",
    ) as folder:
        if folder is not None:
            _generate(trained, found_prompts, request, sampling, folder)


def _generate(
    trained: Trained,
    found_prompts: Prompts,
    request: GenerateRequest,
    sampling: SamplingConfig,
    folder: Path,
) -> None:
    """Continue the prompts into a folder that is held."""
    found, prompts, frames = trained.found, found_prompts.prompts, request.prompts.frames
    _say_plan(found_prompts, frames, found.recipe.context_frames)
    codes = _continue(trained, prompts, frames, request.start, sampling)
    shown = [
        _shown(trained, prompt, codes_THW) for prompt, codes_THW in zip(prompts, codes, strict=True)
    ]
    record = Generated(
        step=found.meta.step,
        prompts=found_prompts.kind,
        source=found_prompts.source,
        start=request.start,
        frames=frames,
        sampling=sampling.model_dump(),
        samples=[
            GeneratedSample(
                gif=sample_files(index)["gif"],
                sheet=sample_files(index)["png"],
                prompt=prompt.name,
                prompt_frames=prompt.given,
                seed=prompt.seed,
            )
            for index, prompt in enumerate(prompts)
        ],
    )
    write_generated(folder, shown, record)
    say(f"{folder}: {', '.join(results_in(folder))}")


def _named_folder(
    trained: Trained, found: Prompts, request: GenerateRequest, sampling: SamplingConfig
) -> Path:
    decisive = {
        "evaluation": EVALUATION,
        "model": FileRecord.of(trained.found.checkpoint / MODEL_FILE).sha256,
        "prompts": [
            [prompt.name, prompt.given, prompt.seed, hashlib.sha256(_bytes(prompt)).hexdigest()]
            for prompt in found.prompts
        ],
        "start": request.start,
        "frames": request.prompts.frames,
        "sampling": sampling.model_dump(mode="json"),
        "precision": trained.precision,
        "device": trained.device.type,
    }
    return named_folder(trained.found.run, EVALUATION, found.source or found.kind, decisive)


def _bytes(prompt: Prompt) -> bytes:
    return np.ascontiguousarray(prompt.clip).tobytes()


def _refuse_patches(found: FoundRun) -> None:
    if found.recipe.tokenizer.output == "codes":
        return
    why = (
        "and predicts the next one normalised by its own mean and std, which no part of the model "
        "predicts: it is no pixels, and cannot be taken in"
        if found.recipe.target.output == "patches"
        else "and what it predicts are codes, which it cannot take in"
    )
    raise UserError(
        f"{found.run} has patch inputs, {why}. Generate from a run whose tokenizer gives codes"
    )


def _refuse_unseen_prompts(found: FoundRun, prompts: list[Prompt]) -> None:
    """Refuse to continue a prompt of which the model would see nothing.

    Raises:
        UserError: the context is one frame, which the frame to be generated fills.
    """
    if found.recipe.context_frames == 1 and any(prompt.given for prompt in prompts):
        parent = found.recipe.init_from
        other = f", for example the one it was fine-tuned from ({parent})" if parent else ""
        raise UserError(
            f"{found.run} was trained on sequences of one frame, so the frame to be generated "
            "fills its context and no frame of a prompt would be seen. Continue prompts with a "
            f"run of two or more frames{other}, or generate without a prompt: "
            "--prompt-frames 0 --frames 1"
        )


def _refuse_partial_prefix(recipe: TrainRecipe, prompts: list[Prompt], frames: int) -> None:
    """A model with a prefix mask read the whole of it before it predicted anything.

    Raises:
        UserError: it would have to predict from less.
    """
    context, prefix = recipe.clip.frames, recipe.mask.frames or 0
    for given in sorted({prompt.given for prompt in prompts}):
        predicted = range(given, given + frames)
        seen = min(frame - first_context_frame(frame, context) for frame in predicted)
        if seen < prefix:
            raise UserError(
                f"the run reads a prefix of {number_of(prefix, 'frame')} as a whole, and would "
                f"have to predict from {seen}: a prompt of {given}, --frames {frames}, a context "
                f"of {context}. "
                f"Prompt with {prefix} or more, and ask for no more than {context} in all"
            )


def _sampling(request: GenerateRequest) -> SamplingConfig:
    raw = {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}
    try:
        return SamplingConfig.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("toto generate", explain(error, SamplingConfig, raw)) from None


def _say_plan(found: Prompts, frames: int, context_frames: int | None) -> None:
    lengths = sorted({prompt.given for prompt in found.prompts})
    of = f" of {found.source}" if found.source else ""
    after = f"after {' or '.join(map(str, lengths))} given" if lengths[-1] else "after the start"
    say(f"generating {number_of(frames, 'frame')} {after}, sequences{of}: {len(found.prompts)}")
    if context_frames is None:
        return
    unseen = first_context_frame(lengths[-1], context_frames)
    if unseen:
        say(
            f"the context holds {number_of(context_frames, 'frame')}: of the {lengths[-1]} frames "
            f"given, the model sees the last {lengths[-1] - unseen}"
        )


def _continue(
    trained: Trained,
    prompts: list[Prompt],
    frames: int,
    start: Literal["video", "image"],
    sampling: SamplingConfig,
) -> list[Tensor]:
    """Codes `THW` of each sequence, the prompt first; prompts of one length go as one batch."""
    batches = [
        [index for index, prompt in enumerate(prompts) if prompt.given == given]
        for given in sorted({prompt.given for prompt in prompts})
    ]
    codes: dict[int, Tensor] = {}
    finished = itertools.count(1)
    with progress_bar("generating", "frames") as progress, trained.autocast():
        for rows in batches:
            codes_BTHW = continue_video(
                trained.model,
                torch.stack([_prompt_codes(trained, prompts[row]) for row in rows]),
                torch.full((len(rows),), start == "image", device=trained.device),
                frames=frames,
                context_frames=trained.found.recipe.context_frames,
                sampling=sampling,
                seeds=[prompts[row].seed for row in rows],
                progress=lambda done, total: progress(next(finished), total * len(batches)),
            )
            codes.update(zip(rows, codes_BTHW, strict=True))
    return [codes[index] for index in range(len(prompts))]


def _prompt_codes(trained: Trained, prompt: Prompt) -> Tensor:
    return _codes(trained.tokenizer, prompt.clip[: prompt.given], trained.device)


def _codes(tokenizer: Tokenizer, clip: Clip, device: torch.device) -> Tensor:
    if clip.ndim == 3:
        return torch.from_numpy(clip.astype(np.int64)).to(device)
    pixels_THWC = torch.from_numpy(np.ascontiguousarray(clip)).to(device)
    with torch.no_grad():
        grid = tokenizer.encode(pixels_THWC.permute(0, 3, 1, 2).float() / 255)
    assert isinstance(grid, TokenGrid)
    return grid.codes_BHW


def _pixels(tokenizer: Tokenizer, codes_THW: Tensor) -> Pixels:
    with torch.no_grad():
        pixels_TCHW = tokenizer.decode(TokenGrid(codes_THW))
    pixels: Pixels = (
        (pixels_TCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    )
    return pixels


def _shown(trained: Trained, prompt: Prompt, codes_THW: Tensor) -> Shown:
    generated_THWC = _pixels(trained.tokenizer, codes_THW)
    if not prompt.is_followed:
        return Shown({"generated": generated_THWC}, prompt.given)
    return Shown({"real": _real(trained, prompt.clip), "generated": generated_THWC}, prompt.given)


def _real(trained: Trained, clip: Clip) -> Pixels:
    """The real video; where only tokens are at hand, as the tokenizer shows it."""
    if clip.dtype == np.uint8:
        return clip.astype(np.uint8, copy=False)
    return _pixels(trained.tokenizer, _codes(trained.tokenizer, clip, trained.device))
