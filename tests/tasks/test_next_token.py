from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from toto.backbones.config import LlamaConfig, MaskConfig
from toto.data.batch import Batch
from toto.model import AutoregressiveModel
from toto.sequence import SequenceLayout
from toto.tasks.next_token import NextTokenTask, to_frames
from toto.tokenizers.base import TokenGrid, Tokenizer
from toto.tokenizers.config import PatchConfig, TokenizerConfig
from toto.training.config import OptimizerConfig, ScheduleConfig
from toto.training.engine_local import LocalEngine
from toto.training.schedule import WarmupCosine
from toto.training.task import sum_metrics

T, H, W = 3, 2, 2
PIXELS = 8


class MeanCodesConfig(TokenizerConfig):
    """Code = brightness of a 4×4 cell; enough of a tokenizer to see what it is given."""

    registered_name = "mean_codes"

    @property
    def codebook_size(self) -> int:
        return 10

    def grid(self, resolution: int) -> tuple[int, int]:
        return resolution // 4, resolution // 4

    def build(self) -> MeanCodes:
        return MeanCodes(self)


class MeanCodes(Tokenizer):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.mix = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(3)
        self.seen: list[torch.Tensor] = []

    def encode(self, pixels_BCHW):
        assert not self.training
        assert not torch.is_autocast_enabled(pixels_BCHW.device.type)
        assert not torch.is_grad_enabled()
        self.seen.append(pixels_BCHW)
        mean_BHW = nn.functional.avg_pool2d(pixels_BCHW, 4).mean(1)
        return TokenGrid((mean_BHW * 9.999).long())

    def decode(self, grid):
        raise NotImplementedError


BACKBONE = LlamaConfig(width=16, num_layers=2, num_heads=2, ffn_dim=32)


def make_task(config: TokenizerConfig, target: TokenizerConfig | None = None) -> NextTokenTask:
    torch.manual_seed(0)
    model = AutoregressiveModel(config, BACKBONE, target)
    return NextTokenTask(model, config.build(), target and target.build())


def make_batch(*, pixels=None, codes=None) -> Batch:
    count = len(pixels if pixels is not None else codes)
    index = torch.arange(count)
    return Batch(pixels, codes, index % 2 == 0, index * 0, index, index * 0 - 1)


def random_pixels(count: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, T, 3, PIXELS, PIXELS)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def make_engine(task: NextTokenTask, precision: str = "fp32") -> LocalEngine[Batch]:
    schedule = WarmupCosine(ScheduleConfig(warmup_steps=2), peak=1e-2, steps=10)
    cpu = torch.device("cpu")
    return LocalEngine(task, OptimizerConfig(), schedule, device=cpu, precision=precision)


def test_the_loss_is_over_all_targets_and_the_metrics_leave_the_end_out():
    task = make_task(MeanCodesConfig())
    batch = make_batch(pixels=random_pixels())
    output = task(batch)
    losses_BL = task.model.losses(to_frames(task.tokenizer, batch), batch.is_image_B)
    assert losses_BL.shape == (4, T * H * W + 1)
    torch.testing.assert_close(output.loss, losses_BL.mean())
    visual_BL = losses_BL[:, :-1].double()
    torch.testing.assert_close(output.metrics["loss"].value(), visual_BL.mean())
    by_frame = visual_BL.view(4, T, H * W).mean((0, 2))
    torch.testing.assert_close(output.metrics["frame_loss"].value(), by_frame)
    assert output.metrics["loss"].count == 4 * T * H * W
    assert not output.metrics["frame_loss"].total.requires_grad


def test_the_loss_of_each_source_adds_up_over_micro_batches_to_the_loss():
    task = make_task(MeanCodesConfig())
    task.num_sources = 4
    batch = make_batch(pixels=random_pixels(6))
    batch = dataclasses.replace(batch, source_B=torch.tensor([0, 2, 2, 0, 2, 1]))
    whole = task(batch).metrics
    parts = [
        Batch(batch.pixels_BTCHW[a:b], None, *(x[a:b] for x in (
            batch.is_image_B, batch.source_B, batch.position_B, batch.label_B
        )))
        for a, b in ((0, 4), (4, 6))
    ]  # fmt: skip
    summed = sum_metrics(task(part).metrics for part in parts)["source_loss"]
    torch.testing.assert_close(summed.total, whole["source_loss"].total)
    assert summed.count.tolist() == [2 * T * H * W, T * H * W, 3 * T * H * W, 0]
    losses_BL = task.model.losses(to_frames(task.tokenizer, batch), batch.is_image_B)
    of_2 = losses_BL[batch.source_B == 2, :-1].double().mean()
    torch.testing.assert_close(summed.value()[2], of_2)
    torch.testing.assert_close(summed.total.sum(), whole["loss"].total)
    assert summed.value()[3].isnan()
    assert "source_loss" not in task.eval()(batch).metrics


