"""Where packing would have to choose between files, it refuses or counts, and says so."""

import io
import os
import tarfile
import unicodedata

import pytest
from toy_data import moving_frames, png, random_picture

from toto.data.class_names import differing_classes, read_class_names
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.layouts import list_source
from toto.data.pack import pack, pack_folder, plan_pack
from toto.errors import DataError

ONE, TWO = png(random_picture(1)), png(random_picture(2))
VIDEO = encode_h264(moving_frames(3), fps=25)


def write(root, *names, content=ONE):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def make_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, payload in members:
            member = tarfile.TarInfo(name)
            if isinstance(payload, str):
                member.type, member.linkname, payload = tarfile.LNKTYPE, payload, b""
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return path


def pack_tar(tmp_path, members, *, skip_broken=False, **choices):
    plan = plan_pack(make_tar(tmp_path / "x.tar", members), **choices)
    return pack(plan, tmp_path / "out", skip_broken=skip_broken)


BOTH = [("1.jpg", ONE), ("1.mp4", VIDEO), ("1.cls", b"0"), ("2.jpg", TWO), ("2.MP4", VIDEO)]


@pytest.mark.parametrize("members", [BOTH, [("0.jpg", ONE), *BOTH]])
def test_an_image_and_a_video_of_one_key_are_a_choice_of_the_user(tmp_path, members):
    with pytest.raises(DataError, match=r"key 1 has both an image and a video .*--kind images or"):
        pack_tar(tmp_path, members)
    report = pack_tar(tmp_path, members, kind="videos")
    assert (report.kind, report.num_samples) == ("videos", 2)
    assert report.left == {".jpg": len(members) - 3}


def test_what_a_tar_holds_besides_samples_is_counted(tmp_path):
    members = [
        ("a.jpg", ONE), ("a.txt", b"x"), ("a.json", b'{"label": 3}'), ("._a.jpg", b"x"),
        ("__MACOSX/._a.jpg", b"x"), ("./b.JPG", TWO), ("./b.json", b"{}"), ("./b.CLS", b"1"),
    ]  # fmt: skip
    report = pack_tar(tmp_path, members)
    assert (report.num_samples, report.classes) == (2, ("0", "1"))
    assert report.left == {".txt": 1, ".json": 2, "hidden file": 2}
    assert [Dataset.open(tmp_path / "out").label(i) for i in range(2)] == [-1, 1]


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("1.jpg", ONE), ("1.jpg", TWO)], r"2 images under one key \(1\.jpg, 1\.jpg\)"),
        ([("1.jpg", ONE), ("1.JPG", TWO)], r"2 images under one key \(1\.jpg, 1\.JPG\)"),
        ([("1.jpg", ONE), ("./1.jpg", TWO)], r"2 images under one key \(1\.jpg, 1\.jpg\)"),
        ([("1.jpg", ONE), ("1.png", TWO)], r"2 images under one key \(1\.jpg, 1\.png\)"),
        ([("1.jpg", ONE), ("1.cls", b"0"), ("1.CLS", b"1")], "2 labels under one key"),
        ([("1.jpg", ONE), ("2.jpg", TWO), ("1.jpg", ONE)], r"1\.jpg: the key was there before"),
        ([("1.jpg", ONE), ("2.jpg", TWO), ("1.cls", b"0")], r"1\.cls: the key was there before"),
        ([("2.jpg", ONE), ("1.jpg", "2.jpg")], "a link in the tar instead of a file"),
        ([("2.jpg", ONE), ("1.v2.jpg", TWO)], r"only v2\.jpg \(the first dot of a name ends"),
    ],
)
def test_a_key_that_leaves_a_choice_is_refused_and_left_out_by_name(tmp_path, members, fault):
    members = [("0.jpg", ONE), *members]
    with pytest.raises(DataError, match=fault):
        pack_tar(tmp_path, members)
    report = pack_tar(tmp_path, members, skip_broken=True)
    assert [file.path for file in report.skipped] == ["x.tar/1"]


def test_names_whose_key_ends_too_early_are_explained(tmp_path):
    make_tar(tmp_path / "x.TAR", [("a.v1.jpg", ONE), ("a.v2.jpg", TWO)])
    with pytest.raises(DataError, match=r"there is a\.v1\.jpg\)\. What follows the first dot"):
        plan_pack(tmp_path / "x.TAR")


