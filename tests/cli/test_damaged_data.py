"""What is trained on or tokenized is compared with its checksums first."""

import shutil

import pytest
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

from toto.data import verification
from toto.data.index import Dataset
from toto.data.verification import ShardVerification

SHARD = "videos-train/shard-00000.tar"
MESSAGE = r"shard-00000.tar is not what was packed (its checksum differs)"


@pytest.fixture
def data(tiny_datasets, tmp_path):
    shutil.copytree(tiny_datasets, tmp_path / "data")
    return tmp_path / "data"


def overwrite(data):
    """Overwrite a sample of the training data as a failing disk would."""
    path = data / SHARD
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_does_not_begin_or_resume_on_damaged_shards(data, tmp_path):
    recipe = write_recipe(tmp_path, tiny_recipe(data, steps=2, baselines=False))
    overwrite(data)
    done = toto("train", recipe, cwd=tmp_path, code=2)
    assert MESSAGE in done.stderr
    assert not (tmp_path / "runs/tiny").exists()
    done = toto("train", recipe, "--set", "data.verify=off", cwd=tmp_path)
    assert "data.verify is off" in done.stdout


def test_damage_that_is_found_while_training_stops_a_run_that_is_saved(data, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, tiny_recipe(data, steps=200, baselines=False))
    monkeypatch.setattr(verification, "FOREGROUND_BYTES", 0)
    fault = Dataset.shard_fault
    looked = iter(range(100))

    def later(self, shard, *, stop):
        while not list((tmp_path / "runs/tiny").glob("checkpoints/step-*")):
            if stop():
                return None
        overwrite(data) if next(looked) == 0 else None
        return fault(self, shard, stop=stop)

    monkeypatch.setattr(Dataset, "shard_fault", later)
    done = toto("train", recipe, cwd=tmp_path, code=2)
    assert MESSAGE in done.stderr
    assert "The run stopped after step" in done.stderr
    monkeypatch.undo()
    done = toto("train", recipe, "--resume", cwd=tmp_path, code=2)
    assert MESSAGE in done.stderr


def test_tokens_of_damaged_data_are_not_stored(data, tmp_path):
    recipe = write_recipe(tmp_path, tiny_recipe(data))
    overwrite(data)
    done = toto("tokenize", "data/videos-train", "tokens", "--recipe", recipe, cwd=tmp_path, code=2)
    assert MESSAGE in done.stderr
    assert not (tmp_path / "tokens").exists()


def test_ranks_share_the_shards(data):
    datasets = [Dataset.open(data / name) for name in ("videos-train", "pictures", "videos-val")]
    shares = [ShardVerification(datasets, rank=rank, world=2) for rank in range(2)]
    assert [share.total for share in shares] == [2, 1]
    for share in shares:
        with share:
            assert share.done == share.total
            assert share.fault is None


def test_a_missing_shard_is_found_before_the_first_step(data):
    dataset = Dataset.open(data / "videos-train")
    (data / SHARD).unlink()
    with ShardVerification([dataset]) as verified:
        assert "No such file" in verified.fault