def test_pixels_and_their_codes_give_the_same_and_pixels_arrive_in_0_to_1():
    task = make_task(MeanCodesConfig())
    pixels = random_pixels()
    codes = to_frames(task.tokenizer, make_batch(pixels=pixels))
    assert codes.shape == (4, T, H, W)
    seen_BCHW = task.tokenizer.seen[0]
    assert torch.equal(seen_BCHW, pixels.flatten(0, 1).float() / 255)
    from_codes = task(make_batch(codes=codes))
    assert torch.equal(task(make_batch(pixels=pixels)).loss, from_codes.loss)


def test_the_number_of_targets():
    task = make_task(MeanCodesConfig())
    pixels = random_pixels()
    length = T * H * W + 1
    assert task.num_targets(make_batch(pixels=pixels)) == 4 * length
    assert (
        task.num_targets(make_batch(codes=to_frames(task.tokenizer, make_batch(pixels=pixels))))
        == 4 * length
    )
    assert make_task(PatchConfig(patch_size=4)).num_targets(make_batch(pixels=pixels)) == 4 * T * 4


def test_patches_train_too():
    task = make_task(PatchConfig(patch_size=4))
    engine = make_engine(task)
    batch = make_batch(pixels=random_pixels())
    assert to_frames(task.tokenizer, batch).shape == (4, T, 2, 2, 48)
    first = engine.evaluate(batch)
    assert first["frame_loss"].value().shape == (T,)
    for _ in range(10):
        engine.step([batch])
    assert engine.evaluate(batch)["loss"].value() < first["loss"].value()


# 2 × 2 patches of 8-px frames; MeanCodes has 2 × 2 cells at 8 px, and 1 × 1 at 4 px.
PATCHES_TO_CODES = (PatchConfig(patch_size=4), MeanCodesConfig())
SHRUNK = (PatchConfig(patch_size=8), MeanCodesConfig())


def test_patches_predict_the_codes_of_the_same_crop():
    task = make_task(*PATCHES_TO_CODES)
    pixels = random_pixels()
    batch = make_batch(pixels=pixels)
    patches, codes = task.tokens(batch)
    assert torch.equal(patches, to_frames(PATCHES_TO_CODES[0].build(), batch))
    assert torch.equal(codes, to_frames(MeanCodesConfig().build().eval(), batch))
    output = task(batch)
    losses_BL = task.model.losses(patches, batch.is_image_B, codes)
    assert losses_BL.shape == (4, T * H * W + 1)
    torch.testing.assert_close(output.loss, losses_BL.mean())
    torch.testing.assert_close(
        output.metrics["loss"].value(), losses_BL[:, :-1].double().mean(), msg="no end in it"
    )
    assert output.metrics["loss"].count == 4 * T * H * W
    assert task.num_targets(batch) == 4 * (T * H * W + 1)


@pytest.mark.parametrize(
    ("norm", "follows"), [("imagenet", True), ("image", True), ("patch", False)]
)
def test_inputs_follow_a_brightness_that_changes_the_codes(norm, follows):
    task = make_task(PatchConfig(patch_size=4, input_norm=norm), MeanCodesConfig())
    darker = 60 + random_pixels() // 4
    brighter = darker.clone()
    brighter[..., :4, 4:] += 60  # the second patch of each frame
    (before, codes), (after, other_codes) = (
        task.tokens(make_batch(pixels=pixels)) for pixels in (darker, brighter)
    )
    assert (codes != other_codes)[:, :, 0, 1].all()
    assert torch.equal(codes[:, :, 1], other_codes[:, :, 1])
    moved = (after - before)[:, :, 0, 1].abs().mean().item()
    assert (moved > 0.3) is follows


