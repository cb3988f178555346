from __future__ import annotations

import math

import pytest
import torch

from toto.tasks.baselines import TokenBaselines

V = 7


def clips(count: int, repeat: float, seed: int = 0, frames: int = 5) -> torch.Tensor:
    """Codes that repeat the frame before with a probability, else are drawn unevenly."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.arange(1.0, V + 1)
    shape = (count, frames, 3, 4)
    drawn = torch.multinomial(weights, math.prod(shape), True, generator=generator).view(shape)
    keep = torch.rand(shape, generator=generator) < repeat
    for t in range(1, frames):
        drawn[:, t] = torch.where(keep[:, t], drawn[:, t - 1], drawn[:, t])
    return drawn


def brute_unigram(batches) -> list[float]:
    seen = [code for batch in batches for code in batch.flatten().tolist()]
    return [(seen.count(code) + 1) / (len(seen) + V) for code in range(V)]


def brute_copy_loss(unigram, a, codes_BTHW) -> list[float]:
    """Mean loss of each frame, one token after the other."""
    by_frame = []
    for t in range(codes_BTHW.shape[1]):
        losses = []
        for clip in codes_BTHW.tolist():
            for y, row in enumerate(clip[t]):
                for x, code in enumerate(row):
                    p = unigram[code]
                    if t:
                        p = a * (clip[t - 1][y][x] == code) + (1 - a) * p
                    losses.append(-math.log(p))
        by_frame.append(sum(losses) / len(losses))
    return by_frame


def test_unigram_and_copy_equal_a_computation_token_by_token():
    train = [clips(3, 0.6, seed=1), clips(2, 0.6, seed=2)]
    held_out = clips(4, 0.5, seed=3)
    baselines = TokenBaselines.fit(train, V)
    unigram = brute_unigram(train)
    assert baselines.log_unigram_V.exp().tolist() == pytest.approx(unigram, abs=1e-12)
    losses = {name: mean.value() for name, mean in baselines.losses(held_out).items()}
    copy = brute_copy_loss(unigram, baselines.copy_probability, held_out)
    plain = brute_copy_loss(unigram, 0.0, held_out)
    assert losses["frame_copy"].tolist() == pytest.approx(copy, abs=1e-9)
    assert losses["frame_unigram"].tolist() == pytest.approx(plain, abs=1e-9)
    assert losses["copy"].item() == pytest.approx(sum(copy) / len(copy), abs=1e-9)
    assert losses["unigram"].item() == pytest.approx(sum(plain) / len(plain), abs=1e-9)
    assert losses["frame_copy"][0] == losses["frame_unigram"][0]


def test_the_copy_probability_is_the_most_likely_one():
    train = clips(20, 0.6)
    found = TokenBaselines.fit([train], V).copy_probability
    unigram = torch.tensor(brute_unigram([train]), dtype=torch.float64)
    now, before = train[:, 1:], train[:, :-1]

    def loss(a):
        return -(a * (now == before).double() + (1 - a) * unigram[now]).log().mean().item()

    # Golden-section search of the same likelihood, computed over the tokens themselves.
    low, high, ratio = 0.0, 0.999, (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    assert found == pytest.approx(low, abs=1e-6)
    assert found == pytest.approx(0.6, abs=0.05)
    grid = torch.linspace(0, 0.99, 100).tolist()
    assert loss(found) <= min(loss(a) for a in grid)


def test_codes_that_never_repeat_make_the_copy_the_unigram():
    codes = (torch.arange(5).view(1, 5, 1, 1) + torch.arange(V).view(V, 1, 1, 1)) % V
    baselines = TokenBaselines.fit([codes], V)
    assert baselines.copy_probability == 0.0
    losses = baselines.losses(codes)
    assert losses["copy"].value() == pytest.approx(losses["unigram"].value().item(), abs=1e-12)


def test_a_still_video_keeps_the_loss_finite():
    still = torch.arange(12).view(1, 1, 3, 4).expand(1, 5, 3, 4) % V
    baselines = TokenBaselines.fit([still], V)
    pairs = 4 * 12
    assert baselines.copy_probability == 1 - 1 / (pairs + 1)
    moving = clips(2, 0.0)
    assert all(mean.value().isfinite().all() for mean in baselines.losses(moving).values())


def test_single_frames_have_no_copy():
    baselines = TokenBaselines.fit([clips(3, 0.5, frames=1)], V)
    assert baselines.copy_probability == 0.0


def test_a_copying_source_is_predicted_better_by_copying():
    baselines = TokenBaselines.fit([clips(20, 0.8)], V)
    losses = {name: mean.value() for name, mean in baselines.losses(clips(5, 0.8, seed=9)).items()}
    assert losses["copy"] < losses["unigram"] - 0.3


def test_batches_add_up_to_the_whole():
    baselines = TokenBaselines.fit([clips(3, 0.5)], V)
    codes = clips(5, 0.5, seed=4)
    whole = baselines.losses(codes)
    first, second = baselines.losses(codes[:2]), baselines.losses(codes[2:])
    for name, mean in whole.items():
        torch.testing.assert_close((first[name] + second[name]).value(), mean.value())


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        TokenBaselines.fit([], V)


def test_skipped_frames_take_no_part():
    codes = clips(4, 0.6, seed=1)
    fitted = TokenBaselines.fit([codes], V)
    skipped, whole = fitted.losses(codes, skip_frames=1), fitted.losses(codes)
    for name in ("unigram", "copy"):
        by_frame = whole[f"frame_{name}"].value()
        torch.testing.assert_close(skipped[name].value(), by_frame[1:].mean())
        assert skipped[f"frame_{name}"].value()[0].isnan()