def test_folders_inside_a_tar_are_no_labels_and_counted(tmp_path):
    members = [("train/cat/1.jpg", ONE), ("train/dog/2.jpg", TWO), ("train/dog/3.jpg", ONE)]
    report = pack_tar(tmp_path, members)
    assert report.classes == ()
    assert report.left == {"folder in a tar, whose name is no label": 2}


def test_a_tar_of_two_splits_is_refused(tmp_path):
    members = [("x/train/1.jpg", ONE), ("x/val/2.jpg", TWO), ("x/val/2.cls", b"0")]
    with pytest.raises(DataError, match=r"x\.tar holds the splits train and val, which would be"):
        pack_tar(tmp_path, members)
    assert pack_tar(tmp_path, members, classes=()).num_samples == 2


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (
            ["train", "val"],
            "toto pack {src}/train.tar OUT-train\n  toto pack {src}/val.tar OUT-val",
        ),
        (["in-train-000", "in-train-001", "in-val-000"], "Move the tars of each split into a"),
    ],
)
def test_tars_of_several_splits_are_refused(tmp_path, names, advice):
    source = tmp_path / "src"
    for name in names:
        make_tar(source / f"{name}.tar", [("1.jpg", ONE)])
    with pytest.raises(DataError, match="holds tars of the splits train and val") as caught:
        plan_pack(source)
    assert advice.format(src=source) in str(caught.value)
    assert plan_pack(source, classes=()).num_shards() == len(names)


