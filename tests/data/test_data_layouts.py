"""Tiny trees laid out as the datasets of the field are."""

import io
import json
import tarfile

import pytest
from toy_data import moving_frames, png, random_picture

from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.layouts import LAYOUTS, list_source
from toto.data.pack import pack, plan_pack
from toto.errors import DataError

PICTURE = png(random_picture(1))
VIDEO = encode_h264(moving_frames(3), fps=25)


def write(root, files):
    for name, payload in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload if isinstance(payload, bytes) else payload.encode())
    return root


def labels(listing):
    return {
        file.origin: listing.classes[file.label] if file.label >= 0 else None
        for file in listing.files
    }


def test_folders_by_class(tmp_path):
    write(tmp_path, {"train/a/1.png": PICTURE, "train/b/c/2.png": PICTURE, "val/a/3.png": PICTURE})
    listing = list_source("folder", tmp_path, "train")
    assert labels(listing) == {"a/1.png": "a", "b/c/2.png": "b"}
    with pytest.raises(DataError, match=r"no folder 'test' \(folders there: train, val\)"):
        list_source("folder", tmp_path, "test")


@pytest.mark.parametrize("root", [".", "ILSVRC/Data/CLS-LOC"])
def test_imagenet1k(tmp_path, root):
    write(
        tmp_path / root,
        {
            "train/n01440764/n01440764_10026.JPEG": PICTURE,
            "train/n01443537/n01443537_2.JPEG": PICTURE,
            "val/n01440764/ILSVRC2012_val_00000293.JPEG": PICTURE,
        },
    )
    listing = list_source("imagenet1k", tmp_path)
    assert listing.classes == ("n01440764", "n01443537")
    assert labels(listing)["n01443537/n01443537_2.JPEG"] == "n01443537"
    assert listing.notes == (
        "2 of the 1,000 classes are there",
        "not packed: val; see --split",
    )
    assert len(list_source("imagenet1k", tmp_path, "val").files) == 1


def test_imagenet_without_synsets_is_refused(tmp_path):
    write(tmp_path, {"val/ILSVRC2012_val_00000293.JPEG": PICTURE})
    with pytest.raises(DataError, match="lies in no folder of a synset"):
        list_source("imagenet1k", tmp_path, "val")


def add(archive, name, payload):
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    archive.addfile(member, io.BytesIO(payload))


def make_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, payload in members:
            add(archive, name, payload)
    return path


