from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from toto.errors import RunError
from toto.generation.config import SamplingConfig
from toto.generation.sampling import code_probabilities, sample_codes, sequence_generators
from toto.sequence import NUM_SPECIAL_IDS

VOCAB = 12 + NUM_SPECIAL_IDS


def plain_probabilities(logits_V: torch.Tensor, config: SamplingConfig) -> dict[int, float]:
    """One row, by the definition, code by code."""
    weights = {
        code: torch.exp(logits_V[code + NUM_SPECIAL_IDS].double() / config.temperature).item()
        for code in range(len(logits_V) - NUM_SPECIAL_IDS)
    }
    ranked = sorted(weights, key=lambda code: -weights[code])
    if config.top_k:
        ranked = ranked[: config.top_k]
    total = sum(weights[code] for code in ranked)
    kept: list[int] = []
    for code in ranked:
        if sum(weights[code] for code in kept) / total >= config.top_p:
            break
        kept.append(code)
    total = sum(weights[code] for code in kept)
    return {code: weights[code] / total for code in kept}


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(top_k=3),
        SamplingConfig(top_k=100),
        SamplingConfig(top_p=0.6),
        SamplingConfig(temperature=2.0, top_k=5, top_p=0.7),
        SamplingConfig(top_p=1e-9),
    ],
)
def test_probabilities_follow_the_plain_formula(config: SamplingConfig) -> None:
    logits_BV = 2 * torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    probs_BK = code_probabilities(logits_BV, config)
    for logits_V, probs_K in zip(logits_BV, probs_BK, strict=True):
        found = {code: prob for code, prob in enumerate(probs_K.tolist()) if prob > 0}
        assert found == pytest.approx(plain_probabilities(logits_V, config), abs=1e-12)


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    draws = 20_000
    codes_B = sample_codes(
        logits_V.expand(draws, VOCAB), SamplingConfig(), sequence_generators(range(draws))
    )
    frequency_K = codes_B.bincount(minlength=VOCAB - NUM_SPECIAL_IDS) / draws
    expected_K = logits_V[NUM_SPECIAL_IDS:].softmax(0)
    deviation_K = (expected_K * (1 - expected_K) / draws).sqrt()
    assert ((frequency_K - expected_K).abs() < 5 * deviation_K).all()


def test_special_ids_are_never_drawn_however_probable() -> None:
    logits_BV = torch.zeros(500, VOCAB)
    logits_BV[:, :NUM_SPECIAL_IDS] = 1e4
    codes_B = sample_codes(logits_BV, SamplingConfig(), sequence_generators(range(500)))
    assert set(codes_B.tolist()) == set(range(VOCAB - NUM_SPECIAL_IDS))


def test_a_sequence_draws_the_same_in_any_batch() -> None:
    logits_BV = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2))
    seeds = [10, 11, 12, 13, 14]
    config = SamplingConfig(top_p=0.9)

    def draw(rows: list[int]) -> list[list[int]]:
        generators = sequence_generators([seeds[row] for row in rows])
        steps = [sample_codes(logits_BV[rows], config, generators) for _ in range(20)]
        return torch.stack(steps, dim=1).tolist()

    together = draw([0, 1, 2, 3, 4])
    assert [draw([row])[0] for row in range(5)] == together
    assert draw([4, 2]) == [together[4], together[2]]


def test_top_k_1_is_the_most_probable_code_and_of_equals_the_first() -> None:
    logits_BV = torch.zeros(1, VOCAB)
    logits_BV[0, [7, 9]] = 3.0
    for seed in range(20):
        code = sample_codes(logits_BV, SamplingConfig(top_k=1), sequence_generators([seed]))
        assert code.tolist() == [7 - NUM_SPECIAL_IDS]


def test_temperature_0_is_the_most_probable_code_and_of_equals_the_first() -> None:
    logits_BV = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(4))
    logits_BV[0, [7, 9]] = 30.0
    for config in (
        SamplingConfig(temperature=0),
        SamplingConfig(temperature=0, top_k=5, top_p=0.9),
    ):
        probs_BK = code_probabilities(logits_BV, config)
        assert (probs_BK.sum(-1) == 1).all()
        for seed in range(5):
            codes_B = sample_codes(logits_BV, config, sequence_generators(range(seed, seed + 4)))
            assert torch.equal(codes_B, logits_BV[:, NUM_SPECIAL_IDS:].argmax(-1))
            assert codes_B[0] == 7 - NUM_SPECIAL_IDS


def test_a_tiny_temperature_stays_finite() -> None:
    logits_BV = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(3))
    config = SamplingConfig(temperature=1e-300)
    codes_B = sample_codes(logits_BV, config, sequence_generators([0, 1, 2]))
    assert torch.equal(codes_B, logits_BV[:, NUM_SPECIAL_IDS:].argmax(-1))


def test_non_finite_logits_are_refused() -> None:
    logits_BV = torch.zeros(2, VOCAB)
    logits_BV[1, -1] = float("nan")
    with pytest.raises(RunError, match="NaN or infinite"):
        sample_codes(logits_BV, SamplingConfig(), sequence_generators([0, 1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SamplingConfig.model_validate(wrong)
