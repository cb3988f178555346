from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from toy_clips import DEPTH, WIDTH, ToyModel, toy_clips

from toto.errors import DataError, UserError
from toto.evaluation.classification import _rate, _score, epoch_order, run_probes, train_bank
from toto.evaluation.feature_cache import FeatureCache, FeatureStore
from toto.evaluation.features import FeatureReader
from toto.heads.config import HEADS, AttentionConfig, HeadConfig
from toto.tasks.probe_bank import LabelledFeatures, LayerFeatures, Probe, ProbeBank
from toto.tasks.probe_settings import ProbeSettings

CLASSES = 3
SETTINGS = ProbeSettings(
    learning_rates=(3e-3, 3e-2),
    weight_decays=(0.0, 0.1),
    seeds=(0, 1),
    epochs=4,
    batch_size=16,
    feature_dtype="fp32",
)


def settings(**changes):
    return ProbeSettings(
        **{**SETTINGS.model_dump(exclude={"heads"}), "heads": SETTINGS.heads, **changes}
    )


def probe(train, validation, chosen=SETTINGS, model=None, **more):
    return run_probes(
        model or ToyModel(),
        nn.Identity(),
        train,
        validation,
        settings=chosen,
        num_classes=CLASSES,
        precision="fp32",
        **more,
    )


@pytest.fixture
def train():
    return toy_clips(40, CLASSES, seed=1)


@pytest.fixture
def validation():
    return toy_clips(30, CLASSES, seed=2)


def features_of(clips, layers):
    reader = FeatureReader(
        ToyModel(),
        nn.Identity(),
        clips,
        layers,
        CLASSES,
        "fp32",
        torch.float32,
        lambda samples: None,
    )
    return FeatureCache.read(reader, range(len(clips)), 8)


def plain_attention(head, x_BLD):
    key_BLD, value_BLD = x_BLD @ head.key.weight.T, x_BLD @ head.value.weight.T
    weights_BL = (key_BLD @ head.query / math.sqrt(WIDTH)).softmax(-1)
    return torch.einsum("bl,bld->bd", weights_BL, value_BLD)


def train_alone(probe, x_SLD, label_S, chosen):
    """One probe trained by the book: BatchNorm as published, plain pooling, its own optimizer."""
    norm = nn.BatchNorm1d(WIDTH, eps=1e-6, momentum=None, affine=False)
    matrices = [p for p in probe.parameters() if p.ndim > 1]
    vectors = [p for p in probe.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": probe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=probe.lr,
    )
    steps = chosen.epochs * math.ceil(len(label_S) / chosen.batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(chosen.epochs):
        order = torch.tensor(epoch_order(range(len(label_S)), chosen.data_seed, epoch))
        for rows in order.split(chosen.batch_size):
            x_BLD = x_SLD[rows]
            if isinstance(probe.head_config, AttentionConfig):  # AIM
                x_BLD = norm(x_BLD.flatten(0, 1)).view_as(x_BLD)
                pooled = plain_attention(probe.head, x_BLD)
            else:  # MAE
                pooled = norm(x_BLD.mean(1))
            optimizer.zero_grad()
            nn.functional.cross_entropy(probe.classifier(pooled), label_S[rows]).backward()
            optimizer.step()
            cosine.step()


def test_bank_equals_probes_trained_alone(train):
    layers = range(DEPTH + 1)
    bank = ProbeBank(SETTINGS, layers=layers, width=WIDTH, num_classes=CLASSES)
    train_bank(bank, features_of(train, layers), range(len(train)), SETTINGS, lambda samples: None)
    for trained in bank.members():
        alone = Probe(
            trained.layer, trained.head_config, trained.lr, trained.weight_decay, trained.seed,
            width=WIDTH, num_classes=CLASSES,
        )  # fmt: skip
        start = [p.detach().clone() for p in alone.parameters()]
        x_SLD = ToyModel().features(train.codes_STHW, None, [trained.layer])[trained.layer].detach()
        train_alone(alone, x_SLD, train.label_S, SETTINGS)
        got, want = list(trained.parameters()), list(alone.parameters())
        torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-4)
        assert not torch.allclose(start[-1], want[-1], atol=1e-3), "it learned something"


