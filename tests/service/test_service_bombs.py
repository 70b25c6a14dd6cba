"""Requests that are small and become large: all of it is counted before anything is unpacked."""

import json

import pytest
import torch
from safetensors.torch import load, save
from service_cases import body, called, error, made, png64, tensors, values

from unirl_env.rewards.wire import TENSORS, Limits, ScoreRequest, decode_request, encode_request
from unirl_env.rewards.wire import tensors as wired
from unirl_env.service import request_body
from unirl_env.service.error_replies import Refused
from unirl_env.service.request_body import JSON, MemoryBudget, Reservation, read_request
from unirl_env.types import Prompt, Sample


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that were decoded."""
    found = []

    def load_picture(source):
        found.append(source)
        return real(source)

    real = wired.load_picture
    monkeypatch.setattr(wired, "load_picture", load_picture)
    return found


def pictured(count, side, prompts=0):
    """A request in JSON of samples with a picture each."""
    item = {
        "sample": {"image_png": png64(height=side, width=side)},
        "prompt": {"text": "x", "images_png": [png64()] * prompts},
    }
    return json.dumps({"reward": "count", "items": [item] * count}).encode()


def shared(times, side=8):
    """A request in tensors whose samples are all the same picture."""
    request = ScoreRequest("", "count", (Sample(image=torch.rand(3, side, side)),), (Prompt("x"),))
    found = load(encode_request(request))
    words = json.loads(found["request"].numpy().tobytes())
    words["items"] *= times
    found["request"] = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    return save(found)


def test_pictures_are_counted_by_their_heads(decoded):
    side = 100
    limits = Limits(unpacked=2 * 3 * 4 * side**2)
    assert len(read_request(pictured(2, side), JSON, limits).request.samples) == 2 == len(decoded)
    with pytest.raises(Refused, match="at most 240000 bytes as float32"):
        read_request(pictured(3, side), JSON, limits)
    assert len(decoded) == 2, "none of a request that is refused is decoded"


def test_room_is_taken_before_a_picture_is_decoded(decoded):
    content = pictured(1, 100)
    room = MemoryBudget(len(content) + 100_000)
    with Reservation(room) as hold, pytest.raises(Refused, match="All requests together") as refused:
        read_request(content, JSON, Limits(), hold)
    assert refused.value.status == 429 and decoded == [] and room.taken == 0
    room = MemoryBudget(len(content) + 200_000)
    with Reservation(room) as hold:
        read_request(content, JSON, Limits(), hold)
        assert room.taken > 120_000


def test_a_picture_that_several_look_at_counts_for_each():
    limits = Limits(body=10_000, unpacked=10 * 3 * 4 * 8**2)
    assert len(decode_request(shared(10), limits).samples) == 10
    app, _ = made(limits=Limits(body=10_000, words=4000, unpacked=10 * 3 * 4 * 8**2))
    reply = called(app, "POST", "/score", content=shared(14), headers={"Content-Type": TENSORS})
    assert error(reply)[:2] == (400, "malformed") and "each for itself" in error(reply)[2]


def test_values_of_json_are_counted_before_it_is_read(monkeypatch):
    app, _ = made(limits=Limits(values=200))
    assert values(called(app, "POST", "/score", json=body(["four"], metadata={"a": [1] * 100}))) == [4]

    def never(*_):
        raise AssertionError("it was read")

    monkeypatch.setattr(request_body, "read_json", never)
    monkeypatch.setattr(request_body, "decode_request", never)
    for nested in ([1] * 300, [[]] * 150, {str(n): n for n in range(150)}):
        reply = called(app, "POST", "/score", json=body(["four"], metadata={"a": nested}))
        assert error(reply)[:2] == (400, "malformed") and "at most 200 values" in error(reply)[2]
        prompt = Prompt("x", metadata={"a": nested})
        reply = called(app, "POST", "/score", **tensors([Sample(text="four")], [prompt]))
        assert "at most 200 values" in error(reply)[2]


def test_the_number_of_pictures_is_bounded(decoded):
    app, _ = made(limits=Limits(pictures=5))
    headers = {"Content-Type": JSON}
    reply = called(app, "POST", "/score", content=pictured(1, 4, prompts=9), headers=headers)
    assert error(reply)[:2] == (400, "malformed") and "at most 5 pictures" in error(reply)[2]
    samples = [Sample(text="four", tokens=torch.arange(n)) for n in range(1, 9)]
    reply = called(app, "POST", "/score", **tensors(samples))
    assert error(reply)[:2] == (400, "malformed") and "at most 5 tensors, got 9" in error(reply)[2]
    assert values(called(app, "POST", "/score", **tensors(samples[:5]))) == [4] * 5


def test_a_head_of_a_file_that_is_longer_than_the_file_is_refused():
    for content in (
        b"",
        b"\xff" * 8,
        (10**9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
    ):
        with pytest.raises(Refused, match="must be a safetensors file with the tensor `request`"):
            read_request(content, TENSORS, Limits())


def test_what_words_take_once_they_are_read_is_held():
    plain = json.dumps(body(["a"], metadata={"a": "b" * 1000})).encode()
    wide = json.dumps(body(["a"], metadata={"a": "b" * 1000 + "\U0001f600"}), ensure_ascii=False).encode()
    many = json.dumps(body(["a"], metadata={"a": [[]] * 1000})).encode()
    sizes = [read_request(content, JSON, Limits()).size for content in (plain, wide, many)]
    assert 1000 < sizes[0] < 5000 and sizes[1] > 4000 and sizes[2] > 100_000
    tokens = {"reward": "count", "items": [{"sample": {"tokens": [1] * 5000}, "prompt": {"text": "x"}}]}
    # Tokens are a tensor by then.
    assert read_request(json.dumps(tokens).encode(), JSON, Limits()).size < 5000 * 8 + 20_000
