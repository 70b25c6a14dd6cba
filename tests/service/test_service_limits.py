"""What is too much is refused before it costs much, whoever says how much it is."""

import asyncio
import base64
import io
import json
import zlib

import pytest
import torch
from PIL import Image
from service_cases import asked, body, called, client, error, made, png, tensors, until, values

from unirl_env.rewards.wire import Limits
from unirl_env.types import Sample

JSON = {"Content-Type": "application/json"}
SMALL = {"limits": Limits(body=10_000, words=4_000)}


def streamed(app, chunks, headers=JSON):
    seen = []

    async def content():
        for chunk in chunks:
            seen.append(len(chunk))
            yield chunk

    async def action():
        async with client(app) as caller:
            return await caller.post("/score", content=content(), headers=headers)

    return asyncio.run(action()), seen


def test_a_body_is_counted_while_it_streams_in():
    app, _ = made(**SMALL)
    reply, seen = streamed(app, (b"x" * 1000 for _ in range(1_000_000)))
    assert error(reply)[:2] == (413, "too_large") and "at most 4000 bytes" in error(reply)[2]
    assert len(seen) < 20 and app.state.service.room.taken == 0


def test_a_content_length_is_believed_only_where_it_is_too_large():
    app, _ = made(**SMALL)
    for said in ("4001", "9" * 5000):
        reply, seen = streamed(app, [b"x"] * 3, JSON | {"Content-Length": said})
        assert error(reply)[:2] == (413, "too_large") and seen == []
    reply, _ = streamed(app, [b"x" * 9000] * 3, JSON | {"Content-Length": "5"})
    assert error(reply)[:2] == (413, "too_large")
    for said in ("-1", "five", "٣"):
        content = json.dumps(body(["a"])).encode()
        assert values(streamed(app, [content], {**JSON, b"Content-Length": said.encode()})[0]) == [1]


def test_json_may_be_less_than_tensors():
    app, _ = made(**SMALL)
    assert error(asked(app, ["a" * 5000]))[:2] == (413, "too_large")
    assert values(
        called(app, "POST", "/score", **tensors([Sample(text="four", tokens=torch.zeros(1000).long())]))
    )
    reply = called(app, "POST", "/score", **tensors([Sample(text="a" * 5000)]))
    assert error(reply)[:2] == (400, "malformed") and "at most 4000 bytes" in error(reply)[2]


def test_samples_and_texts_are_counted():
    app, _ = made(limits=Limits(samples=2, characters=9))
    many = [called(app, "POST", "/score", **tensors([Sample(text="a")] * 3)), asked(app, ["a"] * 3)]
    long = [called(app, "POST", "/score", **tensors([Sample(text="a" * 10)])), asked(app, ["a" * 10])]
    assert all("must be 1 to 2, got 3" in error(reply)[2] for reply in many)
    assert all("at most 9 characters" in error(reply)[2] for reply in long)


def picture(data):
    item = {"sample": {"image_png": base64.b64encode(data).decode()}, "prompt": {"text": "x"}}
    return {"reward": "count", "items": [item]}


def test_a_picture_that_unpacks_to_much_is_refused_before_it_does():
    app, _ = made(limits=Limits(pixels=100))
    reply = called(app, "POST", "/score", json=picture(png(height=11, width=10)))
    assert error(reply)[:2] == (400, "malformed") and "at most 100 pixels, got 10 x 11" in error(reply)[2]
    stream = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(stream, "PNG")
    assert len(stream.getvalue()) < 200_000
    assert error(called(made()[0], "POST", "/score", json=picture(stream.getvalue())))[1] == "malformed"


def test_text_chunks_of_a_picture_do_not_unpack_to_much():
    data = png()
    text = b"comment\0\0" + zlib.compress(b"a" * 200_000_000)
    chunk = b"zTXt" + text
    bomb = data[:33] + len(text).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]
    assert error(called(made()[0], "POST", "/score", json=picture(bomb)))[1] == "malformed"


def test_many_pictures_share_one_limit():
    app, _ = made(limits=Limits(unpacked=4 * 3 * 16 * 2))
    one = base64.b64encode(png()).decode()
    item = {"sample": {"text": "a", "image_png": one}, "prompt": {"text": "x"}}
    replies = [called(app, "POST", "/score", json={"reward": "count", "items": [item] * n}) for n in (2, 3)]
    assert values(replies[0]) == [1, 1] and "at most 384 bytes as float32" in error(replies[1])[2]


def test_all_requests_together_have_a_bound():
    app, scorer = made(max_bytes=10_000, limits=Limits(body=4000, unpacked=4000), max_wait_ms=0)
    request = tensors([Sample(text="four", tokens=torch.zeros(400).long())])
    scorer.gate.clear()

    async def action():
        async with client(app) as caller:
            first = asyncio.create_task(caller.post("/score", **request))
            await until(scorer.inside.is_set)
            late = await caller.post("/score", **request)
            scorer.gate.set()
            await first
            return late, await caller.post("/score", **request)

    late, again = asyncio.run(action())
    assert error(late)[:2] == (429, "busy") and "at most 10000 bytes" in error(late)[2]
    assert values(again) == [4] and app.state.service.room.taken == 0


def test_one_that_trickles_is_not_waited_for():
    app, _ = made(read_seconds=0.1)

    async def content():
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    async def action():
        async with client(app) as caller:
            return await caller.post("/score", content=content(), headers=JSON)

    assert error(asyncio.run(action()))[:2] == (408, "too_slow")


@pytest.mark.parametrize("where", ["metadata", "messages"])
def test_depth_is_bounded_in_both_forms(where):
    deep = {"x": json.loads("[" * 100 + "]" * 100)}
    request = body(["a"])
    request["items"][0]["prompt"][where] = deep if where == "metadata" else [deep]
    assert "at most 64 levels" in error(called(made()[0], "POST", "/score", json=request))[2]
