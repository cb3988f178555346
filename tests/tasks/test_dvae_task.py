from __future__ import annotations

import math

import pytest
import torch

from toto.data.batch import Batch
from toto.tasks.config import TASKS, DvaeTaskConfig
from toto.tasks.dvae import DvaeTask, cosine, kl_to_uniform, logit_laplace_nll
from toto.tokenizers.config import DvaeConfig
from toto.tokenizers.dvae import Dvae, map_pixels
from toto.tokenizers.quality import psnr

TINY = DvaeConfig(weights="random:0", width=8, num_codes=32, blocks_per_group=1, decoder_stem=8)
SHORT = DvaeTaskConfig(kl_weight=2.0, kl_warmup_steps=10, temperature_steps=20)


def make_task(config: DvaeTaskConfig = SHORT) -> DvaeTask:
    dvae = TINY.build()
    assert isinstance(dvae, Dvae)
    return DvaeTask(dvae, config)


def make_batch(sequences: int = 2, frames: int = 3, seed: int = 0) -> Batch:
    # Two-coloured halves: something that a few steps can learn.
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (sequences, frames, 3, 1, 2), generator=generator)
    pixels = colours.repeat_interleave(16, dim=-1).expand(-1, -1, -1, 32, -1).to(torch.uint8)
    ids = torch.zeros(sequences, dtype=torch.int64)
    return Batch(pixels.contiguous(), None, ids.bool(), ids, ids, ids)


def test_defaults_are_the_published_schedules() -> None:
    config = TASKS.parse("dvae")
    assert isinstance(config, DvaeTaskConfig)
    assert (config.kl_weight, config.kl_warmup_steps) == (6.6, 5_000)
    assert (config.temperature_start, config.temperature_end) == (1.0, 1 / 16)
    assert config.temperature_steps == 150_000


