import json
import os
import signal

import pytest
import webdataset
from toy_data import moving_frames, png, random_picture

from toto.data import pack as pack_module
from toto.data.check import check_file
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.layouts import list_source
from toto.data.pack import pack, pack_folder, plan_pack
from toto.data.plan import FilePlan, make_key
from toto.data.shards import DatasetWriter
from toto.errors import DataError


def write(root, files):
    for name, payload in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    return root


@pytest.fixture
def pictures(tmp_path):
    names = ["cats/a b.png", "cats/ünï cödé.PNG", "dogs/deep/er/x.y.png", "dogs/a b.png"]
    return write(tmp_path / "src", {name: png(random_picture(n)) for n, name in enumerate(names)})


def test_pictures_are_kept_byte_for_byte_with_labels_and_origins(tmp_path, pictures):
    report = pack_folder(pictures, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.kind, report.num_samples, report.classes) == ("images", 4, ("cats", "dogs"))
    assert dataset.classes == ("cats", "dogs")
    origins = [dataset.origin(i) for i in range(4)]
    assert len(set(origins)) == 4
    for i, origin in enumerate(origins):
        assert bytes(dataset.read(i)) == (pictures / origin).read_bytes()
        assert dataset.classes[dataset.label(i)] == origin.split("/")[0]
        assert dataset.key(i).startswith(f"{i:06d}_")


def test_webdataset_reads_packed_files_with_odd_names(tmp_path, pictures):
    pack_folder(pictures, tmp_path / "out")
    read = list(webdataset.WebDataset(str(tmp_path / "out/shard-00000.tar"), shardshuffle=False))
    assert len({sample["__key__"] for sample in read}) == 4
    assert all({"png", "cls"} <= set(sample) for sample in read)


