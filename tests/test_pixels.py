"""Pictures from every source, and how unusable ones are refused."""

import base64
import io

import pytest
import torch
from PIL import Image

from unirl_env.errors import PromptError
from unirl_env.pixels import load_picture, picture_digest

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
        (torch.zeros(4, 4, 3), r"floating-point tensor \[3, H, W\]"),
        (torch.zeros(3, 0, 4), r"got torch.float32 \[3, 0, 4\]"),
        (torch.full((3, 2, 2), 255.0), "must lie in .* got values from 255 to 255"),
        (torch.full((3, 2, 2), torch.nan), "must lie in"),
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
