"""Requests come out of the wire as they went in, bit by bit, and are read by others than us."""

import json
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unirl_env.errors import WireError
from unirl_env.media.pixels import load_picture
from unirl_env.rewards.wire import PROTOCOL, ScoreRequest, decode_request, encode_request
from unirl_env.types import Prompt, Sample

FIELDS = ("image", "pictures", "video", "latent", "tokens")


def trip(*pairs, **options):
    samples, prompts = zip(*pairs, strict=True)
    return decode_request(encode_request(ScoreRequest("id", "reward", samples, prompts), **options))


def same_bits(left, right):
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and left.shape == right.shape and as_bytes(left) == as_bytes(right)


def as_bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same(sample, other):
    for name in FIELDS:
        assert same_bits(getattr(sample, name), getattr(other, name)), name
    assert (sample.text, sample.truncated, sample.before) == (other.text, other.truncated, other.before)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def levels(*shape, seed=0):
    return (noise(*shape, seed=seed) * 255).round() / 255


FULL = Sample(
    image=levels(3, 5, 7),
    pictures=noise(2, 3, 4, 4),
    video=levels(3, 3, 4, 6, seed=1),
    text="größer\nals 日本 \ud800",
    latent=noise(4, 2, 2).to(torch.bfloat16),
    tokens=torch.tensor([5, 2**40, -1]),
    truncated=True,
    before="<think>\n",
)
PROMPT = Prompt(
    "a cat",
    id="7",
    negative="blurry",
    metadata={"answer": "4", "count": 3, "deep": {"list": [1.5, None, True, "x"]}},
    messages=({"role": "user", "content": [{"type": "text", "text": "a cat"}]},),
    images=(levels(3, 4, 4, seed=2), noise(3, 2, 6)),
)


def test_everything_a_sample_and_a_prompt_may_hold_arrives_bitwise():
    request = trip((FULL, PROMPT), (Sample(text="short"), Prompt("other")))
    assert (request.id, request.reward, len(request.samples)) == ("id", "reward", 2)
    assert_same(request.samples[0], FULL)
    assert_same(request.samples[1], Sample(text="short"))
    arrived = request.prompts[0]
    for name in ("text", "id", "negative", "metadata", "messages"):
        assert getattr(arrived, name) == getattr(PROMPT, name)
    assert all(map(same_bits, arrived.images, PROMPT.images))


def test_rows_of_a_batch_and_turned_pictures_arrive():
    batch = noise(4, 3, 8, 8)
    sent = [Sample(image=row) for row in batch] + [Sample(image=batch[0].permute(0, 2, 1))]
    for one, arrived in zip(sent, trip(*[(one, PROMPT) for one in sent]).samples, strict=True):
        assert_same(one, arrived)


@pytest.mark.parametrize("value", [-0.0, math.nan, math.inf, -0.5, 1.5, 1e-40, 0.1])
def test_a_picture_with_any_value_arrives_bitwise(value):
    picture = levels(3, 4, 4)
    picture[1, 2, 3] = value
    assert same_bits(trip((Sample(image=picture), PROMPT)).samples[0].image, picture)


def test_whole_levels_travel_as_bytes():
    exact, other = (
        encode_request(ScoreRequest("", "r", (Sample(image=picture),), (Prompt("x"),)))
        for picture in (levels(3, 64, 64), noise(3, 64, 64))
    )
    assert len(exact) < 3 * 64 * 64 + 1000 < 4 * 3 * 64 * 64 < len(other)


def test_all_256_levels_of_a_decoded_png_are_found(tmp_path):
    path = tmp_path / "ramp.png"
    Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3).save(path)
    picture = load_picture(path)
    assert picture.unique().numel() == 256
    body = encode_request(ScoreRequest("", "r", (Sample(image=picture),), (Prompt("x"),)))
    assert b"levels" in body
    assert same_bits(decode_request(body).samples[0].image, picture)


def test_png_rounds_to_levels_and_leaves_alone_what_it_cannot_hold():
    hurt = noise(3, 6, 5)
    hurt[0, 0, 0] = math.nan
    video = noise(2, 3, 4, 4)
    sent = [Sample(image=noise(3, 6, 5)), Sample(image=levels(3, 6, 5)), Sample(image=hurt, video=video)]
    rounded, exact, kept = trip(*[(one, PROMPT) for one in sent], png=True).samples
    assert same_bits(rounded.image, (sent[0].image * 255).round() / 255)
    assert same_bits(exact.image, sent[1].image)
    assert same_bits(kept.image, hurt) and same_bits(kept.video, video)


def test_pictures_of_prompts_are_read_from_their_files_and_sent_once_per_prompt(tmp_path):
    path = tmp_path / "big.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    prompt = Prompt("x", images=(str(path),))
    one, many = (
        encode_request(ScoreRequest("", "r", (Sample(text="a"),) * count, (prompt,) * count))
        for count in (1, 16)
    )
    assert len(many) - len(one) < 3 * 64 * 64
    for arrived in decode_request(many).prompts:
        assert same_bits(arrived.images[0], load_picture(path))


def test_the_form_can_be_read_without_this_library():
    body = encode_request(ScoreRequest("abc", "shapes", (Sample(image=levels(3, 2, 2)),), (Prompt("x"),)))
    (length,) = struct.unpack("<Q", body[:8])
    header, data = json.loads(body[8 : 8 + length]), body[8 + length :]
    start, end = header["request"]["data_offsets"]
    head = json.loads(data[start:end])
    assert (head["protocol"], head["id"], head["reward"]) == (PROTOCOL, "abc", "shapes")
    word = head["items"][0]["sample"]["image"]
    assert word["form"] == "levels" and header[word["tensor"]]["dtype"] == "U8"
    start, end = header[word["tensor"]]["data_offsets"]
    assert torch.equal(torch.tensor(list(data[start:end])).reshape(3, 2, 2) / 255.0, levels(3, 2, 2))


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"t": torch.zeros(2)}, "Tensor"),
        ({"n": math.nan}, "Out of range"),
        ({"deep": [{3: "x"}]}, "the key 3"),
        ({"s": {1, 2}}, "set"),
    ],
)
def test_metadata_that_would_arrive_as_something_else_is_refused(metadata, words):
    with pytest.raises(WireError, match=rf"`Prompt.metadata`.*must be JSON.*{words}"):
        trip((Sample(text="a"), Prompt("x", metadata=metadata)))


def test_a_picture_of_another_dtype_is_refused():
    with pytest.raises(WireError, match=r"must be float32 to be sent, got torch.float64"):
        trip((Sample(image=torch.zeros(3, 2, 2, dtype=torch.float64)), PROMPT))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
samples = st.builds(
    Sample,
    text=st.none() | st.text(),
    truncated=st.booleans(),
    before=st.text(max_size=9),
    image=st.none()
    | st.integers(0, 99).map(lambda seed: (levels if seed % 2 else noise)(3, 2, 3, seed=seed)),
    tokens=st.none() | st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda ids: torch.tensor(ids).long()),
    latent=st.none() | st.sampled_from([torch.float32, torch.float16, torch.bfloat16]).map(noise(2, 2).to),
)
prompts = st.builds(
    Prompt, st.text(), negative=st.text(), metadata=st.dictionaries(st.text(), json_values, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(samples, prompts), min_size=1, max_size=4))
def test_any_request_arrives(pairs):
    request = trip(*pairs)
    for (sample, prompt), arrived, asked in zip(pairs, request.samples, request.prompts, strict=True):
        assert_same(sample, arrived)
        assert asked == prompt and asked.metadata == prompt.metadata
