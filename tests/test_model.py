from __future__ import annotations

import hashlib
import math

import pytest
import torch

from toto.backbones.config import LlamaConfig
from toto.errors import UserError
from toto.layers.masks import FULL
from toto.model import AutoregressiveModel
from toto.sequence import END_ID, SequenceLayout
from toto.tokenizers.config import DvaeConfig, PatchConfig

CODES = DvaeConfig(num_codes=60)
PATCHES = PatchConfig(patch_size=2)
LLAMA = LlamaConfig(width=32, num_layers=2, num_heads=2, ffn_dim=48)
LAYOUT = SequenceLayout(frames=2, height=3, width=3)
IS_IMAGE = torch.tensor([True, False, False])
PRECISIONS = pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
INPUTS = pytest.mark.parametrize("tokenizer", [CODES, PATCHES], ids=["codes", "patches"])


def make(tokenizer=CODES, **changes: object) -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(tokenizer, LLAMA.model_copy(update=changes))


def frames_of(tokenizer, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if tokenizer is CODES:
        return torch.randint(60, (3, 2, 3, 3), generator=generator)
    return torch.randn(3, 2, 3, 3, 12, generator=generator)


def autocast(bf16: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def test_codes_give_one_loss_a_target_the_end_last():
    model, codes = make(), frames_of(CODES)
    losses = model.losses(codes, IS_IMAGE)
    assert losses.shape == (3, LAYOUT.length)
    inputs, targets = LAYOUT.inputs(codes, IS_IMAGE), LAYOUT.targets(codes)
    assert (targets[:, -1] == END_ID).all()
    for index in (0, 7, LAYOUT.num_visual):
        log_probs = model.next_logits(
            inputs[:, : index + 1], model.new_cache(index + 1)
        ).log_softmax(-1)
        expected = -log_probs.gather(1, targets[:, index : index + 1])[:, 0]
        torch.testing.assert_close(losses[:, index], expected)


def test_a_fresh_model_is_at_chance():
    assert make().losses(frames_of(CODES), IS_IMAGE).mean().item() == pytest.approx(
        math.log(64), rel=0.02
    )


def test_patches_give_the_mean_squared_error_of_the_next_patch():
    model, patches = make(PATCHES), frames_of(PATCHES)
    losses = model.losses(patches, IS_IMAGE)
    assert losses.shape == (3, LAYOUT.num_visual)
    flat = patches.flatten(1, 3)
    start = model.interface.starts.weight[IS_IMAGE.long()][:, None]
    inputs = torch.cat((start, flat[:, :-1] @ model.interface.embedding.weight.T), dim=1)
    prediction = model.backbone(inputs) @ model.interface.readout.weight.T
    torch.testing.assert_close(losses, (prediction - flat).square().mean(-1))


@INPUTS
def test_a_token_moves_no_loss_before_its_own(tokenizer):
    model, frames = make(tokenizer), frames_of(tokenizer)
    changed = frames.clone()
    changed[:, 1, 0, 1] = (changed[:, 1, 0, 1] + 1) % 60  # visual token 10
    moved = (model.losses(frames, IS_IMAGE) - model.losses(changed, IS_IMAGE)).abs().amax(0)
    assert torch.equal(moved[:10], torch.zeros(10))
    assert (moved[10:] > 0).all()


@INPUTS
def test_images_and_videos_start_differently(tokenizer):
    model, frames = make(tokenizer), frames_of(tokenizer)
    as_video = model.losses(frames, torch.zeros(3, dtype=torch.bool))
    as_image = model.losses(frames, torch.ones(3, dtype=torch.bool))
    assert (as_video[:, 0] != as_image[:, 0]).all()
    mixed = model.losses(frames, IS_IMAGE)
    torch.testing.assert_close(mixed[0], as_image[0])
    torch.testing.assert_close(mixed[1:], as_video[1:])


@INPUTS
def test_features_stand_at_the_visual_tokens(tokenizer):
    model, frames = make(tokenizer), frames_of(tokenizer)
    found = model.features(frames, IS_IMAGE, [0, 1, -1])
    assert {layer: tuple(x.shape) for layer, x in found.items()} == dict.fromkeys(
        (0, 1, -1), (3, LAYOUT.num_visual, 32)
    )
    embedded = model.interface.embed(frames, IS_IMAGE)
    assert torch.equal(found[0], embedded[:, 1:])
    if tokenizer is CODES:
        assert torch.equal(found[0][0, 0], model.interface.embedding.weight[frames[0, 0, 0, 0] + 4])


def test_patches_have_no_logits():
    model = make(PATCHES)
    with pytest.raises(UserError, match="patches are continuous"):
        model.next_logits(torch.zeros(1, 3, dtype=torch.long), model.new_cache(3))


def test_under_full_attention_nothing_is_generated():
    with pytest.raises(UserError, match="Take a causal model"):
        AutoregressiveModel(CODES, LLAMA, mask=FULL).new_cache(3)


@INPUTS
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_role_and_a_gradient(tokenizer, tied):
    model = make(tokenizer, tie_embeddings=tied)
    roles = model.param_roles()
    assert set(roles) == {name for name, _ in model.named_parameters()}
    assert roles["interface.embedding.weight"] == ("filter" if tokenizer is PATCHES else "embed")
    assert roles["backbone.norm.weight"] == "norm"
    assert roles["backbone.blocks.0.mlp.down.weight"] == "hidden"
    assert ("readout" in roles.values()) == (not tied or tokenizer is PATCHES)
    model.losses(frames_of(tokenizer), IS_IMAGE).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@INPUTS
def test_under_autocast_the_residual_stream_and_the_loss_stay_fp32(tokenizer):
    model, frames = make(tokenizer), frames_of(tokenizer)
    exact = model.losses(frames, IS_IMAGE)
    with autocast(True):
        losses = model.losses(frames, IS_IMAGE)
        features = model.features(frames, IS_IMAGE, [0, 1, 2])
    assert losses.dtype == torch.float32
    assert {x.dtype for x in features.values()} == {torch.float32}
    torch.testing.assert_close(losses, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(losses, exact)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@INPUTS
def test_compiled_equals_eager_with_gradients(tokenizer):
    plain, compiled = make(tokenizer), make(tokenizer)
    compiled.compile_blocks()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    frames = frames_of(tokenizer)
    losses = [model.losses(frames, IS_IMAGE) for model in (plain, compiled)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        (loss * torch.linspace(0, 1, loss.shape[1])).sum().backward()
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@PRECISIONS
def test_compiled_training_is_bitwise_repeatable(bf16):
    def weights_after_three_steps() -> str:
        torch.compiler.reset()
        model = make()
        model.compile_blocks()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            optimizer.zero_grad()
            with autocast(bf16):
                loss = model.losses(frames_of(CODES, step), IS_IMAGE).mean()
            loss.backward()
            optimizer.step()
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        return digest.hexdigest()

    assert weights_after_three_steps() == weights_after_three_steps()


@pytest.mark.usefixtures("fresh_compiler")
def test_all_blocks_share_one_compiled_graph():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = make(num_layers=12)
    for block in model.backbone.blocks:
        block.compile(backend=counter, dynamic=False)
    model.losses(frames_of(CODES), IS_IMAGE)
    assert counter.frame_count == 1
