"""Whether a continued digit keeps its shape and its path, on held-out videos of digits.

Half of the trained frames are given, and the rest is generated. Two questions:

- Where is the digit? Its pixels are those that differ from the still background (the median of
  the video's frames); its place is their centroid, weighted by the difference. The table gives
  the distance to the true place by frame, in px, the median over videos; of the generated frames,
  of the true frames as the tokenizer keeps them (no model can do better), and of the last given
  frame (no motion). Of a frame without such pixels the distance is infinite.
- How well are the digit's tokens predicted? Nats a token of the true video, over the tokens whose
  square holds some of the digit in that frame or in the one before, and over the others: the
  model's, and those of copying the frame before (its probability fitted on training videos).

    python benchmarks/digit_path.py runs/quickstart [--data data/samples/digits] [--videos 64]
                                    [--temperature 1.0]
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import toto
from toto.data.index import Dataset
from toto.data.loader import evaluation_batches
from toto.generation.config import SamplingConfig
from toto.tasks.baselines import TokenBaselines

if TYPE_CHECKING:
    from toto.loaded import LoadedModel

VISIBLE = 0.15  # of the range of a pixel, the mean over its colours
BATCH = 16
FITTED_VIDEOS = 200
VIDEO_FRAMES = 32  # of a digit's video; more than the model sees, to tell the background


def videos(path: str, model: LoadedModel, count: int) -> Tensor:
    """`BTCHW` in [0, 1]: whole videos at the model's resolution, spread over the dataset."""
    dataset = Dataset.open(path)
    clip = model.recipe.clip.model_copy(update={"frames": VIDEO_FRAMES})
    batches = evaluation_batches(dataset, clip, micro_batch=BATCH, count=count)
    return torch.cat([batch.frames() for batch in batches]).float() / 255


def difference(frames_BTCHW: Tensor, still_BCHW: Tensor) -> Tensor:
    """How far each pixel is from the background, `BTHW`; 0 below what counts as the digit."""
    distance_BTHW = (frames_BTCHW - still_BCHW[:, None]).abs().mean(2)
    return distance_BTHW * (distance_BTHW > VISIBLE)


def centroids(difference_BTHW: Tensor) -> Tensor:
    """Row and column in px, `BT2`; NaN where there is nothing."""
    rows = torch.arange(difference_BTHW.shape[2], dtype=torch.float32)
    columns = torch.arange(difference_BTHW.shape[3], dtype=torch.float32)
    total_BT = difference_BTHW.sum((2, 3))
    row_BT = (difference_BTHW.sum(3) * rows).sum(2) / total_BT
    column_BT = (difference_BTHW.sum(2) * columns).sum(2) / total_BT
    return torch.stack((row_BT, column_BT), dim=-1)


def distances(found_BT2: Tensor, true_BT2: Tensor) -> Tensor:
    """In px, `BT`; infinite where nothing was found."""
    return (found_BT2 - true_BT2).norm(dim=-1).nan_to_num(nan=torch.inf)


@torch.no_grad()
def token_losses(model: LoadedModel, codes_BTHW: Tensor) -> Tensor:
    """Of the model, `BTHW` nats."""
    is_image_B = torch.zeros(len(codes_BTHW), dtype=torch.bool)
    with model.trained.autocast():
        losses_BL = model.trained.model.losses(codes_BTHW, is_image_B)
    return losses_BL[:, :-1].reshape(codes_BTHW.shape)


def show_paths(model: LoadedModel, true_BTCHW: Tensor, frames: int, temperature: float) -> None:
    """The table of distances."""
    sampling, given = SamplingConfig(temperature=temperature), frames // 2
    made, kept = [], []
    for part in true_BTCHW.split(BATCH):
        made.append(model.generate(part[:, :given], frames - given, sampling=sampling))
        kept.append(model.decode(model.encode(part)))
    made_BTCHW, kept_BTCHW = torch.cat(made), torch.cat(kept)
    still_BCHW, kept_still_BCHW = true_BTCHW.median(1).values, kept_BTCHW.median(1).values
    place = centroids(difference(true_BTCHW[:, :frames], still_BCHW))[:, given:]
    kept_place = centroids(difference(kept_BTCHW[:, :frames], kept_still_BCHW))
    rows = {
        "generated": centroids(difference(made_BTCHW, kept_still_BCHW))[:, given:],
        "true, as the tokenizer keeps it": kept_place[:, given:],
        "last given frame": kept_place[:, given - 1 : given].expand_as(place),
    }
    numbers = range(1, frames - given + 1)
    print(f"| distance in px, median over videos | {' | '.join(map(str, numbers))} | all |")
    print("|---|" + "---|" * (len(numbers) + 1))
    for name, found in rows.items():
        away_BT = distances(found, place)
        cells = [f"{value:.1f}" for value in away_BT.median(0).values.tolist()]
        print(f"| {name} | {' | '.join(cells)} | {away_BT.median():.1f} |", flush=True)


def show_losses(model: LoadedModel, true_BTCHW: Tensor, train_BTCHW: Tensor, frames: int) -> None:
    """The table of losses."""
    codes, given = [model.encode(part[:, :frames]) for part in true_BTCHW.split(BATCH)], frames // 2
    fitted = TokenBaselines.fit(
        (model.encode(part) for part in train_BTCHW.split(BATCH)),
        model.recipe.tokenizer.codebook_size,
    )
    side = true_BTCHW.shape[-1] // codes[0].shape[-1]
    seen_BTHW = difference(true_BTCHW, true_BTCHW.median(1).values)[:, :frames] > 0
    digit_BTHW = torch.nn.functional.max_pool2d(seen_BTHW.float(), side) > 0
    digit_BTHW[:, 1:] |= digit_BTHW[:, :-1].clone()
    losses = {
        "model": torch.cat([token_losses(model, part) for part in codes]),
        "copying": torch.cat([fitted.token_losses(part)["copy"] for part in codes]),
        "unigram": torch.cat([fitted.token_losses(part)["unigram"] for part in codes]),
    }
    region = digit_BTHW[:, given:]
    print(f"\n| nats a token | the digit ({region.float().mean():.0%} of the tokens) | the rest |")
    print("|---|---|---|")
    for name, losses_BTHW in losses.items():
        of_later = losses_BTHW[:, given:]
        print(f"| {name} | {of_later[region].mean():.3f} | {of_later[~region].mean():.3f} |")


def main() -> None:
    """Measure, and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data", default="data/samples/digits", help="without -train and -val")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    model = toto.load(options.run)
    true_BTCHW = videos(f"{options.data}-val", model, options.videos)
    train_BTCHW = videos(f"{options.data}-train", model, FITTED_VIDEOS)
    frames = model.recipe.clip.frames
    print(
        f"{len(true_BTCHW)} held-out videos, {frames // 2} of {frames} frames given, temperature "
        f"{options.temperature:g}\n"
    )
    show_paths(model, true_BTCHW, frames, options.temperature)
    show_losses(model, true_BTCHW, train_BTCHW, frames)


if __name__ == "__main__":
    main()
