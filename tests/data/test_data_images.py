"""Images with an orientation, large metadata or more pixels than are read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from toy_data import png, random_picture

import toto.data.decode as decode_module
from toto.data.davis import read_mask
from toto.data.decode import (
    MAX_IMAGE_PIXELS,
    UndecodableError,
    check_image,
    decode_image,
    open_image,
)
from toto.errors import DataError

# EXIF 2.32, table 6: which side of the scene row 0 and column 0 of the stored image are.
TURNS = {
    1: lambda f: f,
    2: np.fliplr,
    3: lambda f: np.rot90(f, 2),
    4: np.flipud,
    5: lambda f: f.swapaxes(0, 1),
    6: lambda f: np.rot90(f, -1),
    7: lambda f: np.rot90(f, 2).swapaxes(0, 1),
    8: lambda f: np.rot90(f, 1),
}


def with_orientation(pixels, orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(pixels).save(file, form, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_unless_asked_otherwise(form, orientation):
    payload = with_orientation(random_picture(0, 24, 40), orientation, form)
    stored = decode_image(payload, "stored")
    assert stored.shape == (24, 40, 3)
    assert np.array_equal(decode_image(payload), TURNS[orientation](stored))
    assert check_image(payload).turned == (orientation != 1)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense"])
def test_damaged_exif_is_no_reason_to_refuse_an_image(exif):
    file = io.BytesIO()
    picture = random_picture(0, 24, 40)
    Image.fromarray(picture).save(file, "PNG", exif=exif)
    assert np.array_equal(decode_image(file.getvalue()), picture)
    assert not check_image(file.getvalue()).turned


def with_chunks(payload, *chunks):
    """A PNG with more chunks behind its header."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return payload[:33] + body + payload[33:]


def compressed(size):
    return zlib.compress(bytes(size))


LARGE = 3 * 2**20  # Pillow's own limit is 2**20
CHUNKS = {
    "zTXt": lambda size: (b"zTXt", b"Comment\0\0" + compressed(size)),
    "iTXt": lambda size: (b"iTXt", b"Comment\0\1\0\0\0" + compressed(size)),
    "iCCP": lambda size: (b"iCCP", b"profile\0\0" + compressed(size)),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_with_large_metadata_is_sound(name):
    picture = random_picture(1)
    payload = with_chunks(png(picture), CHUNKS[name](LARGE))
    assert np.array_equal(decode_image(payload), picture)
    check_image(payload)


@pytest.mark.parametrize("name", CHUNKS)
def test_metadata_above_the_limit_is_named_as_a_limit(name, monkeypatch):
    monkeypatch.setattr(decode_module.PngImagePlugin, "MAX_TEXT_CHUNK", 2**20)
    payload = with_chunks(png(random_picture(1)), CHUNKS[name](LARGE))
    for read in (decode_image, check_image):
        with pytest.raises(UndecodableError, match="above toto's limit of 67,108,864 bytes"):
            read(payload)


def test_many_texts_above_the_limit_are_named_as_a_limit(monkeypatch):
    monkeypatch.setattr(decode_module.PngImagePlugin, "MAX_TEXT_MEMORY", 2**22)
    chunk = CHUNKS["zTXt"](LARGE)
    with pytest.raises(UndecodableError, match="text or colour profile is above toto's limit"):
        decode_image(with_chunks(png(random_picture(1)), chunk, chunk))


def with_size(payload, width, height):
    """A PNG whose header claims another size."""
    header = struct.pack(">II", width, height) + payload[24:29]
    return payload[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + payload[33:]


@pytest.mark.parametrize("rows", [2**14 + 1, 2**16])
def test_images_above_the_pixel_limit_are_named_as_such(rows, recwarn):
    payload = with_size(png(random_picture(1)), 2**14, rows)
    for read in (decode_image, check_image):
        with pytest.raises(UndecodableError, match=f"toto's limit of {MAX_IMAGE_PIXELS:,}"):
            read(payload)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_image_above_the_limit_of_whole_ones_is_reduced(monkeypatch, form):
    smooth = Image.fromarray(random_picture(1, 4, 4)).resize((96, 64), Image.Resampling.BICUBIC)
    payload = with_orientation(np.asarray(smooth), 6, form)
    whole = decode_image(payload)
    monkeypatch.setattr(decode_module, "MAX_WHOLE_PIXELS", 96 * 64)
    assert np.array_equal(decode_image(payload), whole)
    for limit, factor in ((96 * 64 - 1, 2), (96 * 64 // 4 - 1, 4)):
        monkeypatch.setattr(decode_module, "MAX_WHOLE_PIXELS", limit)
        reduced = decode_image(payload)
        height, width = 96 // factor, 64 // factor
        assert reduced.shape == (height, width, 3)
        means = whole.reshape(height, factor, width, factor, 3).mean((1, 3))
        assert np.abs(reduced - means).mean() < 3


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "I;16", "CMYK"])
def test_images_of_all_modes_can_be_reduced(monkeypatch, mode):
    image = Image.new("L", (32, 32), 255).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 0xFF00, np.uint16))
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    monkeypatch.setattr(decode_module, "MAX_WHOLE_PIXELS", 300)
    assert np.array_equal(decode_image(file.getvalue()), np.full((16, 16, 3), 255))


def test_decoding_an_image_ends_at_its_time_limit(monkeypatch):
    payload = png(random_picture(1))
    check_image(payload)
    monkeypatch.setattr(decode_module, "decode_seconds", lambda size: 0.0)
    with pytest.raises(UndecodableError, match="takes more than 0 s of processor time"):
        check_image(payload)


def test_images_above_the_limit_of_pillow_are_read(monkeypatch):
    # The image of 200 million pixels would take seconds: the limits are those that are in force.
    assert Image.MAX_IMAGE_PIXELS == MAX_IMAGE_PIXELS > 178_956_970
    with open_image(with_size(png(random_picture(1)), 2**14, 2**14)) as image:
        assert image.size == (2**14, 2**14)


def test_a_mask_with_large_metadata_is_read_and_others_are_refused_by_name(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(file, "PNG")
    path = tmp_path / "mask.png"
    path.write_bytes(with_chunks(file.getvalue(), CHUNKS["zTXt"](LARGE)))
    assert np.array_equal(read_mask(path), np.eye(5))
    path.write_bytes(file.getvalue()[:-30])
    with pytest.raises(DataError, match=r"mask\.png cannot be read: a damaged image"):
        read_mask(path)
    path.write_bytes(png(random_picture(0)))
    with pytest.raises(DataError, match="holds colours"):
        read_mask(path)
