"""Pictures from every source, and how unusable ones are refused."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from unirl_env.errors import PromptError
from unirl_env.media.pixels import load_picture, picture_digest

RED = (255, 0, 0)


def encoded(picture, format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def uri(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_file_a_uri_and_a_tensor_are_the_same_picture(tmp_path):
    picture = Image.new("RGB", (5, 3), RED)
    picture.putpixel((4, 0), (0, 51, 255))
    (tmp_path / "a.png").write_bytes(encoded(picture))
    from_file = load_picture(tmp_path / "a.png")
    assert from_file.shape == (3, 3, 5) and from_file.dtype == torch.float32
    assert from_file[:, 0, 4].tolist() == pytest.approx([0, 0.2, 1]) and from_file[0, 1, 1] == 1
    for source in (str(tmp_path / "a.png"), uri(encoded(picture)), picture, from_file):
        assert torch.equal(load_picture(source), from_file)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    white = Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert torch.equal(load_picture(uri(encoded(white, format))), torch.ones(3, 2, 2))


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off():
    grey = Image.new("I;16", (2, 2), 32768)
    assert load_picture(uri(encoded(grey))).mean() == pytest.approx(0.5, abs=1e-4)


def png_of(width, depth, colour, row, clear=b"", palette=b""):
    """One row of samples as a PNG, packed by hand: Pillow writes few of these kinds."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)), (b"PLTE", palette)]
    parts += [(b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    kept = [chunk(kind, data) for kind, data in parts if data or kind == b"IEND"]
    return uri(b"\x89PNG\r\n\x1a\n" + b"".join(kept))


def words(*levels):
    return struct.pack(f">{len(levels)}H", *levels)


def greys(source):
    picture = load_picture(source)
    assert torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2])
    return picture[0, 0].tolist()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (png_of(3, 16, 0, words(0, 1000, 65535), words(1000)), [0, 1, 1]),
        (png_of(3, 16, 4, words(0, 65535, 0, 0, 32896, 65535)), [0, 1, 32896 / 65535]),
        (png_of(4, 4, 0, bytes([0x05, 0xAF]), words(5)), [0, 1, 10 / 15, 1]),
        (png_of(4, 2, 0, bytes([0b00011011]), words(1)), [0, 1, 2 / 3, 1]),
        (png_of(2, 1, 0, bytes([0b01000000]), words(0)), [1, 1]),
        (png_of(3, 8, 0, bytes([0, 7, 51]), words(7)), [0, 1, 0.2]),
        (png_of(2, 4, 3, bytes([0x01]), bytes([0]), bytes([9, 9, 9, 51, 51, 51])), [1, 0.2]),
    ],
)
def test_greys_and_palettes_with_transparency(picture, expected):
    """A sixteen-bit grey with one transparent level, with alpha, of few bits, and a palette's entry."""
    assert greys(picture) == pytest.approx(expected, abs=1e-6)


def test_colours_of_sixteen_bits():
    colours = load_picture(png_of(2, 16, 6, words(65535, 0, 32896, 65535, 0, 0, 0, 0)))
    assert colours[:, 0, 0].tolist() == pytest.approx([1, 0, 128 / 255]) and colours[:, 0, 1].min() == 1
    with pytest.raises(PromptError, match="must have 8 bits per colour where one of them is transparent"):
        load_picture(png_of(1, 16, 2, words(0x1234, 0, 0), words(0x34, 0, 0)))


def tiff(array, **options):
    return uri(encoded(Image.fromarray(array), "TIFF", **options), "image/tiff")


def tiff_of_12_bits(levels):
    """An even number of levels in one row, packed by hand."""
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        for a, b in zip(levels[::2], levels[1::2], strict=True)
    )
    tags = {256: len(levels), 257: 1, 258: 12, 259: 1, 262: 1, 273: 200, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return uri(head.ljust(200, b"\0") + packed, "image/tiff")


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (tiff(np.array([[0, 13107, 65535]], np.uint16)), [0, 0.2, 1]),
        (tiff(np.array([[0, 13107, 65535]], np.uint16), tiffinfo={262: 0}), [1, 0.8, 0]),
        (tiff(np.array([[0, 0.2, 1]], np.float32)), [0, 0.2, 1]),
        (tiff_of_12_bits([0, 819, 4095, 4095]), [0, 0.2, 1, 1]),
        (uri(b"P5 3 1 65535\n" + words(0, 13107, 65535)), [0, 0.2, 1]),
        (uri(b"P5 3 1 1000\n" + words(0, 200, 1000)), [0, 0.2, 1]),
        (uri(b"P2 3 1 500 0 100 500\n"), [0, 0.2, 1]),
        (uri(b"Pf 3 1 -1.0\n" + struct.pack("<3f", 0, 0.2, 1)), [0, 0.2, 1]),
        (Image.fromarray(np.array([[0, 13107]], np.dtype(">u2"))), [0, 0.2]),
        (Image.new("La", (2, 1)), [1, 1]),
        (Image.new("RGBa", (2, 1)), [1, 1]),
    ],
)
def test_deep_greys_are_scaled_by_their_white(picture, expected):
    assert greys(picture) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            tiff(np.array([[0, 100000]], np.int32)),
            "mode 'I' of TIFF for .*white is not known; try",
        ),
        (tiff(np.array([[0, 200]], np.int32)), "white is not known"),
        (Image.new("I", (2, 1)), "mode 'I' of a picture in memory"),
        (tiff(np.array([[0, np.nan]], np.float32)), "must lie in .* got NaN for .*image/tiff"),
        (tiff(np.array([[0, np.inf]], np.float32)), "got values from 0 to inf for"),
        (tiff(np.array([[0, 255]], np.float32)), "got values from 0 to 255 for .*scale it"),
        (tiff(np.array([[-0.5, 1]], np.float32)), "got values from -0.5 to 1"),
        (tiff(np.array([[0, 1]], np.float32), tiffinfo={262: 0}), "white is not known"),
        (uri(b"Pf 1 1 -2.0\n" + struct.pack("<f", 0)), "white is not known"),
        (uri(encoded(Image.new("I;16", (2, 1)), "IM")), "mode 'I;16' of IM"),
    ],
)
def test_what_would_be_cut_off_is_refused(picture, message):
    with pytest.raises(PromptError, match=message):
        load_picture(picture)


