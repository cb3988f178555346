"""What generation begins with: held-out videos, files of the user, or the start id alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from toto.data.clip_files import kind_of_file, read_picture_file, read_video_file
from toto.data.clips import read_clip
from toto.errors import DataError, UserError
from toto.jobs.sources import open_dataset
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.index import Dataset
    from toto.recipe.schemas import TrainRecipe

__all__ = ["Clip", "Prompt", "PromptRequest", "Prompts", "find_prompts"]

Clip = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""uint8 pixels `THWC`, or uint16 codes `THW`."""


@dataclass(frozen=True)
class PromptRequest:
    """The command's arguments that choose the prompts.

    Attributes:
        files: a prompt each: a video, or a picture.
        sequences: a prompt each: paths of pictures, separated by commas.
        source: of held-out videos; None for the first that has some.
        prompt_frames: given of each video; None for half of the trained ones, or a prefix
            mask's; 0 for none.
        frames: to be generated.
        samples: held-out videos, or sequences of each file and of the start alone.
        seed: of the first.
    """

    files: tuple[Path, ...]
    sequences: tuple[str, ...]
    source: str | None
    prompt_frames: int | None
    frames: int
    samples: int
    seed: int


@dataclass(frozen=True)
class Prompt:
    """What one generated sequence begins with.

    Attributes:
        name: for the reader.
        clip: the frames that are given, then those that really follow, as far as there are any.
        given: the first so many frames are given; 0 for the start id alone.
        seed: of the draws.
    """

    name: str
    clip: Clip
    given: int
    seed: int

    @property
    def is_followed(self) -> bool:
        """Whether something real stands beside what is generated."""
        return len(self.clip) > self.given


@dataclass(frozen=True)
class Prompts:
    """All prompts of one command; `source` is that of held-out videos."""

    kind: Literal["held-out", "files", "start"]
    source: str | None
    prompts: list[Prompt]


def find_prompts(request: PromptRequest, recipe: TrainRecipe) -> Prompts:
    """The prompts that the command asks for.

    Raises:
        UserError: options that exclude each other, or no such source.
        DataError: a file or a held-out video that cannot be read, or is shorter than the prompt.
    """
    _refuse_contradictions(request)
    if request.files or request.sequences:
        prompts = [
            *(_file_prompt(path, request, recipe) for path in request.files),
            *(
                _sequence_prompt(text, request, recipe.clip.resolution)
                for text in request.sequences
            ),
        ]
        return Prompts("files", None, _repeated(prompts, request.samples))
    if request.prompt_frames == 0:
        nothing = np.empty((0, recipe.layout.height, recipe.layout.width), np.uint16)
        start = Prompt("start alone", nothing, 0, request.seed)
        return Prompts("start", None, _repeated([start], request.samples))
    return _held_out_prompts(request, recipe)


def _refuse_contradictions(request: PromptRequest) -> None:
    by_files = bool(request.files or request.sequences)
    if request.source is not None and (by_files or request.prompt_frames == 0):
        raise UserError(
            f"--source {request.source} takes held-out videos as prompts, and --prompt, --sequence "
            "and --prompt-frames 0 take none. Leave out one of them"
        )
    if by_files and request.prompt_frames == 0:
        raise UserError(
            "--prompt-frames 0 begins with the start alone, and there are files to begin with. "
            "Leave out one of them"
        )
    if request.sequences and not request.files and request.prompt_frames is not None:
        raise UserError(
            f"--prompt-frames {request.prompt_frames} is of videos, and every picture of a "
            "--sequence is a frame of its prompt. Leave it out"
        )


def _repeated(prompts: Sequence[Prompt], samples: int) -> list[Prompt]:
    """Each prompt `samples` times, with seeds that do not depend on the prompts around it."""
    return [
        replace(prompt, seed=prompt.seed + index) for prompt in prompts for index in range(samples)
    ]


def _file_prompt(path: Path, request: PromptRequest, recipe: TrainRecipe) -> Prompt:
    clip = recipe.clip
    if kind_of_file(path) == "images":
        return Prompt(str(path), read_picture_file(path, clip.resolution), 1, request.seed)
    given = _frames_given(request, recipe)
    wanted = clip.model_copy(update={"frames": given + request.frames})
    frames = read_video_file(path, wanted)
    _require_frames(str(path), len(frames), clip.stride, given)
    return Prompt(str(path), frames, given, request.seed)


def _sequence_prompt(text: str, request: PromptRequest, resolution: int) -> Prompt:
    names = text.split(",")
    if not all(names):
        raise UserError(f"--sequence {text}: an empty name. Separate the pictures by single commas")
    paths = [Path(name) for name in names]
    for path in paths:
        if kind_of_file(path) != "images":
            raise UserError(
                f"--sequence {text}: {path} is a video, and a sequence is made of pictures. "
                "Continue a video with --prompt"
            )
    frames = np.concatenate([read_picture_file(path, resolution) for path in paths])
    return Prompt(text, frames, len(frames), request.seed)


def _held_out_prompts(request: PromptRequest, recipe: TrainRecipe) -> Prompts:
    """The first frames of videos spread over the dataset."""
    name, dataset, stride = _held_out_videos(recipe, request.source)
    given = _frames_given(request, recipe)
    prompts = []
    kept = dataset.kept().tolist()
    if not kept:
        raise DataError(f"{dataset.path}: excluded.jsonl leaves no video. Take a sample back")
    count = min(request.samples, len(kept))
    for index in range(count):
        sample = kept[index * len(kept) // count]
        available = (dataset.frames(sample) - 1) // stride + 1
        what = f"{dataset.path}: {dataset.origin(sample)}"
        _require_frames(what, available, stride, given)
        frames = min(available, given + request.frames)
        clip = recipe.clip.model_copy(update={"frames": frames, "stride": stride})
        real = read_clip(dataset, sample, 0, clip)
        prompts.append(Prompt(dataset.origin(sample), real, given, request.seed + index))
    return Prompts("held-out", name, prompts)


def _held_out_videos(recipe: TrainRecipe, wanted: str | None) -> tuple[str, Dataset, int]:
    """The held-out videos of the wanted source, or of the first that has some; their stride."""
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
        asked = "no --source" if wanted is None else f"--source {wanted}"
        raise UserError(
            f"{asked}: sources with held-out videos are {listed}. Name one of them, or give "
            "--prompt FILE, or begin with the start alone: --prompt-frames 0"
        )
    return (wanted, *found[wanted])


def _frames_given(request: PromptRequest, recipe: TrainRecipe) -> int:
    """Those asked for, or half of the trained ones; by default no less than a prefix mask reads."""
    return request.prompt_frames or max(recipe.clip.frames // 2, recipe.mask.frames or 0, 1)


def _require_frames(what: str, available: int, stride: int, given: int) -> None:
    if available < given:
        raise DataError(
            f"{what} has {number_of(available, 'frame')} at stride {stride}, and the prompt "
            f"takes {given}. "
            "Lower --prompt-frames"
        )
