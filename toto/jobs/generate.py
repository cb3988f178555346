"""`toto generate`: held-out videos continued by the model, real beside generated."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from toto.data.clips import read_clip
from toto.errors import DataError, RecipeError, UserError
from toto.files import disk_errors
from toto.generation.config import SamplingConfig
from toto.generation.continuation import continue_video, first_context_frame
from toto.generation.media import (
    continuation_sheet,
    pixel_scale,
    side_by_side,
    write_gif,
    write_mp4,
    write_png,
)
from toto.jobs.console import progress_bar, say
from toto.jobs.sources import open_dataset
from toto.jobs.trained import FoundRun, Trained, import_all, load_trained, resolve_run
from toto.recipe.messages import explain
from toto.tokenizers.base import TokenGrid, Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.index import Dataset
    from toto.recipe.schemas import TrainRecipe

__all__ = ["GenerateRequest", "start_generating"]

Pixels = npt.NDArray[np.uint8]
Clip = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
FOLDER = "generated"


@dataclass(frozen=True)
class GenerateRequest:
    """The command's arguments."""

    run: str | None
    frames: int
    prompt_frames: int | None
    samples: int
    source: str | None
    temperature: float
    top_k: int
    top_p: float
    seed: int
    imports: tuple[str, ...]


def start_generating(request: GenerateRequest) -> None:
    """Continue held-out videos and write RUN/generated: a GIF, an MP4 and a sheet for each.

    Raises:
        UserError: no such run or source, patches, sampling settings that make no sense, or less
            context than a prefix mask needs.
        DataError: the held-out videos are shorter than the prompt.
    """
    import_all(request.imports)
    sampling = _sampling(request)
    found = resolve_run(request.run)
    _refuse_patches(found)
    trained = load_trained(found)
    recipe = found.recipe
    name, dataset, stride = _videos(recipe, request.source)
    prompt_frames = _prompt_frames(recipe, request)
    real = _real_clips(dataset, recipe, stride, prompt_frames, request)
    prompts_BTHW = torch.stack(
        [_codes(trained.tokenizer, clip[:prompt_frames], trained.device) for clip in real]
    )
    say(f"continuing {len(real)} videos of {name} by {request.frames} frames after {prompt_frames}")
    with progress_bar("generating tokens") as progress, trained.autocast():
        codes_BTHW = continue_video(
            trained.model,
            prompts_BTHW,
            torch.zeros(len(real), dtype=torch.bool, device=trained.device),
            frames=request.frames,
            context_frames=recipe.context_frames,
            sampling=sampling,
            seeds=[request.seed + index for index in range(len(real))],
            progress=progress,
        )
    generated = [_pixels(trained.tokenizer, codes_THW) for codes_THW in codes_BTHW]
    shown = [_shown(trained, clip) for clip in real]
    record = {
        "step": trained.found.meta.step,
        "prompt_frames": prompt_frames,
        "frames": request.frames,
        "sampling": sampling.model_dump(),
        "source": name,
        "seed": request.seed,
    }
    folder = trained.found.run / FOLDER
    with disk_errors(folder):
        _write(folder, shown, generated, prompt_frames, record)


def _refuse_patches(found: FoundRun) -> None:
    if found.recipe.tokenizer.output == "codes":
        return
    why = (
        "whose next patch is predicted as a mean and cannot be sampled"
        if found.recipe.target.output == "patches"
        else "and what it predicts are codes, which it cannot take in"
    )
    raise UserError(
        f"{found.run} has patch inputs, {why}. Generate from a run whose tokenizer gives codes"
    )


def _prompt_frames(recipe: TrainRecipe, request: GenerateRequest) -> int:
    """Those that are asked for, or half of the trained ones; never less than a prefix mask reads.

    Raises:
        UserError: a model with a prefix would have to predict from less than the whole of it.
    """
    context, prefix = recipe.clip.frames, recipe.mask.frames or 0
    prompt = request.prompt_frames or max(context // 2, prefix, 1)
    predicted = range(prompt, prompt + request.frames)
    seen = min(frame - first_context_frame(frame, context) for frame in predicted)
    if seen < prefix:
        raise UserError(
            f"the run reads a prefix of {prefix} frames as a whole, and would have to predict from "
            f"{seen}: --prompt-frames {prompt}, --frames {request.frames}, a context of {context}. "
            f"Prompt with {prefix} or more, and ask for no more than {context} frames in all"
        )
    return prompt


def _sampling(request: GenerateRequest) -> SamplingConfig:
    raw = {"temperature": request.temperature, "top_k": request.top_k, "top_p": request.top_p}
    try:
        return SamplingConfig.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("toto generate", explain(error, SamplingConfig, raw)) from None


def _videos(recipe: TrainRecipe, wanted: str | None) -> tuple[str, Dataset, int]:
    """The held-out videos of the wanted source, or of the first that has some."""
    found = {}
    for name, source in recipe.data.sources.items():
        if source.validation is not None:
            dataset = open_dataset(
                source.validation, root=recipe.data.root, cache=recipe.data.cache
            )
            if dataset.kind == "videos":
                found[name] = (dataset, source.stride or recipe.clip.stride)
    if wanted is None and found:
        wanted = next(iter(found))
    if wanted not in found:
        listed = ", ".join(found) or "none"
        raise UserError(f"--source {wanted}: sources with held-out videos are {listed}")
    return (wanted, *found[wanted])


def _real_clips(
    dataset: Dataset, recipe: TrainRecipe, stride: int, prompt_frames: int, request: GenerateRequest
) -> list[Clip]:
    """The first frames of videos spread over the dataset: prompts, and what really follows."""
    clips = []
    kept = dataset.kept().tolist()
    count = min(request.samples, len(kept))
    for index in range(count):
        sample = kept[index * len(kept) // count]
        available = (dataset.frames(sample) - 1) // stride + 1
        if available < prompt_frames:
            raise DataError(
                f"{dataset.path}: {dataset.origin(sample)} has {available} frames at stride "
                f"{stride}, and the prompt takes {prompt_frames}. Lower --prompt-frames"
            )
        frames = min(available, prompt_frames + request.frames)
        clip = recipe.clip.model_copy(update={"frames": frames, "stride": stride})
        clips.append(read_clip(dataset, sample, 0, clip))
    return clips


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


def _shown(trained: Trained, clip: Clip) -> Pixels:
    """The real video; where only tokens are at hand, as the tokenizer shows it."""
    if clip.dtype == np.uint8:
        return clip.astype(np.uint8, copy=False)
    return _pixels(trained.tokenizer, _codes(trained.tokenizer, clip, trained.device))


def _write(
    folder: Path,
    real: list[Pixels],
    generated: list[Pixels],
    prompt_frames: int,
    record: dict[str, object],
) -> None:
    """All files into a new folder, which then takes the old one's place."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    samples = []
    for index, (real_THWC, generated_THWC) in enumerate(zip(real, generated, strict=True)):
        scale = pixel_scale(generated_THWC.shape[1])
        animation = side_by_side(
            real_THWC, generated_THWC, prompt_frames=prompt_frames, scale=scale
        )
        names = {kind: f"sample-{index}.{kind}" for kind in ("gif", "mp4", "png")}
        write_gif(unfinished / names["gif"], animation)
        write_mp4(unfinished / names["mp4"], animation)
        sheet = continuation_sheet(
            real_THWC, generated_THWC, prompt_frames=prompt_frames, scale=scale
        )
        write_png(unfinished / names["png"], sheet)
        samples.append({"gif": names["gif"], "sheet": names["png"]})
    text = json.dumps(record | {"samples": samples}, indent=2)
    (unfinished / "generated.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
