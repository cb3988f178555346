import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_data import (
    ToyPatchConfig,
    ToyTokenizerConfig,
    moving_frames,
    picture_dataset,
    png,
    random_picture,
    video_dataset,
    write_dataset,
)

from toto.data.decode import iterate_video
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.manifest import TokenInfo
from toto.data.order import CENTRE
from toto.data.tokens import (
    Rank,
    ShardCoder,
    _device_of,
    _places,
    require_tokenizer,
    tokenize_dataset,
)
from toto.data.transforms import square
from toto.errors import DataError
from toto.jobs import sources

TOKENIZER = ToyTokenizerConfig().build()


def tokenize(dataset, out, *, tokenizer=TOKENIZER, resolution=32, batch=64, crops=1):
    tokenize_dataset(
        dataset, out, tokenizer=tokenizer, resolution=resolution, batch=batch, crops=crops
    )
    return Dataset.open(out)


def encode_plainly(frame):
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 255
    return TOKENIZER.encode(pixels).codes_BHW[0].numpy()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_frame_of_every_video_is_coded(tmp_path, batch):
    videos = video_dataset(tmp_path / "v", [5, 12, 1])
    tokens = tokenize(videos, tmp_path / "t", batch=batch)
    assert (tokens.kind, tokens.form, tokens.tokens.grid) == ("videos", "tokens", (2, 2))
    for sample in range(3):
        frames = square(
            np.stack(list(iterate_video(videos.read(sample)))), 32, crop_y=CENTRE, crop_x=CENTRE
        )
        assert tokens.frames(sample) == videos.frames(sample)
        codes = tokens.read_codes(sample, 0, tokens.frames(sample), 1)
        assert np.array_equal(codes, np.stack([encode_plainly(frame) for frame in frames]))


def test_pictures_keep_their_labels_keys_and_origins(tmp_path):
    pictures = write_dataset(
        tmp_path / "p",
        [(png(random_picture(n, 40, 64)), 1, n % 2) for n in range(5)],
        kind="images",
        extension="png",
    )
    tokens = tokenize(pictures, tmp_path / "t")
    assert tokens.kind == "images"
    assert tokens.classes == pictures.classes
    for sample in range(5):
        assert tokens.label(sample) == pictures.label(sample)
        assert tokens.key(sample) == pictures.key(sample)
        assert tokens.origin(sample) == pictures.origin(sample)
        frame = square(random_picture(sample, 40, 64)[None], 32, crop_y=CENTRE, crop_x=CENTRE)[0]
        assert np.array_equal(tokens.read_codes(sample, 0, 1, 1)[0], encode_plainly(frame))


def test_plain_numpy_reads_a_member(tmp_path):
    tokens = tokenize(video_dataset(tmp_path / "v", [6]), tmp_path / "t")
    (tmp_path / "x.npy").write_bytes(tokens.read(0))
    loaded = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert loaded.dtype == np.uint16
    assert np.array_equal(loaded, tokens.read_codes(0, 0, 6, 1))


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    tokens = tokenize(picture_dataset(tmp_path / "p", 2), tmp_path / "t")
    require_tokenizer(tokens, ToyTokenizerConfig().build())
    with pytest.raises(DataError, match=r"'shift': 0.*'shift': 1.*toto tokenize"):
        require_tokenizer(tokens, ToyTokenizerConfig(shift=1).build())


def test_raw_shards_suit_any_tokenizer(tmp_path):
    require_tokenizer(picture_dataset(tmp_path / "p", 2), TOKENIZER)


def test_pictures_go_where_the_tokenizer_is_even_if_it_saves_no_tensor():
    tokenizer = ToyTokenizerConfig().build()
    assert _device_of(tokenizer).type == "cpu"
    tokenizer.register_buffer("table", torch.zeros(2, device="meta"), persistent=False)
    assert _device_of(tokenizer).type == "meta"


def test_patches_are_refused(tmp_path):
    with pytest.raises(DataError, match="Choose a tokenizer with a codebook"):
        tokenize(
            picture_dataset(tmp_path / "p", 2), tmp_path / "t", tokenizer=ToyPatchConfig().build()
        )


def test_tokens_are_not_tokenized_again(tmp_path):
    tokens = tokenize(picture_dataset(tmp_path / "p", 2), tmp_path / "t")
    with pytest.raises(DataError, match="holds tokens already"):
        tokenize(tokens, tmp_path / "u")


