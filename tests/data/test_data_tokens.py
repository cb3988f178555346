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
from toto.data.tokens import require_tokenizer, tokenize_dataset
from toto.data.transforms import CENTRE, square
from toto.errors import DataError

TOKENIZER = ToyTokenizerConfig().build()


def tokenize(dataset, out, *, tokenizer=TOKENIZER, resolution=32, batch=64):
    tokenize_dataset(dataset, out, tokenizer=tokenizer, resolution=resolution, batch=batch)
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
        (b"nonsense", 4, "2.mp4 .*no readable video"),
        (encode_h264(moving_frames(3), fps=25), 4, "2.mp4 .*3 of its 4 frames"),
    ],
)
def test_a_broken_sample_is_named_and_nothing_is_left(tmp_path, payload, frames, message):
    good = encode_h264(moving_frames(2), fps=25)
    samples = [(good, 2, -1), (good, 2, -1), (payload, frames, -1)]
    dataset = write_dataset(tmp_path / "v", samples, kind="videos", extension="mp4")
    with pytest.raises(DataError, match=message):
        tokenize(dataset, tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
