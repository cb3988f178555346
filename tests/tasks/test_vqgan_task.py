"""The losses of a VQGAN: each side's own gradient, restarts, and what evaluation gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toto.data.batch import Batch
from toto.tasks.config import TASKS, VqganTaskConfig
from toto.tasks.discriminator import PatchDiscriminator, hinge_loss
from toto.tasks.perceptual import perceptual_distance
from toto.tasks.vqgan import DeadCodes, VqganTask
from toto.tokenizers.codebook import Codebook
from toto.tokenizers.config import DvaeConfig, VqganConfig
from toto.tokenizers.vqgan import Vqgan
from toto.training.config import OptimizerConfig
from toto.training.engine_local import LocalEngine

TINY = VqganConfig(
    num_codes=16,
    code_dim=8,
    latent_dim=8,
    width=8,
    width_multipliers=(1, 2),
    attention_levels=(),
    blocks_per_level=1,
    norm_groups=4,
    weights="random:0",
)
DVAE = DvaeConfig(weights="random:0", width=8, num_codes=32, blocks_per_group=1, decoder_stem=8)


def make_task(**changes: Any) -> VqganTask:
    torch.manual_seed(0)
    settings = {"discriminator_start": 0, "discriminator_width": 4, "discriminator_layers": 1}
    task = VqganTaskConfig(**settings | changes).build(TINY.build())
    assert isinstance(task, VqganTask)
    with torch.no_grad():
        task.tokenizer.quantize.embedding.weight.normal_(std=0.3)
    return task.train()


def make_batch(sequences: int = 2, frames: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (sequences, frames, 3, 2, 2), generator=generator)
    pixels = colours.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2).to(torch.uint8)
    ids = torch.zeros(sequences, dtype=torch.int64)
    return Batch(pixels, None, ids.bool(), ids, ids, ids)


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


def test_defaults_are_the_published_ones_without_the_perceptual_term() -> None:
    config = TASKS.parse("vqgan")
    assert isinstance(config, VqganTaskConfig)
    assert (config.discriminator_start, config.discriminator_weight) == (250_001, 0.8)
    assert (config.discriminator_width, config.discriminator_layers) == (64, 3)
    assert config.perceptual is None
    assert config.restart_after is None


def test_discriminator_has_the_published_shape() -> None:
    discriminator = PatchDiscriminator(64, 3)
    # 70 × 70 pixels a patch: 256 px give 30 × 30 patches (Isola et al. 2017, App. 6.1.2).
    assert discriminator(torch.rand(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    widths = [m.out_channels for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1]
    assert not list(discriminator.buffers()), "nothing beside the parameters may change"


def test_hinge_is_zero_where_both_sides_are_told_apart() -> None:
    assert hinge_loss(torch.tensor([1.5]), torch.tensor([-2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_each_side_gets_the_gradient_of_its_own_loss() -> None:
    """Against two backward passes, as two optimizers would make them."""
    task, batch = make_task(), make_batch()
    pixels = task.pictures(batch)
    vqgan, discriminator = task.tokenizer, task.discriminator
    task(batch).loss.backward()

    z = vqgan.latents(pixels)
    codes = vqgan.quantize.nearest(z)
    vectors = vqgan.quantize.look_up(codes)
    decoded = vqgan.decoded(z + (vectors - z).detach())
    reconstruction = 2 * (pixels - decoded).abs().mean()
    codebook = (z - vectors.detach()).square().mean() + 0.25 * (
        vectors - z.detach()
    ).square().mean()
    generator = -discriminator(decoded).mean()
    last = vqgan.decoder.conv_out.weight
    (to_pixels,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (to_real,) = torch.autograd.grad(generator, last, retain_graph=True)
    weight = 0.8 * (to_pixels.norm() / (to_real.norm() + 1e-4)).clamp(0, 1e4).detach()
    for wanted, parameter in zip(
        gradients(reconstruction + codebook + weight * generator, vqgan),
        vqgan.parameters(),
        strict=True,
    ):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
    hinge = hinge_loss(discriminator(pixels), discriminator(decoded.detach()))
    for wanted, parameter in zip(
        gradients(hinge, discriminator), discriminator.parameters(), strict=True
    ):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_a_large_gradient_of_the_discriminator_does_not_slow_the_autoencoder() -> None:
    """Each side's gradient is clipped to a norm of its own."""
    weights = []
    for scale in (1.0, 1e4):
        task = make_task()
        for parameter in task.discriminator.parameters():
            parameter.register_hook(lambda grad, scale=scale: grad * scale)
        engine = LocalEngine(
            task,
            OptimizerConfig(lr=1e-3, eps=1.0, grad_clip=0.1),  # eps: AdamW alone would undo a scale
            lambda _: 1e-3,
            device=torch.device("cpu"),
            precision="fp32",
        )
        engine.step([make_batch()])
        weights.append({k: w for k, w in engine.state().model.items() if k.startswith("vqgan.")})
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_before_its_start_step_the_discriminator_takes_no_part() -> None:
    task, batch = make_task(discriminator_start=3), make_batch()
    for step, takes_part in ((2, False), (3, True)):
        task.zero_grad()
        task.at_step(step)
        output = task(batch)
        output.loss.backward()
        moved = [p.grad is not None for p in task.discriminator.parameters()]
        assert all(moved) if takes_part else not any(moved)
        assert ("adaptive_weight" in output.metrics) == takes_part