def test_a_file_that_is_a_tar_by_name_alone_is_called_damaged(tmp_path):
    write(tmp_path / "src", "0.tar")
    with pytest.raises(DataError, match=r"0\.tar cannot be read as a tar \(.*\)\. Copy it again"):
        plan_pack(tmp_path / "src")


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    source = write(tmp_path / "src", "a/1.png", "b/1.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"src/b cannot be listed: Permission denied"):
        plan_pack(source)


def test_a_tar_next_to_unpacked_folders_is_refused(tmp_path):
    make_tar(tmp_path / "src/archive.tar", [("a.jpg", ONE)])
    write(tmp_path / "src", "cats/1.png", "dogs/1.png")
    with pytest.raises(DataError, match=r"archive\.tar\) and 2 files that are unpacked") as caught:
        plan_pack(tmp_path / "src")
    assert f"toto pack {tmp_path / 'src/archive.tar'} OUT" in str(caught.value)
    (tmp_path / "src/archive.tar").rename(tmp_path / "src/cats/archive.tar")
    assert pack_folder(tmp_path / "src", tmp_path / "out").left == {".tar": 1}


def test_hidden_tars_are_no_tars(tmp_path):
    make_tar(tmp_path / "src/0.tar", [("a.jpg", ONE)])
    write(tmp_path / "src", "._0.tar", content=b"\0" * 4096)
    write(tmp_path / "src/more", "1.tar")
    report = pack_folder(tmp_path / "src", tmp_path / "out")
    assert (report.num_shards, report.left) == (1, {"hidden file": 1, ".tar in a folder": 1})


def test_tars_in_folders_are_packed_folder_by_folder(tmp_path):
    for split in ("train", "val"):
        make_tar(tmp_path / f"src/{split}/0.tar", [("a.jpg", ONE)])
    with pytest.raises(DataError, match=f"toto pack {tmp_path / 'src/train'} OUT"):
        plan_pack(tmp_path / "src")
    plan = plan_pack(tmp_path / "src", split="val")
    assert pack(plan, tmp_path / "out").num_samples == 1


def test_files_that_are_no_tars_are_refused(tmp_path):
    write(tmp_path, "x.tar.gz")
    with pytest.raises(DataError, match=r"x\.tar\.gz is a file, and no \.tar\. Unpack it"):
        plan_pack(tmp_path / "x.tar.gz")


@pytest.mark.parametrize(
    ("names", "commands"),
    [
        (["Train/a/1.png", "validation/a/1.png"], ["Train", "validation --classes OUT-Train"]),
        (["train/1.png", "val/1.png", "test/1.png"], ["train", "val", "test"]),
        (["train/a/1.png"], ["train"]),
        (["val2017/1.png", "train2017/1.png"], ["train2017", "val2017"]),
        (["images-train/1.png", "testset_images/1.png"], ["images-train", "testset_images"]),
        (["train/a/1.png", "val/a/1.png", "extra/1.png"], ["train", "val --classes OUT-train"]),
    ],
)
def test_splits_are_refused_with_the_commands_to_type(tmp_path, names, commands):
    source = write(tmp_path / "src", *names)
    with pytest.raises(DataError, match=r"which would (be|become)") as caught:
        plan_pack(source)
    lines = str(caught.value).split("\n")[1:-1]
    assert lines == [
        f"  toto pack {source} OUT-{split.split()[0]} --split {split}" for split in commands
    ]
    assert list_source("folder", source, classes=()).classes == ()


def test_the_commands_do_not_name_a_split_twice(tmp_path):
    source = write(tmp_path / "src", "train/a/1.png", "validation/a/1.png")
    with pytest.raises(DataError) as caught:
        list_source("folder", source)
    refused = caught.value.for_output(tmp_path / "my-photos-val")
    out = tmp_path / "my-photos"
    assert str(refused).split("\n")[1:-1] == [
        f"  toto pack {source} {out}-train --split train",
        f"  toto pack {source} {out}-validation --split validation --classes {out}-train",
    ]


@pytest.mark.parametrize("folder", ["images", "cats"])
def test_splits_further_down_are_refused(tmp_path, folder):
    source = write(tmp_path / "src", f"{folder}/train/1.png", f"{folder}/val/2.png")
    write(source, *([] if folder == "images" else ["dogs/train/1.png"]))
    with pytest.raises(DataError, match=f"toto pack {source / folder} OUT-train --split train"):
        plan_pack(source)


def test_a_class_may_be_called_train(tmp_path):
    source = write(tmp_path / "src", "train/1.png", "plane/1.png", "test tube/test/1.png")
    assert list_source("folder", source).classes == ("plane", "test tube", "train")


def test_classes_that_differ_in_case_are_named_and_in_unicode_form_refused(tmp_path):
    source = write(tmp_path / "src", "cat/1.png", "Cat/1.png", "dog/._1.png", "dog/2.txt")
    notes = list_source("folder", source).notes
    assert notes == (
        "Cat and cat are two classes; their names differ in case alone",
        "folders without images, which become no classes: dog",
    )
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write(source, *(f"{form}/1.png" for form in forms))
    if len(os.listdir(source)) == 5:
        with pytest.raises(DataError, match="have the same name in two Unicode forms"):
            list_source("folder", source)


def test_a_validation_split_takes_the_classes_of_the_training_split(tmp_path):
    train = write(tmp_path / "train", *(f"{name}/1.png" for name in ("cat", "dog", "fox")))
    val = write(tmp_path / "val", "fox/1.png", "cat/1.png")
    pack_folder(train, tmp_path / "packed")
    classes = read_class_names(str(tmp_path / "packed"))
    plan = plan_pack(val, classes=classes)
    assert plan.notes == ("classes without a file here (1 of 3): dog",)
    pack(plan, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.classes == ("cat", "dog", "fox")
    found = {dataset.origin(i): dataset.label(i) for i in range(2)}
    assert found == {"cat/1.png": 0, "fox/1.png": 2}
    write(val, "wolf/1.png")
    with pytest.raises(DataError, match=r"wolf not among the 3 classes of --classes \(cat, dog"):
        plan_pack(val, classes=classes)
    flat = write(tmp_path / "flat", "1.png")
    with pytest.raises(DataError, match="has no labels: its files are in no folders"):
        plan_pack(flat, classes=classes)


def test_classes_are_matched_whatever_their_unicode_form(tmp_path):
    source = write(tmp_path / "src", f"{unicodedata.normalize('NFD', 'café')}/1.png")
    listing = list_source("folder", source, classes=("a", unicodedata.normalize("NFC", "café")))
    assert [file.label for file in listing.files] == [1]


def test_a_tar_takes_a_list_of_classes(tmp_path):
    members = [("1.jpg", ONE), ("1.cls", b"1")]
    assert pack_tar(tmp_path, members, classes=("cat", "dog", "fox")).classes[2] == "fox"
    with pytest.raises(DataError, match="not the number of a class, from 0 to 0"):
        pack(plan_pack(tmp_path / "x.tar", classes=("cat",)), tmp_path / "few")
    report = pack(plan_pack(tmp_path / "x.tar", classes=()), tmp_path / "none")
    assert (report.classes, report.left) == ((), {".cls": 1})


def test_a_class_list_is_a_text_file_or_a_dataset_with_labels(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffsea lion\r\none\u2028two\r\n".encode())
    assert read_class_names(str(path)) == ("sea lion", "one\u2028two")
    assert read_class_names("none") == ()
    path.write_text("a\nb\na\n")
    with pytest.raises(DataError, match="names a twice"):
        read_class_names(str(path))
    with pytest.raises(DataError, match="neither a packed dataset nor a text file"):
        read_class_names(str(tmp_path / "gone"))
    pack_folder(write(tmp_path / "src", "1.png"), tmp_path / "out")
    with pytest.raises(DataError, match="that dataset has no labels"):
        read_class_names(str(tmp_path / "out"))


def test_the_difference_of_two_class_lists_is_named():
    assert differing_classes(("a", "c"), ("a", "b")) == "has the classes c and lacks b"
    assert differing_classes(("b", "a"), ("a", "b")) == "has the same classes in another order"


def test_a_tar_that_another_follows_is_refused_and_left_out_by_name(tmp_path):
    first = make_tar(tmp_path / "x.tar", [("1.jpg", ONE)])
    second = make_tar(tmp_path / "y.tar", [("2.jpg", TWO)])
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"more follows the mark of its end, as after `cat a.tar"):
        pack(plan_pack(first), tmp_path / "out")


@pytest.mark.parametrize("fault", ["cut", "joined"])
def test_a_tar_of_a_synset_must_end_where_its_members_do(tmp_path, fault):
    tar = make_tar(tmp_path / "n01440764.tar", [("1.JPEG", ONE), ("2.JPEG", TWO)])
    whole = tar.read_bytes()
    tar.write_bytes(
        whole + whole if fault == "joined" else whole[: 2 * 512 + len(ONE) // 512 * 512]
    )
    with pytest.raises(DataError, match=r"n01440764\.tar: .*(cut short|more follows)"):
        plan_pack(tmp_path, "imagenet21k")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["trainA/1.jpg", "trainB/2.jpg", "testA/3.jpg"], "trainA and trainB and testA"),
        (["box_train/1.jpg", "box_test/2.jpg", "query/3.jpg"], "box_train and box_test"),
        (["TrainImages/1.jpg", "ValImages/2.jpg"], "TrainImages and ValImages"),
    ],
)
def test_names_that_differ_in_the_split_alone_are_splits(tmp_path, names, splits):
    write(tmp_path, *names)
    with pytest.raises(DataError, match=f"holds the splits {splits}, which would be packed"):
        plan_pack(tmp_path)


