from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_davis import FRAMES, HEIGHT, WIDTH, make_davis

from toto.data import davis
from toto.data.davis import (
    PALETTE,
    open_davis,
    read_mask,
    require_equal_sizes,
    write_mask,
)
from toto.errors import DataError, UserError


def refused(error: type[Exception], text: str):
    return pytest.raises(error, match=re.escape(text))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_davis(tmp_path / "davis")


def test_the_listed_sequences_are_read(root):
    one, two = open_davis(root)
    assert (one.name, two.name, len(two)) == ("one", "two", FRAMES)
    assert (one.num_objects(), two.num_objects()) == (1, 2)
    assert two.picture(2).shape == (HEIGHT, WIDTH, 3)
    assert read_mask(two.annotations[1])[-1, -1] == 255
    truth_HW = two.truth(1)
    assert truth_HW[-1, -1] == 0, "void counts as background"
    assert (truth_HW[30, 16:40] == 2).all()


def test_a_sequence_that_is_named_twice_is_read_once(root):
    assert [one.name for one in open_davis(root, ["two", "one", "two"])] == ["two", "one"]


@pytest.mark.parametrize("name", ["../elsewhere", "..", "a/b", ""])
def test_a_name_cannot_lead_elsewhere(root, name):
    (root / davis.NAMES).write_text(name or "one")
    with refused(UserError, f"sequence {name!r} is not the name of a folder in"):
        open_davis(root, [] if name else [name])


def test_names_choose_sequences_without_the_list(root):
    (root / davis.NAMES).unlink()
    assert [one.name for one in open_davis(root, ["two"])] == ["two"]


def test_masks_come_back_with_the_colours_of_davis(tmp_path):
    ids_HW = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_mask(tmp_path / "seq/00000.png", ids_HW)
    assert np.array_equal(read_mask(tmp_path / "seq/00000.png"), ids_HW)
    with Image.open(tmp_path / "seq/00000.png") as image:
        colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
    # PASCAL VOC: background black, then dark red, green, olive, blue, purple, teal, grey, ...
    assert colors[:9].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128],
        [0, 128, 128], [128, 128, 128], [64, 0, 0],
    ]  # fmt: skip
    assert PALETTE[255].tolist() == [224, 224, 192]


def test_another_folder_is_refused(tmp_path):
    with refused(DataError, f"{tmp_path} holds no JPEGImages/480p. Give the folder of DAVIS 2017"):
        open_davis(tmp_path)


def test_a_missing_list_is_refused(root):
    (root / davis.NAMES).unlink()
    with refused(DataError, "which lists the sequences. Put it back, or name them with"):
        open_davis(root)


def test_an_unknown_sequence_names_those_there_are(root):
    with refused(UserError, "sequence third: no frames in"):
        open_davis(root, ["third"])
    with refused(UserError, "There are one, two"):
        open_davis(root, ["third"])


def test_a_frame_without_annotation_is_named(root):
    (root / davis.ANNOTATIONS / "two/00002.png").unlink()
    with refused(DataError, "two/00002.png is missing: every frame needs its annotation"):
        open_davis(root)


def test_an_annotation_without_objects_is_refused(root):
    """DAVIS 2016 writes 255 for its one object, which is void in the layout of 2017."""
    ids_HW = np.full((HEIGHT, WIDTH), 255, np.uint8)
    write_mask(root / davis.ANNOTATIONS / "one/00000.png", ids_HW)
    with refused(DataError, "one/00000.png: no object (pixels are 0, or 255, which is void)"):
        open_davis(root)[0].num_objects()


def test_colours_instead_of_ids_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with refused(DataError, "a.png holds colours (mode RGB), not ids. Write masks as indexed PNG"):
        read_mask(tmp_path / "a.png")


