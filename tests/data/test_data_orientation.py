"""A dataset says whether its readers turn images and videos upright."""

import hashlib
import json

import numpy as np
import pytest
from test_data_images import with_orientation
from test_data_video_file import (
    encode_fragments,
    encode_vp8_with_hidden_frames,
    join_webm,
    with_matrix,
)
from toy_data import Codec, encode, moving_frames, random_picture

from toto.data.clip_files import read_picture_file, read_video_file
from toto.data.clips import read_clip
from toto.data.config import ClipConfig
from toto.data.decode import decode_image, iterate_video
from toto.data.doctor import changed_shards, examine
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.manifest import manifest_json, parse_manifest, read_manifest
from toto.data.pack import pack, pack_folder, plan_pack
from toto.data.stream import SourceStream
from toto.data.transforms import square
from toto.errors import DataError
from toto.jobs.doctor import examine_dataset
from toto.jobs.pack import pack_source

CLIP = ClipConfig(frames=2, stride=2, resolution=16)
MATRIX = (0, 1, -1, 0)


@pytest.fixture
def videos(tmp_path):
    """Two videos, of which one is turned."""
    folder = tmp_path / "videos"
    folder.mkdir()
    payload = encode_h264(moving_frames(9, 32, 64), fps=25)
    (folder / "plain.mp4").write_bytes(payload)
    (folder / "phone.mp4").write_bytes(with_matrix(payload, *MATRIX))
    return folder