def test_a_resolution_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match="20 px is no multiple of 16"):
        tokenize(picture_dataset(tmp_path / "p", 2), tmp_path / "t", resolution=20)


@pytest.mark.parametrize(
    ("payload", "frames", "message"),
    [
        (b"nonsense", 4, r"2.mp4 .*no readable video.*toto doctor .* --fix"),
        (encode_h264(moving_frames(3), fps=25), 4, "2.mp4 .*3 of its 4 frames"),
    ],
)
def test_a_broken_sample_is_named_and_no_dataset_is_left(tmp_path, payload, frames, message):
    good = encode_h264(moving_frames(2), fps=25)
    samples = [(good, 2, -1), (good, 2, -1), (payload, frames, -1)]
    dataset = write_dataset(tmp_path / "v", samples, kind="videos", extension="mp4")
    with pytest.raises(DataError, match=message):
        tokenize(dataset, tmp_path / "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".t.partial", "v"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_crops_are_the_centre_and_then_places_of_their_own(tmp_path):
    pictures = write_dataset(
        tmp_path / "p",
        [(png(random_picture(n, 32, 320)), 1, n) for n in range(3)],
        kind="images",
        extension="png",
    )
    one = tokenize(pictures, tmp_path / "one")
    four = tokenize(pictures, tmp_path / "four", crops=4)
    assert (one.tokens.crops, four.tokens.crops, four.num_samples) == (1, 4, 12)
    for sample in range(3):
        keys = [four.key(sample * 4 + crop) for crop in range(4)]
        assert keys == [f"{pictures.key(sample)}-crop{crop}" for crop in range(4)]
        assert {four.origin(sample * 4 + crop) for crop in range(4)} == {pictures.origin(sample)}
        codes = [four.read_codes(sample * 4 + crop, 0, 1, 1) for crop in range(4)]
        assert np.array_equal(codes[0], one.read_codes(sample, 0, 1, 1))
        assert len({code.tobytes() for code in codes}) == 4
        assert [four.label(sample * 4 + crop) for crop in range(4)] == [sample] * 4
    again = tokenize(pictures, tmp_path / "again", crops=4)
    assert contents(four.folder) == contents(again.folder)


def test_crops_lie_evenly_over_the_picture():
    places = np.array([_places(sample, 5)[1:] for sample in range(500)]).reshape(-1, 2)
    assert places.min() >= 0
    assert places.max() < 1
    assert np.abs(places.mean(0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.1
    assert len(np.unique(places)) == places.size


def test_crops_of_videos_are_refused(tmp_path):
    with pytest.raises(DataError, match="Leave out --crops"):
        tokenize(video_dataset(tmp_path / "v", [3]), tmp_path / "t", crops=2)


def test_excluded_samples_are_left_out(tmp_path):
    pictures = picture_dataset(tmp_path / "p", 7, shard_samples=3, broken={4})
    (tmp_path / "p/excluded.jsonl").write_text('{"sample": 4}\n{"sample": 6}\n')
    tokens = tokenize(Dataset.open(tmp_path / "p"), tmp_path / "t")
    kept = [0, 1, 2, 3, 5]
    assert [tokens.key(i) for i in range(5)] == [pictures.key(i) for i in kept]
    assert [tokens.origin(i) for i in range(5)] == [pictures.origin(i) for i in kept]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_ranks_share_the_shards_and_the_last_one_publishes(tmp_path, order):
    pictures = picture_dataset(tmp_path / "p", 23, shard_samples=3)
    plain = tokenize(pictures, tmp_path / "plain")
    for place, number in enumerate(order):
        report = tokenize_dataset(
            pictures,
            tmp_path / "t",
            tokenizer=TOKENIZER,
            resolution=32,
            rank=Rank(number, 3),
        )
        assert report.whole is (place == 2)
        assert (tmp_path / "t").exists() is report.whole
    assert report.num_samples == 23
    assert contents(tmp_path / "t") == contents(plain.folder)
    # One that begins when all is done finds it so.
    late = tokenize_dataset(
        pictures, tmp_path / "t", tokenizer=TOKENIZER, resolution=32, rank=Rank(1, 3)
    )
    assert late.whole


def test_tokens_of_another_dataset_are_no_success(tmp_path):
    pictures = picture_dataset(tmp_path / "p", 6, shard_samples=3)
    others = picture_dataset(tmp_path / "q", 6, shard_samples=3, broken=[5])
    made = tokenize(pictures, tmp_path / "t")
    assert len(made.manifest.made_from) == 64
    options = {"tokenizer": TOKENIZER, "resolution": 32, "rank": Rank(1, 2)}
    assert tokenize_dataset(pictures, tmp_path / "t", **options).whole
    with pytest.raises(DataError, match="exists already"):
        tokenize_dataset(others, tmp_path / "t", **options)
    plain = made.manifest.model_copy(update={"made_from": ""})
    assert plain.fingerprint() == made.manifest.fingerprint()


def test_the_tokens_of_a_shard_are_counted_from_its_column(tmp_path, monkeypatch):
    video_dataset(tmp_path / "v", [3, 5, 2, 4], shard_samples=3)
    (tmp_path / "v/excluded.jsonl").write_text('{"sample": 1}\n{"sample": 3}\n')
    videos = Dataset.open(tmp_path / "v")
    info = TokenInfo(tokenizer={}, fingerprint="", resolution=32, grid=(2, 2))
    monkeypatch.setattr(Dataset, "frames", None)
    coder = ShardCoder(videos, TOKENIZER, info, 4)
    assert [coder.num_tokens(shard) for shard in (0, 1)] == [(3 + 2) * 4, 0]


def test_fewer_ranks_go_on_where_more_were_lost(tmp_path):
    pictures = picture_dataset(tmp_path / "p", 23, shard_samples=3)
    plain = tokenize(pictures, tmp_path / "plain")
    options = {"tokenizer": TOKENIZER, "resolution": 32}
    assert not tokenize_dataset(pictures, tmp_path / "t", rank=Rank(1, 4), **options).whole
    notes = []
    assert tokenize_dataset(pictures, tmp_path / "t", note=notes.append, **options).whole
    assert "2 of 8 shards are finished" in notes[0]
    assert contents(tmp_path / "t") == contents(plain.folder)


def test_tokens_made_once_go_on_after_a_kill(tmp_path, capsys, monkeypatch):
    pictures = picture_dataset(tmp_path / "p", 12, shard_samples=3)

    def killed_at_8(label, unit):
        def progress(done, total):
            if done >= 8 * 4:
                raise KeyboardInterrupt

        return contextlib.nullcontext(progress)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "progress_bar", killed_at_8)
        with pytest.raises(KeyboardInterrupt):
            sources._tokenized(pictures, tmp_path / "tokens", 32, TOKENIZER)
    made = sources._tokenized(pictures, tmp_path / "tokens", 32, TOKENIZER)
    assert "2 of 4 shards are finished; going on" in capsys.readouterr().out
    assert contents(made.folder) == contents(tokenize(pictures, tmp_path / "plain").folder)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [made.folder.name]
    (tmp_path / "p/excluded.jsonl").write_text('{"sample": 4}\n')
    fewer = sources._tokenized(Dataset.open(tmp_path / "p"), tmp_path / "tokens", 32, TOKENIZER)
    assert (fewer.num_samples, fewer.path != made.path) == (11, True)


SCRIPT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from toy_data import ToyTokenizerConfig
from toto.data.index import Dataset
from toto.data.tokens import Rank, tokenize_dataset
rank = Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
slow = lambda done, total: time.sleep(0.002)
tokenize_dataset(Dataset.open(sys.argv[2]), __import__("pathlib").Path(sys.argv[3]),
                 tokenizer=ToyTokenizerConfig().build(), resolution=32, rank=rank, progress=slow)
"""


def start(tmp_path, rank, count):
    arguments = [Path(__file__).parent, tmp_path / "p", tmp_path / "t"]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.distributed
def test_killed_processes_are_gone_on_with_by_two(tmp_path):
    pictures = picture_dataset(tmp_path / "p", 300, shard_samples=5)
    plain = tokenize(pictures, tmp_path / "plain")
    parts = tmp_path / ".t.partial" / "parts"
    for attempt in range(2):
        process = start(tmp_path, attempt, 2)
        while process.poll() is None and len(list(parts.glob("*.json"))) < 4 * (attempt + 1):
            time.sleep(0.001)
        process.kill()
        assert process.wait() != 0
    assert not (tmp_path / "t").exists()
    pair = [start(tmp_path, rank, 2) for rank in range(2)]
    assert [process.wait() for process in pair] == [0, 0]
    assert contents(tmp_path / "t") == contents(plain.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "plain", "t"]