def test_names_that_differ_in_more_than_the_split_are_classes(tmp_path):
    write(tmp_path, "crash_test/1.jpg", "train_station/2.jpg")
    assert plan_pack(tmp_path).classes == ("crash_test", "train_station")


def test_splits_inside_of_classes_are_refused_for_all_of_them(tmp_path):
    write(tmp_path, *(f"{c}/{s}/{c}{s}.jpg" for c in ("cat", "dog") for s in ("train", "test")))
    with pytest.raises(DataError, match=r"several folders hold splits \(cat, dog; train and test"):
        plan_pack(tmp_path)


def test_choices_between_classes_are_printed_before_the_work(tmp_path):
    write(tmp_path / "a", "train/cat/1.jpg", "misc/cat/2.jpg")
    assert (
        "train is taken for a class; if it is a split, give --split train"
        in plan_pack(tmp_path / "a").notes
    )
    write(tmp_path / "b", "all/cat/1.jpg", "all/dog/2.jpg")
    (note,) = plan_pack(tmp_path / "b").notes
    assert note.startswith("all is the only class; to take its folders (cat, dog) as classes, give")
    assert plan_pack(tmp_path / "b" / "all").classes == ("cat", "dog")


def test_samples_without_a_label_are_counted(tmp_path):
    report = pack_tar(tmp_path, [("1.jpg", ONE), ("1.cls", b"0"), ("2.jpg", TWO)])
    assert (report.num_samples, report.unlabelled) == (2, 1)


@pytest.mark.parametrize("skip_broken", [False, True])
def test_nothing_is_left_of_a_packing_without_one_usable_file(tmp_path, skip_broken):
    write(tmp_path / "source", "1.jpg", content=b"no image")
    with pytest.raises(DataError, match="nothing to pack: 1 file cannot be decoded"):
        pack(plan_pack(tmp_path / "source"), tmp_path / "out", skip_broken=skip_broken)
    assert not list(tmp_path.glob(".out.p*"))