@pytest.fixture
def images(tmp_path):
    """Two images, of which one is turned."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, orientation in (("plain.jpg", 1), ("phone.jpg", 6)):
        payload = with_orientation(random_picture(0, 24, 40), orientation, "JPEG")
        (folder / name).write_bytes(payload)
    return folder


def shapes(dataset):
    """The frames of each sample as a reader decodes them."""
    found = {}
    for sample in range(dataset.num_samples):
        payload, orientation = dataset.read(sample), dataset.orientation(sample)
        frame = (
            decode_image(payload, orientation)
            if dataset.kind == "images"
            else next(iterate_video(payload, orientation))
        )
        found[dataset.origin(sample)] = frame.shape[:2]
    return found


def test_packing_counts_what_is_turned_and_readers_turn_it(tmp_path, videos, images, capsys):
    options = {"layout": "folder", "split": None, "workers": 0, "skip_broken": False}
    options |= {"kind": None, "class_list": None}
    for source, name, shape in (
        (videos, "phone.mp4", (64, 32)),
        (images, "phone.jpg", (40, 24)),
    ):
        out, stored = tmp_path / f"{source.name}-out", tmp_path / f"{source.name}-stored"
        pack_source(source, out, **options, orientation="upright")
        said = capsys.readouterr().out
        assert "1 with an EXIF orientation or a display matrix: readers turn them upright" in said
        assert shapes(Dataset.open(out))[name] == shape
        pack_source(source, stored, **options, orientation="stored")
        assert "display matrix: readers ignore it" in capsys.readouterr().out
        assert shapes(Dataset.open(stored))[name] == shape[::-1]
        # The shards are the same bytes, and what is read is not.
        assert (out / "shard-00000.tar").read_bytes() == (stored / "shard-00000.tar").read_bytes()
        assert Dataset.open(out).fingerprint() != Dataset.open(stored).fingerprint()


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_stream_and_evaluation_read_what_the_dataset_says(tmp_path, videos, orientation):
    pack(plan_pack(videos), tmp_path / "out", orientation=orientation)
    dataset = Dataset.open(tmp_path / "out")
    sample = list(dataset.origins()).index("phone.mp4")
    frames = np.stack(list(iterate_video(dataset.read(sample), orientation)))
    wanted = square(frames[0:4:2], 16, crop_y=0.5, crop_x=0.5)
    assert np.array_equal(read_clip(dataset, sample, 0, CLIP), wanted)
    stream = SourceStream.in_order(dataset, CLIP)
    unit = stream.draw(np.arange(stream.num_units)).sample_N.tolist().index(sample)
    (sequence,) = stream.sequences([unit], source=0, positions=[0])
    assert np.array_equal(sequence.frames, wanted)


def test_an_older_dataset_is_read_as_before(tmp_path, videos):
    pack_folder(videos, tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    assert (manifest["format_version"], manifest["turned"]) == (3, 1)
    for name in ("orientation", "turned", "checksum"):
        del manifest[name]
    path.write_text(json.dumps(manifest | {"format_version": 2}))
    old = Dataset.open(tmp_path / "out")
    assert old.orientation(0) == "stored"
    assert set(shapes(old).values()) == {(32, 64)}
    # What version 2 hashed, so that a run on it resumes.
    assert read_manifest(tmp_path / "out").fingerprint() == fingerprint_of_version_2(manifest)
    with pytest.raises(DataError, match="format version 4, and this toto reads 2 and 3"):
        parse_manifest(json.dumps(manifest | {"format_version": 4}).encode(), "x")


def test_doctor_says_that_a_dataset_is_of_older_rules(tmp_path, images, capsys):
    pack_folder(images, tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    manifest = read_manifest(tmp_path / "out")
    for version, is_said in ((3, False), (2, True)):
        older = manifest.model_copy(update={"format_version": version})
        path.write_text(manifest_json(older))
        examine_dataset(
            tmp_path / "out", frames=1, stride=1, like=None, fix=False, listing=tmp_path / "list"
        )
        assert ("packed by an older toto" in capsys.readouterr().out) == is_said


def fingerprint_of_version_2(manifest):
    content = {name: manifest[name] for name in ("kind", "form", "classes", "tokens")}
    content["shards"] = [shard["sha256"] for shard in manifest["shards"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def test_images_packed_again_keep_their_fingerprint_unless_some_are_turned(tmp_path, images):
    (images / "phone.jpg").unlink()
    for orientation in ("upright", "stored"):
        pack(plan_pack(images), tmp_path / orientation, orientation=orientation)
    upright, stored = (Dataset.open(tmp_path / name) for name in ("upright", "stored"))
    manifest = json.loads((tmp_path / "upright/manifest.json").read_text())
    assert upright.manifest.fingerprint() == fingerprint_of_version_2(manifest)
    assert upright.fingerprint() == stored.fingerprint()


def test_joined_datasets_are_each_read_by_their_own_rule(tmp_path, videos):
    for orientation in ("upright", "stored"):
        pack(plan_pack(videos), tmp_path / orientation, orientation=orientation)
    parts = [Dataset.open(tmp_path / name) for name in ("upright", "stored")]
    joined = Dataset.join(parts)
    assert [joined.orientation(i) for i in range(4)] == ["upright"] * 2 + ["stored"] * 2
    assert joined.fingerprint() != Dataset.join([parts[1], parts[1]]).fingerprint()


def test_loose_files_are_turned_upright(videos, images):
    clip = read_video_file(videos / "phone.mp4", CLIP)
    frames = np.stack(list(iterate_video((videos / "phone.mp4").read_bytes())))
    assert np.array_equal(clip, square(frames[0:4:2], 16, crop_y=0.5, crop_x=0.5))
    image = decode_image((images / "phone.jpg").read_bytes())[None]
    wanted = square(image, 16, crop_y=0.5, crop_x=0.5)
    assert np.array_equal(read_picture_file(images / "phone.jpg", 16), wanted)


def test_a_prompt_that_names_other_files_is_refused(tmp_path):
    path = tmp_path / "prompt.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(DataError, match=r"prompt\.mp4: it is an ffconcat script.*refused"):
        read_video_file(path, CLIP)


def encode_two_sizes():
    codec = Codec("webm", "libvpx", (("deadline", "realtime"),))
    return join_webm(*(encode(moving_frames(6, *size), codec) for size in ((48, 64), (96, 128))))


def test_pack_and_doctor_judge_and_count_alike(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    fragments = encode_fragments()
    files = {
        "hidden.webm": encode_vp8_with_hidden_frames(),
        "sizes.webm": encode_two_sizes(),
        "cut.mp4": fragments[: fragments.rindex(b"mdat") + 40],
        "whole.mp4": fragments,
        "script.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
    }
    for name, payload in files.items():
        (folder / name).write_bytes(payload)
    with pytest.raises(DataError) as error:
        pack_folder(folder, tmp_path / "out")
    message = str(error.value)
    assert "3 files cannot be decoded" in message
    assert "size of its frames changes" in message
    assert "it is an ffconcat script" in message
    report = pack_folder(folder, tmp_path / "out", skip_broken=True)
    assert (report.num_samples, report.num_frames) == (2, 60)
    dataset = Dataset.open(tmp_path / "out")
    assert examine(dataset, CLIP, changed_shards(dataset)) == []