def test_rows_of_a_bank_are_those_of_smaller_banks(train, validation):
    rows = probe(train, validation).rows
    alone = settings(
        layers=(1,), heads=("attention",), learning_rates=(3e-2,), weight_decays=(0.1,), seeds=(1,)
    )
    (row,) = probe(train, validation, alone).rows
    (same,) = [
        one
        for one in rows
        if (one.layer, one.head, one.lr, one.weight_decay, one.seed)
        == (1, "attention", 3e-2, 0.1, 1)
    ]
    assert row.accuracy == same.accuracy
    assert row.loss == pytest.approx(same.loss, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_streamed_equals_cached(train, validation, dtype):
    cached = probe(train, validation, settings(feature_dtype=dtype))
    assert train.reads == 40 + 1, "each sample once, and one to count its tokens"
    streamed = probe(train, validation, settings(feature_dtype=dtype, cache_gb=0))
    assert train.reads == 41 + 40 * SETTINGS.epochs + 1
    for one, other in zip(cached.rows, streamed.rows, strict=True):
        assert (one.layer, one.head, one.lr) == (other.layer, other.head, other.lr)
        assert one.accuracy == other.accuracy
        assert one.loss == pytest.approx(other.loss, abs=1e-5)


def test_the_size_of_the_cache_decides_and_is_said(train, validation):
    needed = FeatureCache.bytes_needed(40, DEPTH + 1, 18, WIDTH, torch.float32)
    for budget, fits in ((needed, True), (needed - 1, False)):
        said = []
        train.reads = 0
        probe(train, validation, settings(cache_gb=budget / 1e9), say=said.append)
        assert (train.reads == 41) == fits
        assert len(said) == 2
        assert f"40 samples × 3 layers × 18 tokens take {needed / 1e9:.3g} GB" in said[1]
        assert ("more than cache_gb" in said[1]) != fits


def test_average_pooling_alone_caches_no_tokens(train, validation):
    said = []
    probe(train, validation, settings(heads=("average",)), say=said.append)
    needed = FeatureCache.bytes_needed(40, DEPTH + 1, 18, WIDTH, None)
    assert f"take {needed / 1e9:.3g} GB" in said[1]


def test_separable_features_reach_all_and_attention_finds_the_token():
    train, validation = toy_clips(400, CLASSES, seed=1), toy_clips(100, CLASSES, seed=2)
    chosen = settings(epochs=20, learning_rates=(3e-2,), weight_decays=(0.0,))
    results = probe(train, validation, chosen)
    assert results.best("attention").accuracy == 1.0
    assert results.best("attention").low > 0.95
    assert results.best("average").accuracy > 0.9


def test_random_labels_stay_near_chance():
    train = toy_clips(60, CLASSES, seed=1, separable=False)
    validation = toy_clips(400, CLASSES, seed=2, separable=False)
    for row in probe(train, validation).rows:
        assert row.chance == pytest.approx(1 / 3)
        assert abs(row.accuracy - row.chance) < 0.1


def test_the_same_digits_twice(train, validation):
    torch.manual_seed(0)
    first = probe(train, validation)
    torch.manual_seed(1)
    assert probe(train, validation) == first
    assert probe(train, validation, settings(data_seed=1)) != first
    assert probe(train, validation, settings(seeds=(2, 3))) != first


def test_layers_count_from_the_embedding_and_from_the_end(train, validation):
    every = probe(train, validation).rows
    assert sorted({row.layer for row in every}) == [0, 1, 2]
    some = probe(train, validation, settings(layers=(-1, 0, 2))).rows
    assert some == tuple(row for row in every if row.layer in (0, 2))


def test_a_layer_that_does_not_exist_is_refused(train, validation):
    with pytest.raises(UserError, match=r"layer 3 does not exist: there are 0\.\.2"):
        probe(train, validation, settings(layers=(3,)))


def test_max_samples_draws_from_all_classes_alike(train, validation):
    """A folder's samples are stored class by class: the first 20 would be of one class."""
    order = train.label_S.argsort(stable=True)
    train.codes_STHW, train.label_S = train.codes_STHW[order], train.label_S[order]
    drawn = []
    for data_seed in (0, 0, 1):
        train.reads, train.positions = 0, []
        results = probe(train, validation, settings(max_samples=20, data_seed=data_seed))
        assert results.train_samples == 20
        assert train.reads == 21
        drawn.append(train.positions[-20:])
    assert len(set(drawn[0])) == 20
    assert set(train.label_S[drawn[0]].tolist()) == set(range(CLASSES))
    assert max(drawn[0]) >= 20
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) != set(drawn[2])


def test_batches_of_one_sample_have_nothing_to_normalise_over(train, validation):
    alone = settings(batch_size=1, heads=("average", "attention"))
    with pytest.raises(UserError, match=r"batches of one sample: the pooled features of average"):
        probe(train, validation, alone)
    tokens_alone = settings(batch_size=1, epochs=1, heads=("attention",))
    assert probe(train, validation, tokens_alone).rows
    lone_last = settings(batch_size=13, epochs=1, heads=("average",))  # 40 = 3 × 13 + 1
    assert all(row.loss is not None for row in probe(train, validation, lone_last).rows)


