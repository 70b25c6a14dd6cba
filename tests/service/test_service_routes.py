"""Every route, and every way to be refused."""

import asyncio
import json
import re
import threading
import time

import httpx
import pytest
import torch
from service_cases import TOKEN, Counting, asked, body, called, error, made, metric, png64, tensors, values

from unirl_env.errors import ConfigError
from unirl_env.service.app import create_app
from unirl_env.service.service_settings import ServiceSettings
from unirl_env.types import Sample

SUM = {"name": "weighted_sum", "parts": {"template": 1, "shapes": 0.5}}
JSON = {"Content-Type": "application/json"}


def posted(app, content, headers=JSON):
    return called(app, "POST", "/score", content=content, headers=headers)


def test_scores_come_back_in_order_with_their_parts():
    app, _ = made()
    reply = asked(app, ["a", "bbb", "cc"], id="7")
    assert reply.json() == {
        "id": "7",
        "reward": "count",
        "scores": {"value": [1.0, 3.0, 2.0], "parts": {"company": [3.0] * 3}, "valid": [True] * 3},
    }
    assert values(called(app, "POST", "/score", **tensors([Sample(text="four")]))) == [4.0]


def test_what_a_scorer_cannot_do_is_data():
    app, _ = made()
    reply = asked(app, ["boom", "four"])
    assert values(reply) == [None, 4.0] and reply.json()["scores"]["valid"] == [False, True]
    assert "secret" not in reply.text
    assert metric(app, "invalid_total", reward="count") == 1

    class Exits(Counting):
        def __call__(self, samples, prompts):
            raise SystemExit(3)

    app, _ = made({"exits": Exits()})
    assert values(asked(app, ["a"], reward="exits")) == [None]
    assert values(asked(app, ["a"], reward="exits")) == [None]  # its thread is still there


def test_the_rewards_are_described():
    app = create_app(ServiceSettings(rewards={"len": {"name": "linear"}, "both": SUM}))
    assert called(app, "GET", "/rewards").json() == {
        "protocol": 1,
        "rewards": [
            {"name": "len", "scorer": "linear", "needs": ["latent"], "pointwise": True},
            {"name": "both", "scorer": "weighted_sum", "needs": ["image"], "pointwise": True},
        ],
    }


def test_health_says_whether_requests_are_taken():
    app, _ = made(token=TOKEN)
    assert called(app, "GET", "/health").json()["status"] == "ok"
    app.state.service.drain()
    reply = called(app, "GET", "/health")
    assert (reply.status_code, reply.json()["status"]) == (503, "draining")
    reply = called(app, "POST", "/score", json=body(["a"]), headers={"Authorization": f"Bearer {TOKEN}"})
    assert error(reply)[:2] == (503, "draining") and int(reply.headers["Retry-After"]) > 0


def test_a_call_that_does_not_end_is_bad_health_until_it_ends():
    app, scorer = made(stuck_seconds=0.2)
    scorer.gate.clear()
    asking = threading.Thread(target=asked, args=(app, ["a"]))
    asking.start()
    assert scorer.inside.wait(5)
    time.sleep(0.25)
    reply = called(app, "GET", "/health")
    assert (reply.status_code, reply.json()["status"]) == (503, "stuck")
    assert metric(app, "call_seconds", reward="count") > 0.2
    scorer.gate.set()
    asking.join()
    assert called(app, "GET", "/health").json()["status"] == "ok"
    assert metric(app, "call_seconds", reward="count") == 0


@pytest.mark.parametrize("given", ["", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x"])
@pytest.mark.parametrize("route", [("POST", "/score"), ("GET", "/rewards"), ("GET", "/metrics")])
def test_without_the_token_nothing_is_told(route, given):
    app, scorer = made(token=TOKEN)
    reply = called(app, *route, headers={"Authorization": given} if given else {}, content=b"x")
    assert error(reply)[:2] == (401, "unauthorized") and reply.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN not in reply.text and not scorer.calls


def test_with_the_token_everything_is():
    app, _ = made(token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert values(called(app, "POST", "/score", json=body(["a"]), headers=headers)) == [1.0]
        assert called(app, "GET", "/rewards", headers=headers).status_code == 200
        assert called(app, "GET", "/metrics", headers=headers).status_code == 200
    assert called(app, "GET", "/openapi.json").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Type": "text/plain"}, {"Content-Type": "image/png"}, JSON | {"Content-Encoding": "gzip"}],
)
def test_other_content_types_are_refused(headers):
    assert error(posted(made()[0], b"{}", headers))[:2] == (415, "unknown_type")


def test_the_content_type_may_have_parameters():
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert values(posted(made()[0], json.dumps(body(["a"])), headers)) == [1.0]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"reward": NaN}', "must be finite"),
        (b'{"reward": [-Infinity]}', "must be finite"),
        (b'{"reward": 1e999}', "must be finite"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "at most 64 levels"),
    ],
)
def test_what_is_no_json_is_malformed(content, words):
    status, code, message = error(posted(made()[0], content))
    assert (status, code) == (400, "malformed") and words in message


