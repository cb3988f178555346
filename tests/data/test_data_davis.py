from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toto.data import davis
from toto.data.davis import PALETTE, open_davis, read_mask, write_mask
from toto.errors import DataError, UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sequences of 3 frames of 12 × 8 px, one object in the first, two in the second."""
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("first\nsecond\n")
    for objects, name in enumerate(("first", "second"), start=1):
        (tmp_path / davis.PICTURES / name).mkdir(parents=True)
        for t in range(3):
            picture = np.full((8, 12, 3), 10 * t, np.uint8)
            Image.fromarray(picture).save(tmp_path / davis.PICTURES / name / f"{t:05d}.jpg")
            ids_HW = np.zeros((8, 12), np.uint8)
            for number in range(1, objects + 1):
                ids_HW[2 * number : 2 * number + 2, t : t + 4] = number
            ids_HW[0, 0] = 255
            write_mask(tmp_path / davis.ANNOTATIONS / name / f"{t:05d}.png", ids_HW)
    return tmp_path


def test_the_listed_sequences_are_read(root):
    first, second = open_davis(root)
    assert (first.name, second.name, len(second)) == ("first", "second", 3)
    assert (first.num_objects(), second.num_objects()) == (1, 2)
    assert second.picture(2).shape == (8, 12, 3)
    truth_HW = second.truth(1)
    assert truth_HW[0, 0] == 0, "void counts as background"
    assert truth_HW[4, 1:5].tolist() == [2, 2, 2, 2]


def test_names_choose_sequences_without_the_list(root):
    (root / davis.NAMES).unlink()
    assert [one.name for one in open_davis(root, ["second"])] == ["second"]


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


def refused(error: type[Exception], text: str):
    return pytest.raises(error, match=re.escape(text))


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
    with refused(UserError, "There are first, second"):
        open_davis(root, ["third"])


def test_a_frame_without_annotation_is_named(root):
    (root / davis.ANNOTATIONS / "second/00002.png").unlink()
    with refused(DataError, "second/00002.png is missing: every frame needs its annotation"):
        open_davis(root)


def test_an_annotation_without_objects_is_refused(root):
    """DAVIS 2016 writes 255 for its one object, which is void in the layout of 2017."""
    ids_HW = np.full((8, 12), 255, np.uint8)
    write_mask(root / davis.ANNOTATIONS / "first/00000.png", ids_HW)
    with refused(DataError, "first/00000.png: no object (pixels are 0, or 255, which is void)"):
        open_davis(root)[0].num_objects()


def test_colours_instead_of_ids_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with refused(DataError, "a.png holds colours (mode RGB), not ids. Write masks as indexed PNG"):
        read_mask(tmp_path / "a.png")


def test_broken_and_missing_files_are_named(root):
    broken = root / davis.ANNOTATIONS / "first/00001.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with refused(DataError, "00001.png cannot be read"):
        open_davis(root)[0].truth(1)
    with refused(DataError, "00009.png is missing. Masks are named as the frames are"):
        read_mask(broken.with_name("00009.png"))
    (root / davis.PICTURES / "first/00001.jpg").write_bytes(b"no picture")
    with refused(DataError, "00001.jpg cannot be read"):
        open_davis(root)[0].picture(1)