def test_schedules_are_half_cosines_of_the_step() -> None:
    task = make_task()
    seen = {}
    for step in (20, 0, 5, 10, 1000):
        task.at_step(step)
        seen[step] = (task.temperature, task.kl_weight)
    assert seen[0] == (1.0, 0.0)
    assert seen[5][1] == pytest.approx(1.0)
    assert seen[10] == (pytest.approx((1 + 1 / 16) / 2), 2.0)
    assert seen[20] == seen[1000] == (1 / 16, 2.0)
    assert cosine(0.0, 1.0, 0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_logit_laplace_is_a_density_on_the_unit_interval() -> None:
    x = torch.linspace(0, 1, 200_002, dtype=torch.float64)[1:-1]
    for mu, ln_b in [(0.0, -1.0), (1.3, -0.5), (-0.7, 0.2)]:
        stats = torch.tensor([mu] * 3 + [ln_b] * 3, dtype=torch.float64).view(1, 6, 1, 1)
        nll = logit_laplace_nll(stats, x.view(1, 1, 1, -1).expand(1, 3, 1, -1))
        mass = torch.trapezoid(torch.exp(-nll[0, 0, 0]), x)
        assert mass.item() == pytest.approx(1.0, abs=2e-3)


def test_logit_laplace_is_least_at_its_median() -> None:
    x = map_pixels(torch.tensor([0.8])).view(1, 1, 1, 1).expand(1, 3, 1, 1)
    mu = torch.linspace(-3, 3, 601).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    nll = logit_laplace_nll(torch.cat([mu, torch.zeros_like(mu)], dim=1), x)
    best = mu[nll[:, 0, 0, 0].argmin(), 0, 0, 0]
    assert torch.sigmoid(best).item() == pytest.approx(x[0, 0, 0, 0].item(), abs=0.005)


def test_kl_is_zero_at_uniform_and_ln_v_at_certainty() -> None:
    logits = torch.zeros(1, 32, 1, 2)
    logits[0, 7, 0, 1] = 1e4
    of_tokens, _ = kl_to_uniform(logits)
    assert of_tokens.flatten().tolist() == pytest.approx([0.0, math.log(32)], abs=1e-6)


def test_usage_kl_sees_the_mixture_and_not_the_tokens() -> None:
    certain = 1e4 * torch.eye(32).view(32, 32, 1, 1)
    of_tokens, of_mixture = kl_to_uniform(certain)
    assert of_tokens.mean().item() == pytest.approx(math.log(32), abs=1e-5)
    assert of_mixture.item() == pytest.approx(0.0, abs=1e-5)
    _, collapsed = kl_to_uniform(certain[:1])
    assert collapsed.item() == pytest.approx(math.log(32), abs=1e-5)


def test_loss_is_reconstruction_plus_weighted_kl() -> None:
    task, batch = make_task().eval(), make_batch()
    task.at_step(10)
    output = task(batch)
    nll, kl = (output.metrics[name].value().item() for name in ("nll", "kl"))
    assert output.loss.item() == pytest.approx(nll + 2.0 * kl / 192, rel=1e-5)
    assert output.metrics["loss"].value().item() == pytest.approx(output.loss.item(), rel=1e-6)
    assert output.metrics["loss"].count == task.num_targets(batch) == 2 * 3 * 3 * 32 * 32


def test_usage_weight_adds_the_kl_of_the_mixture() -> None:
    batch = make_batch()
    plain, weighted = (
        make_task(SHORT.model_copy(update={"usage_weight": weight})).eval() for weight in (0.0, 5.0)
    )
    assert batch.pixels_BTCHW is not None
    logits = plain.dvae.encoder_logits(batch.pixels_BTCHW.flatten(0, 1).float() / 255)
    expected = 5.0 * kl_to_uniform(logits)[1].item() / 192
    assert expected > 1e-4
    gain = weighted(batch).loss - plain(batch).loss
    assert gain.item() == pytest.approx(expected, rel=1e-3)


def test_evaluation_is_what_encode_and_decode_give() -> None:
    task, batch = make_task().eval(), make_batch()
    assert batch.pixels_BTCHW is not None
    pixels = batch.pixels_BTCHW.flatten(0, 1).float() / 255
    grid = task.dvae.encode(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metrics = task(batch).metrics
    expected = psnr(task.dvae.decode(grid), pixels)
    assert metrics["psnr"].value().item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert metrics["psnr"].count == 6
    counts = torch.bincount(grid.codes_BHW.flatten(), minlength=32)
    assert torch.equal(metrics["codes"].total, counts.double())
    assert metrics["codes"].total.sum() == 6 * 4 * 4


def test_metrics_add_up_over_batches() -> None:
    task = make_task().eval()
    first, second = make_batch(1), make_batch(1, seed=1)
    assert first.pixels_BTCHW is not None
    assert second.pixels_BTCHW is not None
    ids = torch.zeros(2, dtype=torch.int64)
    both = Batch(
        torch.cat([first.pixels_BTCHW, second.pixels_BTCHW]), None, ids.bool(), ids, ids, ids
    )
    together, apart = task(both).metrics, (task(first).metrics, task(second).metrics)
    for name, mean in together.items():
        torch.testing.assert_close((apart[0][name] + apart[1][name]).value(), mean.value())


def test_noise_follows_torchs_global_generator() -> None:
    task, batch = make_task().train(), make_batch()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(task(batch).loss.item())
    assert losses[0] == losses[1] != losses[2]
    state = torch.get_rng_state()
    task.eval()(batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_has_a_role_and_a_gradient() -> None:
    task = make_task().train()
    task.at_step(10)
    task(make_batch()).loss.backward()
    roles = task.param_roles()
    parameters = dict(task.trainable.named_parameters())
    assert roles.keys() == parameters.keys()
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert roles["decoder.blocks.input.w"] == "embed"
    assert (
        roles["encoder.blocks.output.conv.w"] == roles["decoder.blocks.output.conv.w"] == "readout"
    )
    assert roles["encoder.blocks.input.w"] == "hidden"


def test_codes_are_relaxed_in_training_and_whole_in_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No straight-through: Ramesh et al. decode the relaxed codes themselves (App. A.2)."""
    task, seen = make_task().train(), []
    task.at_step(0)  # τ = 1
    decode = task.dvae.decoder_stats

    def decoder_stats(z_BVHW: torch.Tensor) -> torch.Tensor:
        seen.append(z_BVHW)
        return decode(z_BVHW)

    monkeypatch.setattr(task.dvae, "decoder_stats", decoder_stats)
    task(make_batch())
    (z_BVHW,) = seen
    torch.testing.assert_close(z_BVHW.sum(dim=1), torch.ones_like(z_BVHW[:, 0]))
    largest = z_BVHW.amax(dim=1)
    assert largest.mean() < 0.9, "at τ = 1 a relaxed code is spread"
    assert (z_BVHW > 0).float().mean() > 0.99
    task.eval()(make_batch())
    assert len(seen) == 1, "evaluation looks codes up"


def test_initial_gains_scale_fresh_weights_and_no_others() -> None:
    config = SHORT.model_copy(update={"initial_logit_gain": 4.0, "initial_code_gain": 2.0})
    names = ("encoder.blocks.output.conv.w", "decoder.blocks.input.w", "encoder.blocks.input.w")
    for weights, gains in ((None, (4.0, 2.0, 1.0)), ("random:0", (1.0, 1.0, 1.0))):
        dvae = TINY.model_copy(update={"weights": weights}).build()
        assert isinstance(dvae, Dvae)
        before = {name: dvae.get_parameter(name).clone() for name in names}
        DvaeTask(dvae, config)
        for name, gain in zip(names, gains, strict=True):
            assert torch.equal(dvae.get_parameter(name), before[name] * gain)


@pytest.mark.parametrize("num_codes", [16, 64, 1024])
def test_the_vector_of_a_code_has_unit_variance_whatever_their_number(num_codes: int) -> None:
    torch.manual_seed(0)
    dvae = DvaeConfig(num_codes=num_codes, width=8, blocks_per_group=1, decoder_stem=64).build()
    assert isinstance(dvae, Dvae)
    DvaeTask(dvae, DvaeTaskConfig())
    vectors_DV = dvae.get_parameter("decoder.blocks.input.w").flatten(1)
    assert vectors_DV.std().item() == pytest.approx(1, rel=0.1)


def test_a_few_steps_lower_the_loss() -> None:
    task, batch = make_task(), make_batch(4, 4)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    task.at_step(1000)
    before = task.eval()(batch)
    task.train()
    for step in range(40):
        torch.manual_seed(step)
        task.at_step(step)
        optimizer.zero_grad()
        task(batch).loss.backward()
        optimizer.step()
    task.at_step(1000)
    after = task.eval()(batch)
    assert after.loss < before.loss - 0.3
    assert after.metrics["psnr"].value() > before.metrics["psnr"].value() + 1


def test_codes_are_refused() -> None:
    ids = torch.zeros(1, dtype=torch.int64)
    batch = Batch(None, torch.zeros(1, 1, 4, 4, dtype=torch.int64), ids.bool(), ids, ids, ids)
    with pytest.raises(ValueError, match="trained on pixels"):
        make_task()(batch)