def test_patches_regress_the_normalised_next_patch_from_pixels():
    task = make_task(PatchConfig(patch_size=4))
    batch = make_batch(pixels=random_pixels())
    frames, targets = task.tokens(batch)
    mean, std = frames.mean(-1, keepdim=True), (frames.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(targets, (frames - mean) / std)
    assert (frames - targets).abs().mean() > 0.1
    losses_BL = task.model.losses(frames, batch.is_image_B, targets)
    torch.testing.assert_close(task(batch).loss, losses_BL.mean())


def test_a_target_tokenizer_of_coarser_pixels_sees_the_crop_shrunk():
    task = make_task(*SHRUNK)
    pixels = random_pixels()
    patches, codes = task.tokens(make_batch(pixels=pixels))
    assert (patches.shape, codes.shape) == ((4, T, 1, 1, 192), (4, T, 1, 1))
    (seen_BCHW,) = task.target_tokenizer.seen
    assert seen_BCHW.shape == (4 * T, 3, 4, 4)
    assert seen_BCHW.dtype == torch.float32
    assert 0 <= seen_BCHW.min() < seen_BCHW.max() <= 1
    plainly = [
        PIL.Image.fromarray(frame).resize((4, 4), PIL.Image.Resampling.BICUBIC)
        for frame in pixels.flatten(0, 1).permute(0, 2, 3, 1).numpy()
    ]
    expected = torch.from_numpy(np.stack(plainly)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(seen_BCHW, expected, atol=2.5 / 255, rtol=0)


def test_what_shrinks_does_not_depend_on_precision_or_the_batch():
    task = make_task(*SHRUNK)
    pixels = random_pixels()
    task.tokens(make_batch(pixels=pixels))
    with torch.autocast("cpu", torch.bfloat16):
        task.tokens(make_batch(pixels=pixels))
    task.tokens(make_batch(pixels=pixels[2:]))
    first, autocast, alone = task.target_tokenizer.seen
    assert torch.equal(first, autocast)
    assert torch.equal(first[2 * T :], alone)


def test_patches_learn_codes_and_both_tokenizers_stay_frozen():
    task = make_task(*PATCHES_TO_CODES)
    engine = make_engine(task)
    before = task.target_tokenizer.fingerprint()
    batch = make_batch(pixels=random_pixels())
    first = engine.evaluate(batch)
    assert first["frame_loss"].value().shape == (T,)
    for _ in range(10):
        engine.step([batch])
    assert engine.evaluate(batch)["loss"].value() < first["loss"].value()
    assert not task.target_tokenizer.training
    assert task.target_tokenizer.fingerprint() == before
    assert not any("tokenizer" in name for name in engine.state().model)
    assert set(task.param_roles()) == {name for name, _ in task.trainable.named_parameters()}


def test_the_tokenizer_stays_frozen_and_out_of_the_trained_part():
    task = make_task(MeanCodesConfig())
    engine = make_engine(task, precision="bf16")
    before = task.tokenizer.fingerprint()
    for _ in range(3):
        engine.step([make_batch(pixels=random_pixels())])
    assert task.training
    assert not task.tokenizer.training
    assert task.tokenizer.fingerprint() == before
    assert not any(name.startswith("tokenizer") for name in engine.state().model)
    assert set(task.param_roles()) == {name for name, _ in task.trainable.named_parameters()}


def test_tokens_do_not_depend_on_precision():
    task = make_task(MeanCodesConfig())
    batch = make_batch(pixels=random_pixels())
    plain = to_frames(task.tokenizer, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_frames(task.tokenizer, batch), plain)


def test_accumulated_gradients_equal_one_big_batch():
    whole, parts = (make_engine(make_task(MeanCodesConfig())) for _ in range(2))
    for step in range(3):
        pixels = random_pixels(5, seed=step)
        first = whole.step([make_batch(pixels=pixels)])
        # is_image_B alternates with the row, so the parts begin at even rows.
        second = parts.step([make_batch(pixels=pixels[:4]), make_batch(pixels=pixels[4:])])
        assert first.loss == pytest.approx(second.loss, abs=1e-6)
        assert first.grad_norm == pytest.approx(second.grad_norm, abs=1e-5)


def weights_digest(engine: LocalEngine[Batch]) -> str:
    state = engine.state()
    found = hashlib.sha256()
    for tensor in (*state.model.values(), *state.optimizer.values()):
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_restored_engine_goes_on_bit_for_bit(precision):
    whole = make_engine(make_task(MeanCodesConfig()), precision)
    for step in range(3):
        whole.step([make_batch(pixels=random_pixels(seed=step))])
    state = whole.state()
    restored = make_engine(make_task(MeanCodesConfig()), precision)
    restored.load_state(
        type(state)(
            state.steps_done,
            {name: tensor.clone() for name, tensor in state.model.items()},
            {name: tensor.clone() for name, tensor in state.optimizer.items()},
        )
    )
    for engine in (whole, restored):
        for step in range(3, 6):
            engine.step([make_batch(pixels=random_pixels(seed=step))])
    assert weights_digest(whole) == weights_digest(restored)


def test_a_prefix_is_read_and_not_predicted():
    task = make_task(MeanCodesConfig())
    task.model.mask = MaskConfig(name="prefix", frames=1).build(SequenceLayout(T, H, W))
    batch = make_batch(pixels=random_pixels())
    output = task(batch)
    losses_BL = task.model.losses(to_frames(task.tokenizer, batch), batch.is_image_B)
    torch.testing.assert_close(output.loss, losses_BL[:, H * W :].mean())
    assert task.num_targets(batch) == 4 * ((T - 1) * H * W + 1)
    assert output.metrics["loss"].count == 4 * (T - 1) * H * W
    by_frame = output.metrics["frame_loss"].value()
    assert by_frame[0].isnan()
    assert by_frame[1:].isfinite().all()