def test_samples_are_not_ordered_by_class(tmp_path):
    files = {f"{name}/{n}.png": png(random_picture(n)) for name in "ab" for n in range(20)}
    pack_folder(write(tmp_path / "src", files), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    labels = [dataset.label(i) for i in range(40)]
    assert labels != sorted(labels)


def test_packing_twice_gives_equal_bytes(tmp_path, pictures):
    for name in ("a", "b"):
        pack_folder(pictures, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_file_next_to_folders_is_refused_unless_labels_are_dropped(tmp_path, pictures):
    write(pictures, {"top.png": png(random_picture(9))})
    with pytest.raises(
        DataError, match=r"files next to the folders \(cats, dogs\) would have no class: top\.png"
    ):
        pack_folder(pictures, tmp_path / "out")
    pack(plan_pack(pictures, classes=()), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.classes == ()
    assert [dataset.label(i) for i in range(5)] == [-1] * 5


def test_class_folders_whose_names_are_not_utf_8_are_told_apart(tmp_path):
    for number, name in enumerate((b"caf\xe8", b"caf\xe9", "café".encode())):
        try:
            (tmp_path / "src" / os.fsdecode(name)).mkdir(parents=True)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        (tmp_path / "src" / os.fsdecode(name) / "a.png").write_bytes(png(random_picture(number)))
    report = pack_folder(tmp_path / "src", tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert report.classes == dataset.classes == ("caf\\xe8", "caf\\xe9", "café")
    for i in range(3):
        assert dataset.classes[dataset.label(i)] == dataset.origin(i).split("/")[0]


def test_other_and_hidden_files_are_left_alone(tmp_path, pictures):
    names = ["labels.csv", "README", ".hidden/a.png", "cats/.b.png", "dogs/._a b.png"]
    names += ["__MACOSX/cats/a b.png", "@eaDir/a b.png", "cats/Thumbs.db", "dogs/x.tar"]
    write(pictures, dict.fromkeys(names, b"x"))
    (pictures / "cats/link").symlink_to(pictures / "dogs")
    os.mkfifo(pictures / "cats/pipe.png")
    report = pack_folder(pictures, tmp_path / "out")
    assert (report.num_samples, report.classes) == (4, ("cats", "dogs"))
    assert report.left == {
        ".csv": 1, "file without extension": 1, "hidden folder": 3, "hidden file": 2, ".db": 1,
        ".tar": 1, "link to a folder": 1, "pipe or device": 1,
    }  # fmt: skip


def test_videos_have_their_decoded_frames_counted(tmp_path):
    files = {f"{n}.mp4": encode_h264(moving_frames(n), fps=25) for n in (1, 5, 37)}
    report = pack_folder(write(tmp_path / "src", files), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.kind, report.num_frames) == ("videos", 43)
    assert {dataset.origin(i): dataset.frames(i) for i in range(3)} == {
        "1.mp4": 1,
        "5.mp4": 5,
        "37.mp4": 37,
    }


def test_pictures_and_videos_together_are_refused(tmp_path, pictures):
    write(pictures, {"cats/v.mp4": b""})
    with pytest.raises(DataError, match="Choose one: --kind images or --kind videos"):
        pack_folder(pictures, tmp_path / "out")
    report = pack(plan_pack(pictures, kind="images"), tmp_path / "out")
    assert (report.kind, report.num_samples, report.left) == ("images", 4, {".mp4": 1})
    (pictures / "cats/v.mp4").unlink()
    with pytest.raises(DataError, match=r"holds no videos \(there: 4 × \.png\)"):
        plan_pack(pictures, kind="videos")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no images and no videos \(there: 1 × \.txt\)"):
        pack_folder(write(tmp_path / "src", {"readme.txt": b""}), tmp_path / "out")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder at"):
        pack_folder(tmp_path / "none", tmp_path / "out")


def test_an_existing_dataset_is_not_overwritten(tmp_path, pictures):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        pack_folder(pictures, tmp_path / "out")


@pytest.fixture
def partly_broken(pictures):
    whole = png(random_picture(8, 40, 40))
    return write(pictures, {"cats/none.png": b"", "dogs/half.png": whole[: len(whole) // 2]})


def test_broken_pictures_are_named_and_nothing_is_left(tmp_path, partly_broken):
    with pytest.raises(DataError, match=r"2 files cannot be decoded.*--skip-broken") as caught:
        pack_folder(partly_broken, tmp_path / "out")
    assert "cats/none.png" in str(caught.value)
    assert "dogs/half.png" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "src"]


def test_skipped_pictures_are_named_in_the_manifest(tmp_path, partly_broken):
    report = pack_folder(partly_broken, tmp_path / "out", skip_broken=True)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {file["path"] for file in manifest["skipped"]} == {"cats/none.png", "dogs/half.png"}
    assert report.num_samples == Dataset.open(tmp_path / "out").num_samples == 4


def test_videos_cut_short_are_named(tmp_path):
    whole = encode_h264(moving_frames(20), fps=25)
    files = {"good.mp4": whole, "cut.mp4": whole[: len(whole) // 2]}
    with pytest.raises(DataError, match="1 file cannot be decoded") as caught:
        pack_folder(write(tmp_path / "src", files), tmp_path / "out")
    assert "cut.mp4" in str(caught.value)
    assert "good.mp4" not in str(caught.value)


def test_an_interrupted_pack_leaves_no_dataset(tmp_path, pictures):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_folder(pictures, tmp_path / "out", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "src"]
    assert not list((tmp_path / ".out.partial").rglob("*.tar"))
    pack_folder(pictures, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_progress_counts_the_files(tmp_path, pictures):
    calls = []
    pack_folder(
        pictures, tmp_path / "out", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_keys_are_plain_and_short():
    assert make_key(7, "café 2.final") == "000007_cafe_2_final"
    assert len(make_key(1, "x" * 300)) <= 80


@pytest.fixture
def many(tmp_path):
    files = {f"{'abc'[n % 3]}/{n}.png": png(random_picture(n, 9, 7 + n % 5)) for n in range(70)}
    files["a/broken.png"] = b"no picture"
    return write(tmp_path / "src", files)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_number_of_workers_does_not_show(tmp_path, many):
    plan = FilePlan(list_source("folder", many), max_shard_samples=16)
    for workers in (0, 1, 3):
        out = tmp_path / f"out{workers}"
        calls: list[int] = []
        count = lambda done, total, calls=calls: calls.append(done)  # noqa: E731
        pack(plan, out, workers=workers, skip_broken=True, progress=count)
        assert calls == list(range(1, 72))
        assert contents(out) == contents(tmp_path / "out0")
    assert len(Dataset.open(tmp_path / "out0").manifest.shards) == 5


def test_a_plan_cuts_shards_as_a_writer_would(tmp_path, many):
    (many / "a/broken.png").unlink()
    plan = FilePlan(list_source("folder", many), max_shard_bytes=9_000)
    pack(plan, tmp_path / "planned")
    planned = Dataset.open(tmp_path / "planned")
    with DatasetWriter(
        tmp_path / "written",
        kind="images",
        form="raw",
        classes=planned.classes,
        max_shard_bytes=9_000,
    ) as writer:
        for i, origin in enumerate(planned.origins()):
            payload = (many / origin).read_bytes()
            writer.add(planned.key(i), "png", payload, origin=origin, label=planned.label(i))
    assert contents(tmp_path / "planned") == contents(tmp_path / "written")
    assert len(planned.manifest.shards) > 5


def dies_over_number_13(kind, file):
    if file.stem == "13":
        os.kill(os.getpid(), signal.SIGSEGV)
    return check_file(kind, file)


def test_a_decoder_that_crashes_costs_its_file_alone(tmp_path, many, monkeypatch):
    monkeypatch.setattr(pack_module, "check_file", dies_over_number_13)
    with pytest.raises(DataError, match="2 files cannot be decoded") as caught:
        pack_folder(many, tmp_path / "out", workers=2)
    assert "b/13.png: the decoder crashed (signal 11)" in str(caught.value)
    report = pack_folder(many, tmp_path / "out", workers=2, skip_broken=True)
    assert {file.path for file in report.skipped} == {"b/13.png", "a/broken.png"}
    assert report.num_samples == 69


def test_a_file_that_changed_is_another_plan(tmp_path, many):
    with pytest.raises(DataError, match="1 file cannot"):
        pack_folder(many, tmp_path / "out")
    (many / "a/broken.png").write_bytes(png(random_picture(1)))
    notes = []
    pack(plan_pack(many), tmp_path / "out", note=notes.append)
    assert "is of other files or options" in notes[0]
    assert Dataset.open(tmp_path / "out").num_samples == 71


def test_a_link_to_nothing_is_a_broken_file(tmp_path, pictures):
    (pictures / "cats/gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cats/gone\.png: .*No such file"):
        pack_folder(pictures, tmp_path / "out")