def test_sixteen_bits_held_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(np.array([[0, 13107, 65535]], np.uint16)), exif=exif)
    assert load_picture(uri(turned))[0, :, 0].tolist() == pytest.approx([0, 0.2, 1])


def test_transparency_is_white():
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert torch.equal(load_picture(uri(encoded(clear))), torch.ones(3, 2, 2))


def test_a_camera_held_upright_gives_an_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert load_picture(uri(turned, "image/jpeg")).shape == (3, 8, 4)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), (0, 0, 255))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_picture(uri(content, "image/gif"))[0].min() > 0.9


@pytest.mark.parametrize("source", ["https://a.b/c.png", "HTTP://a.b/c.png", "s3://bucket/c.png"])
def test_remote_pictures_are_refused_with_a_remedy(source):
    with pytest.raises(PromptError, match=r"on this machine, got .*try to download it"):
        load_picture(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "must be a file that can be read.*No such file"),
        ("\0", "must be a file that can be read"),
        (".", "must be a file that can be read.*directory"),
        ("", "must be a path, a data URI or a tensor"),
        (3, "must be a path, a data URI or a tensor .* got int"),
        ("data:image/png;base64", "data:image/...;base64"),
        ("data:image/png,abc", "data:image/...;base64"),
        ("data:image/png;base64,???", "data URI in base64"),
        (uri(b"no picture"), "a format that Pillow reads"),
        (uri(b""), "a format that Pillow reads"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floating-point tensor .* got torch.uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "got torch.int32 .*try `picture.float"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "floating-point tensor .* got torch.complex64"),
        (torch.zeros(4, 4, 3), r"floating-point tensor \[3, H, W\].*try `picture.permute\(2, 0, 1\)`"),
        (torch.zeros(1, 4, 4), r"floating-point tensor \[3, H, W\].*expand\(3, -1, -1\)"),
        (np.zeros((4, 4, 3), np.uint8), r"got ndarray; try .*torch.from_numpy\(array\)"),
        (torch.zeros(3, 0, 4), r"got torch.float32 \[3, 0, 4\]"),
        (torch.full((3, 2, 2), 255.0), "must lie in .* got values from 255 to 255"),
        (torch.full((3, 2, 2), -0.25), "must lie in .* got values from -0.25"),
        (torch.full((3, 2, 2), torch.inf), "must lie in .* got values from inf"),
        (torch.full((3, 2, 2), torch.nan), "must lie in .* got NaN"),
        (Image.new("RGB", (0, 4)), "must have pixels, got 0 x 4"),
    ],
)
def test_what_is_no_picture_is_refused(source, message):
    with pytest.raises(PromptError, match=message):
        load_picture(source)


def test_a_file_that_was_cut_short_is_refused():
    noise = Image.effect_noise((64, 64), 50)
    for format in ("PNG", "JPEG"):
        content = encoded(noise, format)
        with pytest.raises(PromptError, match="must be whole"):
            load_picture(uri(content[: len(content) // 2]))


@pytest.mark.parametrize("side", [8001, 14000])
def test_huge_pictures_are_refused_before_they_are_unpacked(side):
    content = encoded(Image.new("1", (side, side)))
    with pytest.raises(PromptError, match=r"at most 64000000 pixels, got .*try a smaller copy"):
        load_picture(uri(content))


def test_the_digest_is_that_of_the_content(tmp_path):
    content = encoded(Image.new("RGB", (2, 2), RED))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(content)
    first = picture_digest(tmp_path / "a.png")
    assert first == picture_digest(str(tmp_path / "b.png")) == picture_digest(uri(content))
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (3, 2), RED)))
    assert picture_digest(tmp_path / "a.png") != first, "a changed file is read again"
    tensors = [torch.zeros(3, 2, 2), torch.ones(3, 2, 2), torch.zeros(3, 1, 4), torch.zeros(3, 2, 2).half()]
    assert len({picture_digest(tensor) for tensor in tensors}) == 4
    assert picture_digest(torch.zeros(3, 2, 2)) == picture_digest(tensors[0])