def test_broken_and_missing_files_are_named(root):
    broken = root / davis.ANNOTATIONS / "one/00001.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with refused(DataError, "00001.png cannot be read"):
        open_davis(root)[0].truth(1)
    with refused(DataError, "00009.png is missing. Masks are named as the frames are"):
        read_mask(broken.with_name("00009.png"))
    (root / davis.PICTURES / "one/00001.jpg").write_bytes(b"no picture")
    with refused(DataError, "00001.jpg cannot be read"):
        open_davis(root)[0].picture(1)


def test_extensions_in_any_case_are_read_and_hidden_files_are_not(root):
    names = ["00000.JPG", "00001.jpeg", "00002.JPEG", "00003.jpg", "00004.Jpg"]
    for number, name in enumerate(names):
        path = root / davis.PICTURES / f"one/{number:05d}.jpg"
        path.rename(path.with_name(name))
        path.with_name(f"._{number:05d}.jpg").write_bytes(b"\0\5\x16\7")
        path = root / davis.ANNOTATIONS / f"one/{number:05d}.png"
        path.with_name(f"._{number:05d}.png").write_bytes(b"\0\5\x16\7")
        path.rename(path.with_suffix(".PNG"))
    (root / davis.PICTURES / ".DS_Store").mkdir()
    sequence = open_davis(root)[0]
    assert [path.name for path in sequence.frames] == names
    assert sequence.truth(4).max() == 1
    assert sequence.mask_name(1) == "00001.png"
    (root / davis.PICTURES / "one/00001.jpg").write_bytes(b"")
    with refused(DataError, "holds both 00001.jpeg and 00001.jpg, and one of them is to be used"):
        open_davis(root)
    with refused(UserError, "There are one, two"):
        open_davis(root, ["third"])


@pytest.mark.parametrize("separator", ["\n", "\r\n"])
def test_a_list_may_have_a_byte_order_mark_and_names_with_separators(root, separator):
    odd = "two\u2028three four"
    for part in (davis.PICTURES, davis.ANNOTATIONS):
        (root / part / "two").rename(root / part / odd)
    text = "\ufeff" + separator.join(["one", odd, ""])
    (root / davis.NAMES).write_bytes(text.encode())
    assert [one.name for one in open_davis(root)] == ["one", odd]


def test_frames_are_in_the_order_of_their_numbers(root):
    for part in (davis.PICTURES, davis.ANNOTATIONS):
        for path in list((root / part / "one").iterdir()):
            path.rename(path.with_stem(str(int(path.stem) + 8)))
    assert [path.stem for path in open_davis(root)[0].frames] == ["8", "9", "10", "11", "12"]


def test_an_annotation_without_frame_is_named(root):
    (root / davis.PICTURES / "two/00002.jpg").unlink()
    with refused(DataError, "two/00002.png has no frame in"):
        open_davis(root)


@pytest.mark.parametrize("part", [davis.PICTURES, davis.ANNOTATIONS])
def test_sizes_that_differ_are_named_with_both(root, part):
    (path,) = (root / part / "two").glob("00003.*")
    with Image.open(path) as image:
        half = image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST)
    half.save(path)
    sizes = [f"{WIDTH // 2} × {HEIGHT // 2}", f"{WIDTH} × {HEIGHT}"]
    annotated, size = sizes if part == davis.ANNOTATIONS else sizes[::-1]
    sequences = open_davis(root)
    with refused(DataError, f"two/00003.png is {annotated}, and its frame"):
        require_equal_sizes(sequences)
    with refused(DataError, f"is {size}. Resize the annotations to the size of the frames"):
        require_equal_sizes(sequences)
    require_equal_sizes(sequences[:1])


def test_a_sequence_of_two_sizes_is_refused(root):
    for part in (davis.PICTURES, davis.ANNOTATIONS):
        (path,) = (root / part / "two").glob("00003.*")
        with Image.open(path) as image:
            half = image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST)
        half.save(path)
    with refused(DataError, "and the first frame of two is 80 × 48. Bring all frames"):
        require_equal_sizes(open_davis(root))