def test_imagenet21k_as_a_tar_a_synset(tmp_path):
    pictures = {f"n0000447{c}_{n}": png(random_picture(c * 10 + n)) for c in (5, 6) for n in (1, 2)}
    for synset in ("n00004475", "n00004476"):
        members = [(f"{k}.JPEG", v) for k, v in pictures.items() if k.startswith(synset)]
        make_tar(tmp_path / "src" / f"{synset}.tar", [*members, ("readme.txt", b"x")])
    listing = list_source("imagenet21k", tmp_path / "src")
    assert (listing.classes, listing.left) == (("n00004475", "n00004476"), {".txt": 2})
    pack(plan_pack(tmp_path / "src", "imagenet21k"), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    for i in range(4):
        stem = dataset.origin(i).rpartition("/")[2].removesuffix(".JPEG")
        assert bytes(dataset.read(i)) == pictures[stem]
        assert dataset.classes[dataset.label(i)] == stem[:9]


HEADER = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics_of_cvdf(tmp_path):
    write(
        tmp_path,
        {
            "train/abcdefghijk_000010_000020.mp4": VIDEO,
            "train/-_cdefghijk_000000_000010.mp4": VIDEO,
            "train/othernames1_000003_000013.mp4": VIDEO,
            "train/unlistedxxx_000003_000013.mp4": VIDEO,
            "val/valvalvalva_000000_000010.mp4": VIDEO,
            "annotations/train.csv": HEADER
            + "hula hooping,abcdefghijk,10,20,train\n"
            + '"archery, far",-_cdefghijk,0,10,train\n'
            + "archery,othernames1,2,12,train\n"
            + "archery,missingxxxx,2,12,train\n",
            "annotations/val.csv": HEADER + "zumba,valvalvalva,0,10,val\n",
        },
    )
    listing = list_source("kinetics400", tmp_path)
    assert listing.classes == ("archery", "archery, far", "hula hooping", "zumba")
    assert labels(listing) == {
        "abcdefghijk_000010_000020.mp4": "hula hooping",
        "-_cdefghijk_000000_000010.mp4": "archery, far",
        "othernames1_000003_000013.mp4": "archery",
        "unlistedxxx_000003_000013.mp4": None,
    }
    notes = "\n".join(listing.notes)
    assert "1 of the 4 in train.csv are missing, such as missingxxxx_000002_000012" in notes
    assert "1 file not in train.csv, such as unlistedxxx_000003_000013; packed too" in notes
    assert "1 clip without a label, such as unlistedxxx_000003_000013.mp4" in notes
    assert "4 of the 400 classes are in the annotations" in notes
    assert list_source("kinetics400", tmp_path, "val").classes == listing.classes


def test_kinetics_rows_and_files_that_contradict_each_other_are_named(tmp_path):
    rows = "hula,abcdefghijk,10,20,train\nzumba,abcdefghijk,10,20,train\n"
    write(
        tmp_path,
        {
            "train/abcdefghijk_000010_000020.mp4": VIDEO,
            "train/abcdefghijk_000010_000020.webm": VIDEO,
            "annotations/train.csv": "\ufeff" + HEADER + rows,
            "annotations/._train.csv": HEADER + "x,y,1,2,train\n",
        },
    )
    listing = list_source("kinetics400", tmp_path)
    assert set(labels(listing).values()) == {"hula"}
    assert listing.classes == ("hula", "zumba")
    clip = "abcdefghijk_000010_000020"
    assert listing.notes[0] == f"names with several files: 1, such as {clip}; all are packed"
    assert f"clips with several classes in train.csv: 1, such as {clip}" in listing.notes[1]
    write(tmp_path, {"train.csv": HEADER + rows.partition("\n")[0]})
    with pytest.raises(DataError, match=r"annotations/train\.csv and .*train\.csv differ"):
        list_source("kinetics400", tmp_path)


def test_kinetics600_prefers_the_txt(tmp_path):
    write(
        tmp_path,
        {
            "train/abcdefghijk_000010_000020.mp4": VIDEO,
            "annotations/train.csv": HEADER,
            "annotations/train.txt": "archery,abcdefghijk,10,20,train\n",
            "annotations/readme.txt": "of no clips",
        },
    )
    assert labels(list_source("kinetics600", tmp_path)) == {
        "abcdefghijk_000010_000020.mp4": "archery"
    }


def test_kinetics_in_class_folders_and_with_a_list_of_files(tmp_path):
    write(
        tmp_path,
        {
            "hula/kinetics-val_x_2.mp4": VIDEO,
            "y.mp4": VIDEO,
            "labels.csv": "file,label\nkinetics-val_x_2.mp4,hula\ny.mp4,\n",
        },
    )
    listing = list_source("kinetics700", tmp_path)
    assert labels(listing) == {"hula/kinetics-val_x_2.mp4": "hula", "y.mp4": None}
    assert "1 clip without a label, such as y.mp4" in listing.notes


def test_kinetics_without_annotations_is_refused(tmp_path):
    write(tmp_path, {"train/a.mp4": VIDEO})
    with pytest.raises(DataError, match=r"no annotations for .*train"):
        list_source("kinetics400", tmp_path)


def test_a_csv_of_other_things_is_passed_over(tmp_path):
    endless = "x" * 200_000
    files = {"train/a.mp4": VIDEO, "a.csv": HEADER.replace("id", "") + endless, "b.csv": endless}
    write(tmp_path, files | {"train.csv": "file,label\na.mp4,hula\n"})
    assert labels(list_source("kinetics400", tmp_path)) == {"a.mp4": "hula"}
    write(tmp_path, {"train.csv": "file,label\na.mp4,hula\n" + endless})
    with pytest.raises(DataError, match=r"train\.csv: field larger than .* Take CVDF's csv"):
        list_source("kinetics400", tmp_path)


def test_a_row_that_is_no_clip_is_named(tmp_path):
    write(tmp_path, {"a.mp4": VIDEO, "train.csv": HEADER + "a,b,soon,later,train\n"})
    with pytest.raises(DataError, match=r"train\.csv, row 2"):
        list_source("kinetics400", tmp_path)


def test_ego4d(tmp_path):
    write(
        tmp_path,
        {
            "v2/full_scale/aaa.mp4": VIDEO,
            "v2/full_scale/extra.mp4": VIDEO,
            "v2/full_scale/manifest.csv": "video_uid,s3_path\naaa,s3://x\nbbb,s3://y\n",
            "ego4d.json": json.dumps({"videos": [{"video_uid": "aaa"}]}),
        },
    )
    listing = list_source("ego4d", tmp_path)
    assert sorted(file.origin for file in listing.files) == ["aaa.mp4", "extra.mp4"]
    assert listing.classes == ()
    assert "1 of the 2 in" in listing.notes[0]
    assert "missing, such as bbb" in listing.notes[0]
    assert "not in" in listing.notes[1]
    write(tmp_path, {"v2/video_540ss/aaa.mp4": VIDEO})
    with pytest.raises(DataError, match="--split full_scale or --split video_540ss"):
        list_source("ego4d", tmp_path)
    assert len(list_source("ego4d", tmp_path, "video_540ss").files) == 1


def test_howto100m(tmp_path):
    write(
        tmp_path,
        {
            "videos/abc.webm": VIDEO,
            "HowTo100M_v1.csv": "video_id,category_1,rank,task_id\nabc,a,1,2\nx,a,1,2\n",
        },
    )
    listing = list_source("howto100m", tmp_path / "videos")
    assert [file.origin for file in listing.files] == ["abc.webm"]
    assert "1 of the 2 in" in listing.notes[0]
    (tmp_path / "HowTo100M_v1.csv").unlink()
    assert "is not known" in list_source("howto100m", tmp_path / "videos").notes[0]


def test_an_unknown_layout_lists_those_known(tmp_path):
    with pytest.raises(DataError, match=r"--as kinetics: unknown\. toto knows folder, imagenet1k"):
        list_source("kinetics", tmp_path)
    assert "howto100m" in LAYOUTS


def img2dataset_tar(path, shard, count):
    members = []
    for n in range(count):
        key = f"{shard:05d}{n:04d}"
        members += [
            (f"{key}.jpg", png(random_picture(shard * 10 + n))),
            (f"{key}.json", b'{"caption": "x"}'),
            (f"{key}.txt", b"x"),
            (f"{key}.cls", str(n % 2).encode()),
        ]
    return make_tar(path, members)


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_of_img2dataset(tmp_path, workers):
    for shard in range(3):
        img2dataset_tar(tmp_path / f"src/{shard:05d}.tar", shard, 4)
    write(tmp_path / "src", {"00000.parquet": b"x", "00000_stats.json": b"{}"})
    plan = plan_pack(tmp_path / "src")
    calls = []
    report = pack(plan, tmp_path / "out", workers=workers, progress=lambda *c: calls.append(c))
    assert (report.kind, report.num_samples, report.num_shards) == ("images", 12, 3)
    assert calls[-1][0] == calls[-1][1]
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.classes == ("0", "1")
    for i in range(12):
        shard, n = divmod(i, 4)
        assert bytes(dataset.read(i)) == png(random_picture(shard * 10 + n))
        assert dataset.origin(i) == f"{shard:05d}.tar/{shard:05d}{n:04d}.jpg"
        assert dataset.label(i) == n % 2
    assert len({dataset.key(i) for i in range(12)}) == 12


def test_members_whose_names_are_not_utf_8(tmp_path):
    names = ("caf\udce9.jpg", "caf\udce8.txt")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            add(archive, name, PICTURE)
    report = pack(plan_pack(tmp_path / "x.tar"), tmp_path / "out", skip_broken=True)
    assert [file.path for file in report.skipped] == [r"x.tar/caf\xe8"]
    assert list(Dataset.open(tmp_path / "out").origins()) == [r"x.tar/caf\xe9.jpg"]
    (tmp_path / "src").mkdir()
    (tmp_path / "x.tar").rename(tmp_path / "src/n00004475.tar")
    listing = list_source("imagenet21k", tmp_path / "src")
    assert [file.origin for file in listing.files] == [r"n00004475/caf\xe9.jpg"]


def test_one_tar_of_video2dataset_with_keys_in_folders(tmp_path):
    members = [("a/b.c.json", b"{}"), ("a/b.mp4", VIDEO), ("a/d.mp4", VIDEO), ("e.txt", b"x")]
    plan = plan_pack(make_tar(tmp_path / "x.tar", members))
    report = pack(plan, tmp_path / "out", skip_broken=True)
    assert (report.kind, report.num_samples, report.num_frames) == ("videos", 2, 6)
    (skipped,) = report.skipped
    assert (skipped.path, skipped.reason) == ("x.tar/e", "no videos in this sample, only txt")


@pytest.mark.parametrize("size", [4608, 5000, 5120, 5200, 6000])
def test_a_tar_cut_short_is_named(tmp_path, size):
    path = img2dataset_tar(tmp_path / "src/00000.tar", 0, 4)
    path.write_bytes(path.read_bytes()[:size])
    plan = plan_pack(tmp_path / "src")
    with pytest.raises(DataError, match=r"00000\.tar: the tar is damaged"):
        pack(plan, tmp_path / "out")
    assert pack(plan, tmp_path / "out", skip_broken=True).num_samples >= 1


@pytest.mark.parametrize("label", ["cat", "-2", "10000000", "1_0"])
def test_labels_that_are_no_numbers_of_classes_are_refused(tmp_path, label):
    make_tar(tmp_path / "x.tar", [("a.png", PICTURE), ("a.cls", label.encode())])
    with pytest.raises(DataError, match=rf"a\.cls holds b'{label}', not the number"):
        pack(plan_pack(tmp_path / "x.tar"), tmp_path / "out")


def test_a_tar_of_other_things_is_refused(tmp_path):
    make_tar(tmp_path / "x.tar", [("a.txt", b"x")])
    with pytest.raises(DataError, match="no images and no videos that are WebDataset samples"):
        plan_pack(tmp_path / "x.tar")
