import pytest
from toy_data import picture_dataset, png, random_picture, token_dataset, write_dataset

from toto.data.clips import LabelledDataset
from toto.data.config import ClipConfig
from toto.data.index import Dataset
from toto.errors import DataError

CLIP = ClipConfig(frames=4, stride=2, resolution=16)


def positions(labelled):
    batches = labelled.batches(range(len(labelled)), 2)
    return [sample for batch in batches for sample in batch.position_B.tolist()]


def test_excluded_and_unlabelled_samples_are_left_out(tmp_path):
    samples = [(png(random_picture(n)), 1, -1 if n == 4 else n % 2) for n in range(6)]
    write_dataset(tmp_path / "d", samples, kind="images", extension="png")
    (tmp_path / "d/excluded.jsonl").write_text('{"sample": 2}\n')
    labelled = LabelledDataset(Dataset.open(tmp_path / "d"), CLIP)
    assert positions(labelled) == [0, 1, 3, 5]


def test_a_dataset_without_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no labels"):
        LabelledDataset(token_dataset(tmp_path / "d", [20]), CLIP)
    assert len(LabelledDataset(picture_dataset(tmp_path / "p", 5), CLIP)) == 5
