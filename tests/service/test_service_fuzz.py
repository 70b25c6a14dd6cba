"""Whatever comes in, the answer is one of those that are described, and never a mistake of ours."""

import asyncio
import base64
import json
import struct

import httpx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from service_cases import TOKEN, Counting, called, error, made, png, tensors

from unirl_env.errors import WireError
from unirl_env.rewards.wire import TENSORS, Limits, read_png
from unirl_env.types import Prompt, Sample

schemathesis = pytest.importorskip("schemathesis")

GOOD = tensors(
    [
        Sample(image=torch.rand(3, 4, 5), text="four", tokens=torch.arange(3)),
        Sample(text="x", truncated=True),
    ],
    [Prompt("a", metadata={"n": [1, None]}, images=(torch.zeros(3, 2, 2),)), Prompt("b")],
)["content"]
PNG = png(height=7, width=9)
SMALL = Limits(body=2**20, samples=8, pixels=10_000, unpacked=2**20, words=2**18)
APP, _ = made({"count": Counting()}, limits=SMALL, max_wait_ms=0)
LOCKED, _ = made({"count": Counting()}, token=TOKEN, max_wait_ms=0)

schemathesis.openapi.format("png-base64", st.just(base64.b64encode(PNG).decode()))
schemathesis.openapi.media_type(TENSORS, st.one_of(st.just(GOOD), st.binary(max_size=200)))
OPEN = schemathesis.openapi.from_asgi("/openapi.json", APP)
SHUT = schemathesis.openapi.from_asgi("/openapi.json", LOCKED)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def judged(case, **options):
    """All checks of schemathesis but one: data that fit the schema may still be no samples of this reward."""
    if isinstance(case.body, dict) and isinstance(case.body.get("reward"), str):
        case.body["reward"] = "count"  # a name that was made up would end at 404
    response = case.call_and_validate(
        excluded_checks=[schemathesis.checks.positive_data_acceptance], **options
    )
    assert "Traceback" not in response.text


@OPEN.parametrize()
@FEW
def test_every_answer_is_one_that_is_described(case):
    judged(case)


@SHUT.parametrize()
@FEW
def test_with_a_token_no_way_leads_around_it(case):
    judged(case, headers={"Authorization": f"Bearer {TOKEN}"})


def refused_or_answered(app, content, kind=TENSORS):
    reply = called(app, "POST", "/score", content=content, headers={"Content-Type": kind})
    if reply.status_code != 200:
        assert error(reply)[0] in (400, 404, 413, 422), reply.text
    return reply


def damaged(good):
    """`good` with bytes changed, cut off, put in, or with a length that lies."""

    @st.composite
    def bytes_(draw):
        data = bytearray(good)
        for _ in range(draw(st.integers(1, 6))):
            place = draw(st.integers(0, max(len(data) - 1, 0)))
            kind = draw(st.integers(0, 4))
            if kind == 0 and data:
                data[place] = draw(st.integers(0, 255))
            elif kind == 1:
                data = data[:place]
            elif kind == 2:
                data[place:place] = draw(st.binary(max_size=20))
            elif kind == 3:
                data[place : place + 4] = struct.pack(">I", draw(st.integers(0, 2**32 - 1)))
            else:
                data[place : place + 8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1)))
        return bytes(data)

    return bytes_()


@given(st.one_of(st.binary(max_size=300), damaged(GOOD)))
@example(struct.pack("<Q", 2**63) + b"{}")
@example(struct.pack("<Q", 100_000_001) + b"{" * 100)
@settings(FEW, max_examples=250)
def test_tensors_that_are_damaged_are_refused(content):
    refused_or_answered(APP, content)


NAMES = st.sampled_from(
    [
        "id",
        "reward",
        "items",
        "sample",
        "prompt",
        "text",
        "image_png",
        "tokens",
        "metadata",
        "messages",
        "count",
        "x",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=12,
)


@given(VALUES)
@FEW
def test_json_of_any_shape_is_refused_or_answered(value):
    refused_or_answered(APP, json.dumps(value).encode(), "application/json")


@given(st.one_of(st.binary(max_size=200), damaged(PNG)))
@example(PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:])
@example(PNG[:16] + struct.pack(">II", 0, 0) + PNG[24:])
@settings(FEW, max_examples=400)
def test_pictures_that_are_damaged_are_refused(data):
    try:
        picture = read_png(data, 10_000)
    except WireError as refusal:
        assert "Traceback" not in str(refusal)
    else:
        assert picture.shape[0] == 3 and 0 <= picture.min() and picture.max() <= 1


@given(st.binary(max_size=60))
@FEW
def test_no_guess_at_the_token_is_let_in(given_token):
    async def action():
        transport = httpx.ASGITransport(LOCKED)
        headers = [(b"Authorization", b"Bearer " + given_token)]
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as caller:
            return await caller.get("/rewards", headers=headers)

    assert error(asyncio.run(action()))[0] == 401