@pytest.mark.parametrize("which", ["training", "validation"])
def test_empty_data_are_refused(train, validation, which):
    empty = toy_clips(0, CLASSES, seed=0)
    pair = (empty, validation) if which == "training" else (train, empty)
    with pytest.raises(DataError, match=f"the {which} data are empty"):
        probe(*pair)


def test_a_probe_that_diverges_is_named_and_harms_no_other(train, validation):
    sound = probe(train, validation, settings(learning_rates=(3e-3,)))
    both = probe(train, validation, settings(learning_rates=(3e-3, 1e30)))
    beside = [row for row in both.rows if row.lr == 3e-3]
    for one, other in zip(beside, sound.rows, strict=True):
        assert one.accuracy == other.accuracy
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
    assert any(row.loss is None for row in both.rows)


def test_a_users_head_is_probed_by_its_name_and_options(train, validation):
    @HEADS.register("test_last_frame")
    class LastConfig(HeadConfig):
        normalises = "pooled"
        tokens: int = 4

        def num_params(self, width):
            return 0

        def build(self, width):
            return LastTokens(self.tokens)

    class LastTokens(nn.Module):
        def __init__(self, tokens):
            super().__init__()
            self.tokens = tokens

        def forward(self, features_BLD, valid_BL=None):
            return features_BLD[:, -self.tokens :].mean(1)

    heads = ({"name": "test_last_frame", "tokens": 18}, "test_last_frame", "average")
    results = probe(train, validation, settings(heads=heads))
    assert results.heads == ["test_last_frame(tokens=18)", "test_last_frame", "average"]
    by_head = [[r for r in results.rows if r.head == head] for head in results.heads]
    for whole, average in zip(by_head[0], by_head[2], strict=True):
        assert whole.loss == pytest.approx(average.loss, abs=2e-2), "18 tokens are all tokens"


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_progress_counts_up_to_its_total(train, validation, cache_gb):
    seen = []
    probe(train, validation, settings(cache_gb=cache_gb), progress=lambda *at: seen.append(at))
    total = seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == total
    assert {whole for _, whole in seen} == {total}