@pytest.mark.parametrize("sample", ["image_png", "pictures_png", "video_png"])
@pytest.mark.parametrize("picture", ["", "#", "aaaa", "iVBORw0KGgo="])
def test_pictures_that_are_none_are_malformed(sample, picture):
    item = {"sample": {sample: picture if sample == "image_png" else [picture]}, "prompt": {"text": "x"}}
    reply = posted(made()[0], json.dumps({"reward": "count", "items": [item]}))
    assert error(reply)[:2] == (400, "malformed")


def test_frames_must_have_one_size():
    item = {"sample": {"video_png": [png64(), png64(height=5)]}, "prompt": {"text": "x"}}
    reply = posted(made()[0], json.dumps({"reward": "count", "items": [item]}))
    assert "one size, got [(4, 4), (5, 4)]" in error(reply)[2]


@pytest.mark.parametrize(
    "content, words",
    [
        ([], "`the request`"),
        ({}, "`reward`: Field required; `items`: Field required"),
        ({"reward": "count", "items": []}, "`items`: List should have at least 1 item"),
        ({"reward": 3, "items": [{"sample": {}}]}, "`reward`: .* `items\\[0\\].prompt`"),
        (body(["a"]) | {"path": "/etc/passwd"}, "`path`: Extra inputs are not permitted"),
        (body(["a"]) | {"id": "x" * 201}, "`id`: String should have at most 200"),
        ({"reward": "count", "items": [{"sample": {"image": "x"}, "prompt": {"text": "x"}}] * 9}, "6 more"),
        (
            {"reward": "count", "items": [{"sample": {"tokens": [2**70]}, "prompt": {"text": "x"}}]},
            "less than",
        ),
    ],
)
def test_what_does_not_fit_the_schema_is_named(content, words):
    status, code, message = error(posted(made()[0], json.dumps(content)))
    assert (status, code) == (422, "invalid")
    assert re.search(words, message), message


def test_an_unknown_reward_is_told_of_the_known_ones():
    assert error(asked(made()[0], ["a"], reward="cuont"))[2].startswith(
        "`reward` must be one of ['count'], got 'cuont'; try 'count'"
    )
    assert error(asked(made()[0], ["a"], reward="x" * 10_000))[:2] == (404, "unknown_reward")


def test_samples_that_cannot_be_judged_are_the_askers_mistake():
    app, _ = made()
    expected = (422, "cannot_judge", "`Sample.text` must be there; try another sample.")
    assert error(asked(app, ["a", None])) == expected
    picture = called(app, "POST", "/score", **tensors([Sample(image=torch.rand(3, 4, 4))]))
    assert error(picture) == expected


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
        ("POST", "/score/", 404),
        ("GET", "/score", 405),
        ("PUT", "/score", 405),
        ("POST", "/health", 405),
        ("DELETE", "/rewards", 405),
        ("GET", "/..%2f..%2fetc/passwd", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_same_form(method, path, status):
    reply = called(made()[0], method, path)
    assert error(reply)[0] == status
    assert status != 405 or reply.headers["Allow"]


def test_a_mistake_of_ours_tells_nothing(monkeypatch):
    app, _ = made()
    monkeypatch.setattr(app.state.service, "described", lambda: 1 / 0)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def action():
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as caller:
            return await caller.get("/rewards")

    assert error(asyncio.run(action()))[:2] == (500, "mistake")


def test_metrics_count_what_happened():
    app, _ = made()
    asked(app, ["a", "boom"])
    asked(app, [None])
    asked(app, ["a"], reward="other")
    assert metric(app, "requests_total", reward="count", status="200") == 1
    assert metric(app, "requests_total", reward="count", status="422") == 1
    assert metric(app, "requests_total", reward="", status="404") == 1
    assert metric(app, "samples_total", reward="count") == 2
    assert metric(app, "batch_samples_sum", reward="count") == 2
    assert metric(app, "scoring_seconds_count", reward="count") == 1
    assert metric(app, "request_seconds_count", reward="count") == 2
    reply = called(app, "GET", "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'unirl_service_waiting_samples{reward="count"} 0.0' in reply.text


def test_two_apps_count_apart():
    one, two = made()[0], made()[0]
    asked(one, ["a"])
    assert metric(two, "samples_total", reward="count") == 0


def test_scorers_must_be_scorers():
    with pytest.raises(ConfigError, match="Reward `x` must be callable"):
        create_app(ServiceSettings(), scorers={"x": 3})
