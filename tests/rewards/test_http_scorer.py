"""Scorers of other people's servers, by configuration alone."""

import math
import re

import pytest
import torch
from chat_stand_in import ChatStandIn

from unirl_env.errors import ConfigError, ContractError
from unirl_env.media.pixels import load_picture
from unirl_env.rewards.external.http_scorer import HTTPScorer
from unirl_env.rewards.scoring import is_pointwise
from unirl_env.rewards.spec import build_scorer, needs_of
from unirl_env.types import Prompt, Sample

SAMPLES = [Sample(text="x" * n) for n in range(6)]
PROMPTS = [Prompt(f"prompt {n}", metadata={"weight": n, "tags": ["a"]}) for n in range(6)]


def by_length(body):
    return {"scores": [len(sample["text"]) for sample in body["samples"]]}


def test_a_batch_is_one_request_answered_in_its_order():
    with ChatStandIn(by_length) as server:
        scorer = build_scorer({"name": "http", "url": f"{server.url}/rate", "constants": {"model": "m"}})
        scores = scorer(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [0, 1, 2, 3, 4, 5] and scores.valid.all() and scores.parts == {}
    (body,) = server.seen
    assert body["model"] == "m" and body["samples"][2] == {"prompt": "prompt 2", "text": "xx"}
    assert not is_pointwise(scorer)
    assert is_pointwise(HTTPScorer("http://a.b", body="each"), HTTPScorer("http://a.b", pointwise=True))


def test_a_batch_may_be_cut_into_requests():
    with ChatStandIn(by_length) as server:
        scores = HTTPScorer(server.url, batch_size=4)(SAMPLES, PROMPTS)
    assert scores.value.tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(len(body["samples"]) for body in server.seen) == [2, 4]


def test_columns_and_paths_into_lists():
    def answer(body):
        rows = [{"out": {"good": len(text), "bad": [-len(text)]}} for text in body["inputs"]]
        return {"results": rows}

    with ChatStandIn(answer) as server:
        scorer = HTTPScorer(
            server.url,
            body="columns",
            fields={"inputs": "text", "weights": "metadata.weight", "meta": "metadata", "key": "id"},
            value="results.*.out.good",
            parts={"bad": "results.*.out.bad.0"},
        )
        scores = scorer(SAMPLES[:3], PROMPTS[:3])
    assert scores.value.tolist() == [0, 1, 2] and scores.parts["bad"].tolist() == [0, -1, -2]
    (body,) = server.seen
    assert body["weights"] == [0, 1, 2] and body["meta"][1] == {"weight": 1, "tags": ["a"]}
    assert body["key"] == ["prompt 0", "prompt 1", "prompt 2"]


def test_each_by_itself_asks_the_same_once_and_shows_pictures():
    def answer(body):
        return [load_picture(body["shown"]).mean().item()]

    pictures = [torch.full((3, 4, 5), level / 255) for level in (0.0, 51.0, 255.0)]
    broken = torch.full((3, 4, 5), math.inf)
    samples = [Sample(image=picture) for picture in (*pictures, broken, pictures[1])]
    with ChatStandIn(answer) as server:
        scorer = HTTPScorer(server.url, body="each", value="0", fields={"shown": "image"})
        scores = scorer(samples, [Prompt("a")] * 5)
    assert scores.valid.tolist() == [True, True, True, False, True] and len(server.seen) == 3
    assert scores.value[[0, 1, 2, 4]].tolist() == pytest.approx([0, 0.2, 1, 0.2])


def test_it_needs_what_it_sends():
    assert set(needs_of("http")) == {"text"}
    assert set(needs_of({"name": "http", "fields": ["prompt"]})) == set()
    assert set(needs_of({"name": "http", "fields": {"a": "image", "b": "text"}})) == {"image", "text"}
    with ChatStandIn() as server:
        with pytest.raises(ContractError, match=r"`Sample\.text` must be a text"):
            HTTPScorer(server.url)([Sample()], PROMPTS[:1])
        with pytest.raises(ContractError, match=r"`Prompt\.metadata\.size` must be there to be sent"):
            HTTPScorer(server.url, fields=["metadata.size"])(SAMPLES[:1], PROMPTS[:1])
        with pytest.raises(ContractError, match=r"`Prompt\.metadata` must be JSON"):
            HTTPScorer(server.url, fields=["metadata"])(SAMPLES[:1], [Prompt("a", metadata={"a": {1}})])
    assert server.seen == []


def test_numbers_that_are_none_are_invalid_and_counted_once(caplog):
    reply = b'{"scores": [1, null, NaN, 1e999, 2.5, 1e300], "sure": [1, null, 0, 1, 1, 1]}'
    with ChatStandIn(lambda body: reply) as server:
        scores = HTTPScorer(server.url, parts={"sure": "sure"})(SAMPLES, PROMPTS)
    assert scores.valid.tolist() == [True, False, False, False, True, False]
    assert scores.value[4] == 2.5 and torch.isnan(scores.parts["sure"][1]) and scores.parts["sure"][4] == 1
    assert len(caplog.records) == 1 and "failed on 4 of 6 samples" in caplog.text


def test_what_fails_leaves_the_others_their_scores(caplog):
    down = (500, {"detail": "out of memory"}, {})
    with ChatStandIn(lambda body: {"score": len(body["text"])}, [None, down, "reset", b"<html>"]) as server:
        scorer = HTTPScorer(server.url, body="each", attempts=1, max_concurrency=1)
        scores = scorer(SAMPLES, PROMPTS)
    assert scores.valid.tolist() == [True, False, False, False, True, True]
    assert scores.value[[0, 4, 5]].tolist() == [0, 4, 5]
    assert len(caplog.records) == 1 and "failed on 3 of 6 samples" in caplog.text
    for kind in ("1 x status 500", "1 x a lost connection", "1 x a reply that is no JSON"):
        assert kind in caplog.text


@pytest.mark.parametrize(
    "reply, words",
    [
        ({"scores": [1, 2]}, "must have 6 numbers at 'scores', got [1, 2]"),
        ({"scores": 1}, "must have 6 numbers at 'scores', got 1"),
        ({"score": [1] * 6}, "must have 'scores', got no 'scores' in ['score']"),
        ([1] * 6, "got no 'scores' in list"),
        ({"scores": ["1"] * 6}, "must be numbers, got '1'"),
        ({"scores": [True] * 6}, "must be numbers, got True"),
    ],
)
def test_replies_of_another_form_stop_a_run_that_never_had_a_right_one(reply, words):
    with ChatStandIn(lambda body: reply) as server:
        scorer = HTTPScorer(server.url)
        with pytest.raises(ConfigError, match=re.escape(words)):
            scorer(SAMPLES, PROMPTS)
        server.answer = by_length
        assert scorer(SAMPLES, PROMPTS).valid.all()
        server.answer = lambda body: reply
        assert not scorer(SAMPLES, PROMPTS).valid.any()


def test_the_reply_itself_may_be_the_list():
    with ChatStandIn(lambda body: [3, 4]) as server:
        assert HTTPScorer(server.url, value=".")(SAMPLES[:2], PROMPTS[:2]).value.tolist() == [3, 4]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"body": "form"}, "`body` must be one of"),
        ({"fields": ["video"]}, "A field must be one of"),
        ({"fields": []}, "`fields` must be a list or a mapping"),
        ({"fields": None}, "`fields` must be a list or a mapping"),
        ({"fields": "text"}, "`fields` must be a list or a mapping"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"constants": {"samples": 1}}, "`constants` must be names other than"),
        ({"parts": {"a": 3}}, "`value` must be a path"),
        ({"headers_env": {"X-Key": "UNIRL_NO_SUCH_VARIABLE"}}, "must hold the value of the header X-Key"),
        ({"url": "host/path"}, "`url` must be like http://host:port/path"),
        ({"url": "http://me:hidden@host:99999"}, "`url` must hold no user and no password"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        HTTPScorer(**{"url": "http://127.0.0.1:9", **options})
