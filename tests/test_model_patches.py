"""Patches in: regression of the next one through a matrix or an MLP, and codes as targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu

from toto.backbones.config import LlamaConfig
from toto.errors import UserError
from toto.layers.loss import LinearCrossEntropy
from toto.model import AutoregressiveModel
from toto.sequence import END_ID, SequenceLayout
from toto.tokenizers.config import DvaeConfig, PatchConfig
from toto.training.optim import parameter_groups

PATCHES = PatchConfig(patch_size=2)
CODES = DvaeConfig(num_codes=60)
LLAMA = LlamaConfig(width=32, num_layers=2, num_heads=2, ffn_dim=48)
MLP = LLAMA.model_copy(update={"patch_readout": "mlp"})
LAYOUT = SequenceLayout(frames=2, height=3, width=3)
IS_IMAGE = torch.tensor([True, False, False])
KINDS = {"to-patches": (LLAMA, None), "to-patches-mlp": (MLP, None), "to-codes": (LLAMA, CODES)}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> AutoregressiveModel:
    backbone, target = KINDS[kind]
    torch.manual_seed(0)
    return AutoregressiveModel(PATCHES, backbone, target)


def frames_and_targets(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(3, 2, 3, 3, 12, generator=generator)
    codes = torch.randint(60, (3, 2, 3, 3), generator=generator)
    return frames, frames if KINDS[kind][1] is None else codes


def last_of(model: AutoregressiveModel, patches: torch.Tensor) -> torch.Tensor:
    """The backbone on start and patches, put together by hand."""
    start = model.interface.starts.weight[IS_IMAGE.long()][:, None]
    embedded = patches.flatten(1, 3) @ model.interface.embedding.weight.T
    return model.backbone(torch.cat((start, embedded), dim=1))


def test_codes_are_classified_from_the_patches_before_them_the_end_last():
    model = make("to-codes")
    patches, codes = frames_and_targets("to-codes")
    losses = model.losses(patches, IS_IMAGE, codes)
    assert losses.shape == (3, LAYOUT.length)
    logits = last_of(model, patches) @ model.interface.readout.weight.T
    ids = LAYOUT.targets(codes)
    assert (ids[:, -1] == END_ID).all()
    torch.testing.assert_close(losses, cross_entropy(logits.mT, ids, reduction="none"))


def test_a_fresh_model_is_at_chance():
    patches, codes = frames_and_targets("to-codes")
    loss = make("to-codes").losses(patches, IS_IMAGE, codes).mean().item()
    assert loss == pytest.approx(math.log(64), rel=0.02)


def test_the_mlp_regresses_the_next_patch():
    model = make("to-patches-mlp")
    patches, _ = frames_and_targets("to-patches-mlp")
    losses = model.losses(patches, IS_IMAGE)
    hidden = gelu(last_of(model, patches)[:, :-1] @ model.interface.hidden.weight.T)
    assert hidden.shape[-1] == 4 * 32
    prediction = hidden @ model.interface.readout.weight.T
    torch.testing.assert_close(losses, (prediction - patches.flatten(1, 3)).square().mean(-1))


@EACH_KIND
def test_a_patch_moves_no_loss_before_it_and_a_target_its_own_alone(kind):
    model = make(kind)
    patches, targets = frames_and_targets(kind)
    before = model.losses(patches, IS_IMAGE, targets)
    changed = patches.clone()
    changed[:, 1, 0, 1] += 1  # visual token 10, an input of all that follow
    moved = (before - model.losses(changed, IS_IMAGE, targets)).abs().amax(0)
    assert torch.equal(moved[:11], torch.zeros(11))
    assert (moved[11:] > 0).all()
    changed = targets.clone()
    changed[:, 1, 0, 1] = (changed[:, 1, 0, 1] + 1) % 60
    moved = (before - model.losses(patches, IS_IMAGE, changed)).abs().amax(0)
    assert moved.nonzero().flatten().tolist() == [10]


@EACH_KIND
def test_every_parameter_has_a_role_and_a_gradient(kind):
    model = make(kind)
    roles = model.param_roles()
    assert set(roles) == {name for name, _ in model.named_parameters()}
    ends = {name: role for name, role in roles.items() if name.startswith("interface.")}
    assert ends == {
        "interface.embedding.weight": "filter",
        "interface.starts.weight": "embed",
        "interface.readout.weight": "readout",
        **({"interface.hidden.weight": "hidden"} if kind == "to-patches-mlp" else {}),
    }
    patches, targets = frames_and_targets(kind)
    model.losses(patches, IS_IMAGE, targets).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    decayed, plain = parameter_groups(model, roles, weight_decay=0.1)
    kept = {name for name, _ in plain["params"]}
    assert {name for name in kept if name.startswith("interface.")} == {"interface.starts.weight"}
    assert decayed["weight_decay"] == 0.1


@EACH_KIND
def test_under_autocast_the_residual_stream_and_the_loss_stay_fp32(kind):
    model = make(kind)
    patches, targets = frames_and_targets(kind)
    exact = model.losses(patches, IS_IMAGE, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(patches, IS_IMAGE, targets)
        features = model.features(patches, IS_IMAGE, [0, 1, 2])
    assert losses.dtype == torch.float32
    assert {x.dtype for x in features.values()} == {torch.float32}
    torch.testing.assert_close(losses, exact, atol=0.05, rtol=0.05)


@EACH_KIND
def test_compiled_equals_eager_with_gradients(kind):
    torch.compiler.reset()
    plain, compiled = make(kind), make(kind)
    compiled.compile_blocks()
    patches, targets = frames_and_targets(kind)
    losses = [model.losses(patches, IS_IMAGE, targets) for model in (plain, compiled)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        (loss * torch.linspace(0, 1, loss.shape[1])).sum().backward()
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def test_code_targets_have_no_ids_to_go_on_from():
    model = make("to-codes")
    assert isinstance(model.interface.loss, LinearCrossEntropy)
    with pytest.raises(UserError, match="patches are continuous"):
        model.next_logits(torch.zeros(1, 3, dtype=torch.long), model.new_cache(3))


@pytest.mark.parametrize(
    ("tokenizer", "target"), [(CODES, CODES), (CODES, PATCHES), (PATCHES, PATCHES)]
)
def test_other_combinations_are_refused(tokenizer, target):
    with pytest.raises(ValueError, match="of another tokenizer is not there"):
        AutoregressiveModel(tokenizer, LLAMA, target)
