from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from toto.heads.attention import AttentionPooling
from toto.heads.average import AveragePooling
from toto.heads.base import Head
from toto.heads.config import AttentionConfig, AverageConfig
from toto.tasks.config import TASKS, ProbeBankConfig
from toto.tasks.probe_bank import (
    LabelledFeatures,
    LayerFeatures,
    ProbeBank,
    TokenNorm,
    pool_together,
)

B, L, D, CLASSES = 5, 7, 8, 3
CONFIG = ProbeBankConfig(
    heads=("average", "attention", {"name": "attention", "num_heads": 2}),
    learning_rates=(1e-3, 1e-2),
    weight_decays=(0.0, 0.1),
    seeds=(0, 7),
)


def tokens(seed=0, batch=B):
    """Features whose columns differ in mean and deviation, as a residual stream's do."""
    generator = torch.Generator().manual_seed(seed)
    spread_D = torch.linspace(0.2, 5, D)
    x_BLD = torch.randn(batch, L, D, generator=generator)
    return x_BLD * spread_D + 3 * spread_D.flip(0)


def describe(x_BLD):
    return LayerFeatures(x_BLD.mean(1), x_BLD.var(1, correction=0), L, x_BLD)


def batch_of(*layers, seed=0):
    labels = torch.arange(B) % CLASSES
    return LabelledFeatures({k: describe(tokens(seed + k)) for k in layers}, labels)


def bank_of(config=CONFIG, layers=(0, 2)):
    return ProbeBank(config, layers=layers, width=D, num_classes=CLASSES)


def plain_logits(probe, x_BLD, batch_norm):
    if batch_norm:
        norm = nn.BatchNorm1d(D, eps=1e-6, momentum=None, affine=False)
        x_BLD = norm(x_BLD.flatten(0, 1)).view_as(x_BLD)
    return probe.classifier(probe.head(x_BLD))


