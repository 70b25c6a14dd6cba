"""What does not come from us is refused by name, and never by a crash or a lot of memory."""

import json
import struct

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from unirl_env.errors import WireError
from unirl_env.rewards.wire import PROTOCOL, Limits, ScoreRequest, decode_request, encode_request, read_png
from unirl_env.types import Prompt, Sample

GOOD = encode_request(
    ScoreRequest("id", "r", (Sample(image=torch.rand(3, 4, 4), text="a"),), (Prompt("x"),)), png=True
)


def packed(head, **tensors):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return save({**tensors, "request": torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def request(sample=None, prompt=None, **changes):
    item = {"sample": {"text": "a", **(sample or {})}, "prompt": {"text": "x", **(prompt or {})}}
    return {"protocol": PROTOCOL, "id": "i", "reward": "r", "items": [item], **changes}


def picture(**word):
    return request(sample={"image": {"tensor": "0", "form": "plain", **word}})


def test_the_frame_of_these_tests_is_sound():
    assert decode_request(packed(request())).samples[0].text == "a"
    assert decode_request(packed(picture(), **{"0": torch.zeros(3, 2, 2)})).samples[0].image.shape == (
        3,
        2,
        2,
    )
    assert decode_request(GOOD).samples[0].image.shape == (3, 4, 4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\x80\x04\x95.",
        struct.pack("<Q", 2**62) + b"{}",
        save({"other": torch.zeros(1)}),
        packed(b"not json"),
        packed(b"[" * 100_000),
        packed(b"\xff\xfe"),
        GOOD[:-1],
        GOOD[:40],
    ],
    ids=["empty", "JSON", "pickle", "huge", "other", "text", "deep", "bytes", "cut", "head"],
)
def test_what_is_no_request_is_refused(body):
    with pytest.raises(WireError, match="must be a safetensors file with the tensor `request`"):
        decode_request(body)


@pytest.mark.parametrize(
    "head, words",
    [
        ([], "protocol 1"),
        (request(protocol=2), "protocol 1"),
        (request(items="x"), "`items` must be a list of mappings"),
        (request(items=[1]), "`items` must be a list of mappings"),
        (request(items=[]), "`items` must be 1 to"),
        (request(items=[{}]), "A mapping must stand here, got None"),
        (request(id=7), "`id` must be a text"),
        (request(reward=None), "`reward` must be a text"),
        (request(sample={"text": 5}), "`text` must be a text"),
        (request(prompt={"text": None}), "`text` must be a text"),
        (request(prompt={"metadata": []}), "A mapping must stand here"),
        (request(prompt={"messages": ["x"]}), "A mapping must stand here"),
        (request(prompt={"images": {"0": 1}}), "A list must stand here"),
        (picture(tensor="9"), "must be named by one of the file, got '9'"),
        (picture(tensor=0), "must be named by one of the file, got 0"),
        (picture(form="pickle"), "`form` must be plain, levels or png, got 'pickle'"),
        (picture(form=[]), "`form` must be plain"),
        (picture(form="png"), "must be uint8, got torch.float32"),
    ],
)
def test_malformed_words_are_named(head, words):
    with pytest.raises(WireError, match=words):
        decode_request(packed(head, **{"0": torch.zeros(3, 2, 2)}))


@pytest.mark.parametrize(
    "name, tensor, words",
    [
        ("image", torch.zeros(2, 2), "rank 3 with 3 channels"),
        ("image", torch.zeros(4, 2, 2), "rank 3 with 3 channels"),
        ("image", torch.zeros(3, 0, 2), "rank 3 with 3 channels"),
        ("image", torch.zeros(3, 2, 2).half(), "float32"),
        ("image", torch.zeros(()), "rank 3 with 3 channels"),
        ("video", torch.zeros(3, 2, 2), "rank 4 with 3 channels"),
        ("pictures", torch.zeros(1, 1, 2, 2), "rank 4 with 3 channels"),
        ("tokens", torch.zeros(3), "`tokens` must be int64"),
        ("tokens", torch.zeros(1, 3).long(), "`tokens` must be int64"),
    ],
)
def test_tensors_of_the_wrong_kind_are_named(name, tensor, words):
    head = request(sample={name: {"tensor": "0", "form": "plain"}})
    with pytest.raises(WireError, match=words):
        decode_request(packed(head, **{"0": tensor}))


def test_limits_are_kept():
    for limits, words in [
        (Limits(body=100), "at most 100 bytes"),
        (Limits(pixels=15), "at most 15 pixels"),
        (Limits(characters=1), "at most 1 characters"),
        (Limits(unpacked=4 * 3 * 16 - 1), "at most 191 bytes as float32"),
    ]:
        with pytest.raises(WireError, match=words):
            decode_request(GOOD, limits)
    two = encode_request(ScoreRequest("i", "r", (Sample(text="a"),) * 2, (Prompt("x"),) * 2))
    with pytest.raises(WireError, match="must be 1 to 1, got 2"):
        decode_request(two, Limits(samples=1))


def test_a_tensor_named_many_times_is_unpacked_once():
    item = {"sample": {"image": {"tensor": "0", "form": "levels"}}, "prompt": {"text": "x"}}
    body = packed(request(items=[item] * 50), **{"0": torch.zeros(3, 64, 64, dtype=torch.uint8)})
    decoded = decode_request(body, Limits(unpacked=4 * 3 * 64 * 64))
    assert len({sample.image.data_ptr() for sample in decoded.samples}) == 1


def test_only_sound_pngs_of_few_pixels_are_decoded(tmp_path):
    for kind in ("JPEG", "GIF", "BMP"):
        path = tmp_path / kind
        Image.new("RGB", (4, 4)).save(path, kind)
        with pytest.raises(WireError, match="must be a sound PNG"):
            read_png(path.read_bytes(), 100)
    path = tmp_path / "bomb.png"
    for side, words in (
        (5000, "at most 16000000 pixels, got 5000 x 5000"),
        (20_000, "got DecompressionBomb"),
    ):
        Image.new("1", (side, side)).save(path)
        assert len(path.read_bytes()) < 100_000
        with pytest.raises(WireError, match=words):
            read_png(path.read_bytes(), 16_000_000)
    small = tmp_path / "small.png"
    Image.effect_noise((16, 16), 50).save(small)
    for cut in (10, 40, -30):
        with pytest.raises(WireError, match="must be a sound PNG"):
            read_png(small.read_bytes()[:cut], 1000)


def test_paths_are_no_pictures():
    head = request(prompt={"images": ["secret.png"]})
    with pytest.raises(WireError, match="A mapping must stand here"):
        decode_request(packed(head))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
@example(0, b"\xff" * 8)
def test_damaged_bytes_are_read_or_refused(place, damage):
    body = GOOD[:place] + damage + GOOD[place + len(damage) :]
    try:
        decode_request(body)
    except WireError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["0", "plain", "png", "levels", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["tensor", "form", "text", "image", "prompt"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["image", "video", "tokens", "latent", "text"]), json_values, max_size=3),
    st.dictionaries(
        st.sampled_from(["text", "id", "metadata", "messages", "images"]), json_values, max_size=3
    ),
)
def test_any_json_is_read_or_refused(sample, prompt):
    try:
        decode_request(packed(request(sample, prompt), **{"0": torch.zeros(3, 2, 2)}))
    except WireError:
        pass