def test_epochs_visit_every_sample_once_in_an_order_of_their_own():
    orders = [epoch_order(range(5, 45), 0, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(5, 45)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(range(5, 45), 0, 1) == orders[1]
    assert epoch_order(range(5, 45), 1, 1) != orders[1]


def test_augmented_samples_are_read_anew_in_each_epoch(train, validation):
    train.shift = 5
    chosen = settings(augmentation="random_resized_crop_flip")
    said = []
    moved = probe(train, validation, chosen, say=said.append)
    assert train.reads == 1 + 40 * SETTINGS.epochs
    assert train.draws == [0] + [epoch for epoch in range(SETTINGS.epochs) for _ in range(40)]
    assert "augmentation: the model reads the data in every epoch, 4 in all" in said[1]
    assert moved != probe(train, validation, SETTINGS), "draws differ"


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_is_augmented_is_not_cached(cache):
    with pytest.raises(ValidationError, match="reads each sample anew in each epoch"):
        settings(augmentation="random_resized_crop_flip", cache=cache)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_that_is_asked_for_and_does_not_fit_is_refused(train, validation, cache):
    with pytest.raises(UserError, match=rf"more than cache_gb 1e-06, and cache: {cache} is asked"):
        probe(train, validation, settings(cache=cache, cache_gb=1e-6))


def test_features_on_the_disk_are_taken_again_unless_something_differs(train, validation, tmp_path):
    store = FeatureStore(tmp_path / "features", {"model": "a"})
    first = probe(train, validation, settings(cache="disk"), store=store)
    read = train.reads
    said = []
    assert probe(train, validation, settings(cache="disk"), store=store, say=said.append) == first
    assert train.reads == read + 1, "one sample to count its tokens"
    assert "taken from" in said[1]
    assert first == probe(train, validation)
    for other, changes in (
        (FeatureStore(store.folder, {"model": "b"}), {}),
        (store, {"layers": (0, 1)}),
        (store, {"feature_dtype": "bf16"}),
        (store, {"max_samples": 30}),
    ):
        files = len(list(store.folder.iterdir()))
        probe(train, validation, settings(cache="disk", **changes), store=other)
        assert len(list(store.folder.iterdir())) == files + 1


def test_damaged_features_on_the_disk_are_named(train, validation, tmp_path):
    store = FeatureStore(tmp_path, {})
    probe(train, validation, settings(cache="disk"), store=store)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged .* Remove it and probe again"):
        probe(train, validation, settings(cache="disk"), store=store)


def test_scores_of_views_are_averaged(train, validation):
    validation.shift = 3
    chosen = settings(test_clips=2, test_crops=3, layers=(1,), heads=("average",), seeds=(0,))
    results = probe(train, validation, chosen)
    assert validation.draws == [view for view in range(6) for _ in range(30)]
    bank = ProbeBank(chosen, layers=(1,), width=WIDTH, num_classes=CLASSES)
    train_bank(bank, features_of(train, (1,)), range(40), chosen, lambda samples: None)
    bank.eval()
    reader = FeatureReader(
        ToyModel(), nn.Identity(), validation, (1,), CLASSES, "fp32", None, lambda samples: None
    )
    total = 0
    for view in range(6):
        (batch,) = reader.batches(range(30), 30, view)
        norm = bank.pooled_norms["1_0"]
        x_BD = (batch.layers[1].mean_BD - norm.mean[0]) * (norm.var[0] + norm.eps).rsqrt()
        total = total + torch.stack([p.classifier(x_BD).softmax(-1) for p in bank.members()])
    hits = (total.argmax(-1) == validation.label_S).double().mean(1)
    assert [row.accuracy for row in results.rows] == pytest.approx(hits.tolist())


class Views:
    """Features of one sample that are its logits, other ones in each view."""

    def __init__(self, logits_VC):
        self.logits_VC = torch.tensor(logits_VC)

    def batches(self, order, size, draw=0):
        mean_BD = self.logits_VC[draw][None]
        features = LayerFeatures(mean_BD, torch.zeros_like(mean_BD), 1)
        yield LabelledFeatures({0: features}, torch.tensor([1]))


def test_probabilities_are_averaged_over_views_not_logits():
    """One view is sure of class 0, two lean to class 1: logits would give 0, SlowFast gives 1."""
    config = settings(
        heads=("average",), learning_rates=(1,), weight_decays=(0,), seeds=(0,), batch_norm=False
    )
    bank = ProbeBank(config, layers=(0,), width=2, num_classes=2)
    with torch.no_grad():
        bank.members()[0].classifier.weight.copy_(torch.eye(2))
    views = [[10.0, 0.0], [0.0, 2.0], [0.0, 2.0]]
    assert torch.tensor(views).mean(0).argmax() == 0, "the data can tell"
    assert _score(bank, Views(views), [0], views=3, size=1).total.tolist() == [1.0]


def test_the_rate_rises_from_0_and_falls_to_0():
    chosen = settings(epochs=10, warmup_epochs=2)
    rates = [_rate(epoch, chosen) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])
    with pytest.raises(ValidationError, match="warmup_epochs 10 of 10 epochs leave none"):
        settings(epochs=10, warmup_epochs=10)


def test_batches_that_cut_shared_sequences_are_refused(train, validation):
    uncached = settings(cache="none", batch_size=10, epochs=1)
    with pytest.raises(UserError, match="each batch of 10 would cut one short"):
        probe(train, validation, uncached, context=4)
    probe(train, validation, settings(batch_size=10, epochs=1), context=4)


def test_packed_pictures_are_read_in_an_order_without_their_classes(train, validation):
    """All samples of a class stand together in a folder: as neighbours they would tell it."""
    train.codes_STHW, validation.codes_STHW = train.codes_STHW[:, :1], validation.codes_STHW[:, :1]
    model = Watched()
    probe(train, validation, model=model, context=4)
    first = model.frames[0]
    assert first.shape[1] == 4
    in_order = train.codes_STHW[: first.shape[:2].numel()].view_as(first)
    assert not torch.equal(first, in_order)
    given = torch.cat([frames.flatten(0, 1) for frames in model.frames])
    for clips in (train, validation):
        for picture in clips.codes_STHW[:, 0]:
            assert (given == picture).all(-1).all(-1).any()


class Watched(ToyModel):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.frames = []

    def features(self, frames, is_image_B, layers):
        self.frames.append(frames)
        return super().features(frames, is_image_B, layers)


def test_lars_probes_are_those_of_larger_banks_too(train, validation):
    chosen = settings(optimizer="lars", learning_rates=(0.1, 1.0))
    rows = probe(train, validation, chosen).rows
    alone = settings(
        optimizer="lars", layers=(2,), heads=("average",), learning_rates=(1.0,),
        weight_decays=(0.1,), seeds=(1,),
    )  # fmt: skip
    (row,) = probe(train, validation, alone).rows
    (same,) = [
        one
        for one in rows
        if (one.layer, one.head, one.lr, one.weight_decay, one.seed) == (2, "average", 1.0, 0.1, 1)
    ]
    assert row.loss == pytest.approx(same.loss, abs=1e-5)
    assert row.accuracy == same.accuracy
