from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from toto.heads.attention import AttentionPooling
from toto.heads.average import AveragePooling
from toto.heads.base import Head
from toto.heads.config import AttentionConfig, AverageConfig, HeadConfig
from toto.tasks.config import TASKS, ProbeBankConfig
from toto.tasks.probe_bank import (
    FrozenNorm,
    LabelledFeatures,
    LayerFeatures,
    ProbeBank,
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


def published_norm():
    """BatchNorm as MAE (main_linprobe.py) and AIM (AttentionPoolingClassifier) build it.

    Its running estimates are cumulative here; what they are matters after training alone.
    """
    return nn.BatchNorm1d(D, eps=1e-6, momentum=None, affine=False)


def plain_pooled(head, x_BLD, norm, where):
    """The published probes: norm(average(x)) of MAE, attention(norm(x)) of AIM."""
    if where == "pooled":
        return norm(head(x_BLD))
    return head(norm(x_BLD.flatten(0, 1)).view_as(x_BLD))


def plain_logits(probe, x_BLD, batch_norm):
    norm = published_norm() if batch_norm else nn.Identity()
    where = "pooled" if probe.head_config.label == "average" else "tokens"
    return probe.classifier(plain_pooled(probe.head, x_BLD, norm, where))


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


@pytest.mark.parametrize("config", [AverageConfig(), AttentionConfig(num_heads=2)])
def test_probes_are_the_published_ones_while_training_and_after(config):
    """Running estimates included: four batches of different sizes, then evaluation."""
    bank = bank_of(ProbeBankConfig(heads=(config,), learning_rates=(1e-3, 1e-2)), layers=(0,))
    where = "pooled" if config == AverageConfig() else "tokens"
    norm = published_norm()
    for size in (3, 5, 4, 2, None):
        bank.train(size is not None)
        norm.train(size is not None)
        x_BLD = tokens(seed=size or 9, batch=size or 6)
        labels_B = torch.arange(len(x_BLD)) % CLASSES
        scores_PBC = bank.scores(LabelledFeatures({0: describe(x_BLD)}, labels_B))
        pooled_BD = plain_pooled(bank.members()[0].head, x_BLD, norm, where)
        for probe, scores_BC in zip(bank.members(), scores_PBC, strict=True):
            want_BC = probe.classifier(pooled_BD).softmax(-1)
            torch.testing.assert_close(scores_BC, want_BC, atol=1e-4, rtol=1e-4)


def test_what_an_average_probe_classifies_has_mean_0_and_deviation_1():
    """Of a norm over all tokens the deviation would be that of means: 1/√7 of it here."""
    bank = bank_of(ProbeBankConfig(heads=("average",)), layers=(0,))
    x_BLD = tokens(batch=64)
    with torch.no_grad():
        for probe in bank.members():
            probe.classifier.weight.zero_()
            probe.classifier.weight[0, 0] = 1.0
            probe.classifier.bias.zero_()
        scores_PBC = bank.scores(LabelledFeatures({0: describe(x_BLD)}, torch.zeros(64).long()))
    first_B = (scores_PBC[0, :, 0] / scores_PBC[0, :, 1]).log()
    assert first_B.mean().item() == pytest.approx(0, abs=1e-4)
    assert first_B.std(correction=0).item() == pytest.approx(1, abs=1e-3)


class GainedMaxConfig(HeadConfig):
    """A user's head that asks for the norm behind it."""

    normalises = "pooled"

    def num_params(self, width):
        return width

    def build(self, width):
        return GainedMax()


class GainedMax(Head):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(L, 1))

    def forward(self, features_BLD, valid_BL=None):
        return (features_BLD * self.gain).amax(1)


def test_a_users_head_is_normalised_behind_it_each_probe_on_its_own():
    """With parameters the probes of a group pool differently, and gradients pass the norm."""
    config = ProbeBankConfig(
        heads=("average", GainedMaxConfig(), "attention"), learning_rates=(0.1,), seeds=(0, 1)
    )
    bank, batch = bank_of(config), batch_of(0, 2)
    bank(batch).loss.backward()
    for probe in bank.members()[2:4]:
        pooled_BD = published_norm()(probe.head(batch.layers[0].tokens_BLD))
        loss = nn.functional.cross_entropy(probe.classifier(pooled_BD), batch.label_B)
        want = torch.autograd.grad(loss, list(probe.parameters()))
        got = [p.grad for p in probe.parameters()]
        torch.testing.assert_close(got, list(want), atol=1e-4, rtol=1e-4)


def test_a_lone_sample_is_normalised_by_the_running_estimates():
    """The last batch of an epoch may be one sample, which has no variance of its own."""
    norm = FrozenNorm(1, 1, D)
    first_1BD = tokens()[:, 0][None]
    mean, var = first_1BD.mean(1, keepdim=True), first_1BD.var(1, correction=0, keepdim=True)
    norm(mean, var, B)
    shift, scale = norm(torch.full((1, 1, D), 9.0), torch.zeros(1, 1, D), 1)
    torch.testing.assert_close(shift, mean)
    torch.testing.assert_close(scale, (var * B / (B - 1) + norm.eps).rsqrt())
    assert norm.batches == 1


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