def test_evaluation_is_what_encode_and_decode_give() -> None:
    task, batch = make_task().eval(), make_batch()
    pixels = task.pictures(batch)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        metrics = task(batch).metrics
    grid = task.tokenizer.encode(pixels)
    decoded = task.tokenizer.decode(grid)
    mse = (decoded - pixels).square().mean(dim=(1, 2, 3))
    psnr = (-10 * torch.log10(mse)).mean()
    assert metrics["psnr"].value().item() == pytest.approx(psnr.item(), rel=1e-5)
    assert torch.equal(
        metrics["codes"].total.long(), torch.bincount(grid.codes_BHW.flatten(), minlength=16)
    )


def test_the_perceptual_term_compares_features_and_moves_the_picture_alone() -> None:
    task = make_task(perceptual={"name": "dvae_features", "dvae": DVAE}, discriminator_start=9)
    plain = make_task(discriminator_start=9)
    batch = make_batch()
    assert task(batch).loss > plain(batch).loss
    assert task.features is not None
    pictures = task.pictures(batch)
    assert perceptual_distance(task.features, pictures, pictures).max() == 0
    maps = task.features(pictures)
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    other = pictures.flip(0).requires_grad_()
    perceptual_distance(task.features, pictures, other).sum().backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0
    assert not any(name.startswith("features") for name, _ in task.trainable.named_parameters())


def test_codes_without_use_become_vectors_at_hand() -> None:
    codebook, dead = Codebook(4, 2), DeadCodes(4, after=2)
    z = torch.arange(8.0).view(2, 2, 1, 2)
    for _ in range(2):
        dead.count_(torch.tensor([[[1]]]))
    assert dead.idle_V.tolist() == [2, 0, 2, 2]
    before = codebook.embedding.weight.clone()
    dead.restart_(codebook, z)
    after = codebook.embedding.weight
    at_hand = {tuple(row) for row in z.permute(0, 2, 3, 1).flatten(0, 2).tolist()}
    placed = [tuple(after[i].tolist()) for i in (0, 2, 3)]
    assert set(placed) <= at_hand
    assert len(set(placed)) == 3
    assert torch.equal(after[1], before[1])
    assert dead.idle_V.tolist() == [0, 0, 0, 0]


def test_more_dead_codes_than_vectors_are_placed_a_part_at_a_time() -> None:
    codebook, dead = Codebook(8, 2), DeadCodes(8, after=1)
    dead.count_(torch.tensor([[[0]]]))
    dead.restart_(codebook, torch.ones(1, 2, 1, 3))
    assert (codebook.embedding.weight == 1).all(dim=1).sum() == 3
    assert (dead.idle_V >= 1).sum() == 4


def test_restarts_bring_codes_into_use() -> None:
    used = {}
    for after in (None, 2):
        task = make_task(restart_after=after, discriminator_start=99)
        with torch.no_grad():
            task.tokenizer.quantize.embedding.weight.fill_(5.0)
            task.tokenizer.quantize.embedding.weight[0] = 0
        optimizer = torch.optim.AdamW(task.trainable.parameters(), lr=1e-3)
        for step in range(6):
            torch.manual_seed(step)
            task(make_batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        counts = task.eval()(make_batch()).metrics["codes"].total
        used[after] = int((counts > 0).sum())
    assert used[None] == 1
    assert used[2] > 3


def test_every_parameter_has_a_role_and_idle_codes_are_saved() -> None:
    task = make_task(restart_after=3)
    roles = task.param_roles()
    assert set(roles) == {name for name, _ in task.trainable.named_parameters()}
    assert roles["vqgan.quantize.embedding.weight"] == "embed"
    assert roles["vqgan.decoder.conv_out.weight"] == "readout"
    assert "dead_codes.idle_V" in task.trainable.state_dict()
    assert isinstance(task.tokenizer, Vqgan)


def test_a_feature_network_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="no weights"):
        VqganTaskConfig(perceptual={"name": "dvae_features", "dvae": {"num_codes": 8}})