class LastToken(Head):
    """A user's head, which the bank knows nothing of."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(D))

    def forward(self, features_BLD, valid_BL=None):
        return features_BLD[:, -1] * self.gain


class Doubled(AttentionPooling):
    def forward(self, features_BLD, valid_BL=None):
        return 2 * super().forward(features_BLD, valid_BL)


def test_token_norm_equals_batch_norm_while_training_and_after():
    ours, theirs = TokenNorm(D), nn.BatchNorm1d(D, eps=1e-6, momentum=None, affine=False)
    for training in (True, True, True, False):
        ours.train(training)
        theirs.train(training)
        x_BLD = tokens(seed=int(ours.batches), batch=3 + int(ours.batches))
        shift_D, scale_D = ours(describe(x_BLD))
        want = theirs(x_BLD.flatten(0, 1)).view_as(x_BLD)
        torch.testing.assert_close((x_BLD - shift_D) * scale_D, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.mean_D, theirs.running_mean)
    torch.testing.assert_close(ours.var_D, theirs.running_var)


def test_pooling_together_equals_each_head_on_normed_tokens_with_gradients():
    torch.manual_seed(0)
    groups = [
        [AverageConfig().build(D) for _ in range(2)],
        [AttentionConfig().build(D) for _ in range(3)],
        [LastToken(), LastToken()],
        [AttentionConfig(num_heads=4).build(D) for _ in range(2)],
        [Doubled(AttentionConfig(), D)],
        [AttentionConfig().build(D), Doubled(AttentionConfig(), D)],
    ]
    heads = [head for group in groups for head in group]
    for head in heads:
        if isinstance(head, AttentionPooling):
            nn.init.normal_(head.query)
    x_BLD, shift_D, scale_D = tokens(), torch.randn(D), torch.rand(D) + 0.5
    together = torch.cat(pool_together(groups, describe(x_BLD), shift_D, scale_D))
    apart = torch.stack([head((x_BLD - shift_D) * scale_D) for head in heads])
    parameters = [p for head in heads for p in head.parameters()]
    weights = torch.randn(apart.shape)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    grads = [
        torch.autograd.grad((pooled * weights).sum(), parameters) for pooled in (together, apart)
    ]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_loss_and_gradients_are_those_of_each_probe_alone(batch_norm):
    bank = bank_of(CONFIG.model_copy(update={"batch_norm": batch_norm}))
    batch = batch_of(0, 2)
    output = bank(batch)
    output.loss.backward()
    for index, probe in enumerate(bank.members()):
        x_BLD = batch.layers[probe.layer].tokens_BLD
        loss = nn.functional.cross_entropy(plain_logits(probe, x_BLD, batch_norm), batch.label_B)
        assert output.metrics["loss"].value()[index].item() == pytest.approx(loss.item(), abs=1e-5)
        parameters = list(probe.parameters())
        grads = [p.grad for p in parameters]
        torch.testing.assert_close(
            grads, list(torch.autograd.grad(loss, parameters)), atol=1e-5, rtol=1e-4
        )


def test_a_layer_that_the_batch_lacks_counts_nothing():
    bank = bank_of().eval()
    whole, one, other = bank(batch_of(0, 2)), bank(batch_of(2)), bank(batch_of(0))
    assert one.metrics["loss"].count.tolist() == [0] * 24 + [B] * 24
    torch.testing.assert_close(one.loss + other.loss, whole.loss)
    for name in ("loss", "accuracy"):
        added = one.metrics[name] + other.metrics[name]
        assert torch.equal(added.value(), whole.metrics[name].value())


def test_accuracy_counts_hits():
    bank = bank_of().eval()
    batch = batch_of(0, 2)
    with torch.no_grad():
        for probe in bank.members():
            probe.classifier.weight.zero_()
            probe.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    share = (batch.label_B == 1).double().mean().item()
    assert bank(batch).metrics["accuracy"].value().tolist() == pytest.approx([share] * 48)


def test_a_probes_start_depends_on_layer_head_and_seed_alone():
    many = bank_of()
    alone = {"heads": (AttentionConfig(),), "seeds": (7,)}
    lone = bank_of(CONFIG.model_copy(update=alone), layers=(2,))

    def some(**wanted):
        return [p for p in many.members() if all(getattr(p, k) == v for k, v in wanted.items())]

    twins = some(layer=2, head_config=AttentionConfig(), seed=7)
    assert len(twins) == 4
    for twin in (*twins, *lone.members()):
        assert all(
            torch.equal(a, b) for a, b in zip(twins[0].parameters(), twin.parameters(), strict=True)
        )
    for other in ({"layer": 0, "seed": 7}, {"layer": 2, "seed": 0}):
        probe = some(head_config=AttentionConfig(), **other)[0]
        assert not torch.equal(probe.head.query, twins[0].head.query)


def test_the_order_of_a_bank_is_layer_head_rate_decay_seed():
    kinds = [(p.layer, p.head_config, p.lr, p.weight_decay, p.seed) for p in bank_of().members()]
    axes = ((0, 2), CONFIG.heads, CONFIG.learning_rates, CONFIG.weight_decays, CONFIG.seeds)
    assert kinds == list(itertools.product(*axes))


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    bank_of()
    assert torch.equal(torch.rand(1), want)


def test_means_alone_serve_average_pooling_and_refuse_others():
    features = LayerFeatures(torch.ones(B, D), torch.ones(B, D), L)
    assert len(pool_together([[AverageConfig().build(D)]], features, *torch.ones(2, D))) == 1
    with pytest.raises(ValueError, match="means alone"):
        pool_together([[LastToken()]], features, *torch.ones(2, D))


def test_roles_name_every_parameter_and_spare_vectors():
    bank = bank_of()
    roles = bank.param_roles()
    assert set(roles) == {name for name, _ in bank.named_parameters()}
    assert {roles[f"probes.8.{name}"] for name in ("head.query", "classifier.bias")} == {"norm"}
    assert roles["probes.8.head.key.weight"] == "hidden"
    assert roles["probes.8.classifier.weight"] == "readout"


def test_an_average_probe_is_of_the_exact_type():
    assert type(bank_of().members()[0].head) is AveragePooling


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": ("average", "average")},
        {"learning_rates": (1e-3, 0.001)},
        {"weight_decays": (0, 0.0)},
        {"seeds": (1, 2, 1)},
    ],
)
def test_what_is_named_twice_is_refused(fields):
    with pytest.raises(ValidationError, match="names one twice"):
        ProbeBankConfig(**fields)


def test_config_loads_what_it_dumps():
    assert TASKS.parse(CONFIG.model_dump(mode="json")) == CONFIG
