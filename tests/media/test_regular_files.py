"""Files that prompts name: what is no regular file is never opened, and what is too large never read."""

import json
import os
import struct
import zlib

import pytest
import torch
from PIL import Image

from unirl_env.errors import ConfigError, PromptError
from unirl_env.media import files as regular_files
from unirl_env.media import pixels
from unirl_env.media.pixels import check_picture, load_picture, picture_digest, png_bytes
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards.external.rubric import Rubric
from unirl_env.types import Prompt


def claims(path, width, height):
    """A PNG whose head says a size, and whose pixels are not there."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


def pipe(path):
    os.mkfifo(path)


def huge(path):
    with path.open("wb") as file:
        file.truncate(5_000_000_000)  # a hole, which takes no room


NO_PICTURES = {
    "pipe": (pipe, "a named pipe and no regular file"),
    "folder": (lambda path: path.mkdir(), "a directory and no regular file"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "a device and no regular file"),
    "secrets": (lambda path: path.symlink_to("/proc/self/environ"), "a file of the system's own"),
    "nowhere": (lambda path: path.symlink_to(path), "symbolic link"),
    "huge": (huge, "5000000000 bytes, and at most 400000000 are read"),
    "bomb": (lambda path: claims(path, 9000, 9000), "at most 64000000 pixels, got 9000 x 9000"),
    "words": (lambda path: path.write_text("a cat"), "a format that Pillow reads"),
    "program": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        "a program would be run",
    ),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
@pytest.mark.parametrize("given", ["a file", "a list", "prompts"])
def test_what_is_no_picture_is_named_with_its_prompt_as_prompts_are_read(tmp_path, kind, given):
    make, said = NO_PICTURES[kind]
    path = tmp_path / f"{kind}.png"
    make(path)
    entry = {"prompt": "What is it?", "image": str(path)}
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Well?"}\n' + json.dumps(entry))
    source = {
        "a file": tmp_path / "asked.jsonl",
        "a list": ["Well?", entry],
        "prompts": [Prompt("Well?"), Prompt("What is it?", images=(str(path),))],
    }[given]
    place = "line 2" if given == "a file" else "entry 1"
    with pytest.raises(PromptError, match=said) as error:
        PromptSource.of(source)
    assert f"{kind}.png" in str(error.value) and place in str(error.value)
    assert "the prompt 'What is it?'" in str(error.value)
    with pytest.raises(PromptError, match=said):
        load_picture(path)


def test_a_picture_behind_links_and_in_shared_memory_is_read(tmp_path):
    picture = torch.rand(3, 4, 5)
    (tmp_path / "real.png").write_bytes(png_bytes(picture))
    (tmp_path / "link.png").symlink_to("real.png")
    assert PromptSource.of([{"prompt": "?", "image": str(tmp_path / "link.png")}])
    assert picture_digest(tmp_path / "link.png") == picture_digest(tmp_path / "real.png")
    shared = f"/dev/shm/unirl-test-{os.getpid()}.png"
    try:
        Image.new("RGB", (2, 2)).save(shared)
    except OSError:
        pytest.skip("there is no shared memory")
    try:
        check_picture(shared)
    finally:
        os.remove(shared)


def test_a_file_that_changes_meanwhile_is_not_read_either(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"x" * 100)
    with pytest.raises(regular_files.TooLarge, match="100 bytes"):
        regular_files.read_regular(path, 99)
    assert regular_files.read_regular(path, 100) == b"x" * 100
    os.remove(path)
    os.mkfifo(path)
    monkeypatch.setattr(regular_files, "require_regular", lambda path: None)
    with pytest.raises(regular_files.NotRegular, match="a named pipe"):
        regular_files.read_regular(path, 100)


def test_pictures_in_words_have_the_same_bound(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_BYTES", 8)
    with pytest.raises(PromptError, match="more than 8 bytes"):
        load_picture("data:image/png;base64," + "A" * 20)


def test_no_prompt_file_and_no_rubric_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(PromptError, match=r"must be readable, got a named pipe"):
        PromptSource.of(tmp_path / "p.jsonl")
    os.mkfifo(tmp_path / "r.md")
    with pytest.raises(ConfigError, match=r"`rubric` must be a file that can be read, got .*a named pipe"):
        Rubric(tmp_path / "r.md")
