"""Requests with retries, limits and time-outs, against a server that fails on demand."""

import logging
import threading
import time
from email.utils import formatdate

import pytest
import torch
from chat_stand_in import ChatStandIn

from unirl_env.errors import ConfigError, WireError
from unirl_env.http import CallFailed
from unirl_env.rewards.external.endpoint import FIRST_PAUSE, Endpoint, warn_of_failures
from unirl_env.rewards.external.spending import RateLimit

BUSY = (429, {"error": {"message": "slow down"}}, {"Retry-After": "7"})
DOWN = (503, b"<html>Service Unavailable</html>", {})


def echo(body):
    return {"back": body["n"]}


def made(url, pause=None, limit=None, **settings):
    calls = Endpoint(url, **settings)
    calls.pause, calls.limit = pause, limit or calls.limit
    return calls


def ask(calls, count=1, read=lambda reply: reply["back"], **options):
    return calls.together(lambda n, turn: calls.post({"n": n}, turn, read, **options), range(count))


def outcome(faults, **settings):
    """What one request comes to that meets these faults, the pauses and the number of attempts."""
    pauses = []
    with ChatStandIn(echo, faults) as server:
        (result,) = ask(made(server.url, **{"pause": pauses.append, "timeout": 0.5, **settings}))
        return result, [pause for pause in pauses if pause], len(server.seen)


@pytest.mark.parametrize(
    "fault",
    [DOWN, (500, {"detail": "oops"}, {}), (408, {}, {}), BUSY, "reset", "cut", "drip", 5.0, b"<html>", b"{"],
    ids=lambda fault: repr(fault)[:12],
)
def test_what_passes_is_tried_again(fault):
    result, pauses, asked = outcome([fault, fault, None])
    assert result == 0 and asked == 3 and len(pauses) <= 2 + (fault == BUSY) * 2


@pytest.mark.parametrize(
    "fault, kind",
    [
        (DOWN, "status 503"),
        (BUSY, "status 429"),
        ("reset", "a lost connection"),
        ("cut", "a lost connection"),
        ("drip", "time-out"),
        (5.0, "time-out"),
        (b"<html>", "a reply that is no JSON"),
        (b"[" * 9999, "a reply that is no JSON"),
    ],
    ids=lambda each: repr(each)[:12],
)
def test_what_does_not_pass_fails_after_all_attempts(fault, kind):
    result, _, asked = outcome([fault] * 3, attempts=3)
    assert isinstance(result, CallFailed) and result.kind == kind and asked == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 301])
def test_a_refusal_is_not_tried_again_and_comes_in_the_servers_words(status):
    with ChatStandIn(
        echo, [(status, {"error": {"message": "no such model: m"}}, {"Location": "/"})]
    ) as server:
        with pytest.raises(ConfigError, match=f"got status {status}: 'no such model: m'"):
            ask(made(server.url))
        assert len(server.seen) == 1


def test_a_refusal_of_one_request_among_accepted_ones_concerns_that_one():
    def pick(body):
        return echo(body)

    refused = (400, {"error": {"message": "context too long"}}, {})
    with ChatStandIn(pick, [None, refused]) as server:
        calls = made(server.url, max_concurrency=1)
        results = ask(calls, 3)
        assert results[0] == 0 and results[2] == 2 and results[1].kind == "status 400"
        server.faults = [refused]
        assert ask(calls)[0].kind == "status 400"
        server.faults = [(401, {"message": "expired"}, {})]
        with pytest.raises(ConfigError, match="expired"):
            ask(calls)


def test_the_server_says_when_to_come_back():
    result, pauses, _ = outcome([BUSY])
    assert result == 0 and pauses[0] == 7 and all(6 < pause <= 7 for pause in pauses)
    _, pauses, _ = outcome([(503, {}, {"Retry-After": formatdate(time.time() + 20, usegmt=True)})])
    assert 18 < pauses[0] <= 20
    for odd in ("soon", "-5", "nan", "inf"):
        _, pauses, _ = outcome([(503, {}, {"Retry-After": odd})])
        assert pauses[0] <= FIRST_PAUSE


def test_pauses_are_random_below_a_bound_that_doubles():
    pauses = []
    with ChatStandIn(echo, [*[DOWN] * 4, None] * 30) as server:
        calls = made(server.url, max_concurrency=1, pause=pauses.append)
        assert ask(calls, 30) == list(range(30))
    rounds = torch.tensor([pause for pause in pauses if pause]).reshape(30, 4) / FIRST_PAUSE
    bounds = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert (rounds <= bounds).all()
    assert (rounds.amax(0) > 0.7 * bounds).all() and (rounds.amin(0) < 0.3 * bounds).all()


def test_a_wait_that_does_not_fit_is_not_begun():
    started = time.monotonic()
    with ChatStandIn(echo, [(429, {}, {"Retry-After": "3600"})] * 9) as server:
        results = ask(made(server.url, batch_timeout=1.0), 3)
    assert time.monotonic() - started < 3
    assert all(result.kind in ("status 429", "no time left") for result in results)


def test_a_batch_ends_in_time_and_keeps_what_came():
    started = time.monotonic()
    with ChatStandIn(echo, [None, 9.0, 9.0, 9.0]) as server:
        results = ask(made(server.url, batch_timeout=0.7, max_concurrency=2), 5)
        assert time.monotonic() - started < 2
    assert 0 in results or 1 in results
    assert sum(isinstance(result, CallFailed) for result in results) >= 3


def test_order_is_kept_and_no_more_go_at_a_time_than_allowed():
    with ChatStandIn(echo, seconds=0.02) as server:
        calls = made(server.url, max_concurrency=3)
        assert ask(calls, 20) == list(range(20))
        assert server.most == 3
        assert ask(made(server.url, max_concurrency=16), 20) == list(range(20))
        assert server.most > 8


def test_many_faults_at_once_lose_and_double_nothing():
    faults = [DOWN, "reset", None, b"<html>", "cut", None, (500, {}, {}), None] * 4
    with ChatStandIn(echo, faults) as server:
        results = ask(made(server.url, attempts=12, pause=lambda seconds: None), 30)
        failed = sum(fault is not None for fault in faults)
        assert results == list(range(30)) and len(server.seen) == 30 + failed


def test_a_secret_is_sent_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("TEST_JUDGE_TOKEN", "sk-very-secret")
    monkeypatch.setenv("TEST_JUDGE_TEAM", "team-secret")
    words = {"error": {"message": "Incorrect API key: Bearer sk-very-secret of team-secret"}}
    options = {"token_env": "TEST_JUDGE_TOKEN", "headers_env": {"X-Team": "TEST_JUDGE_TEAM"}}
    caplog.set_level(logging.DEBUG)
    with ChatStandIn(echo, [(500, words, {}), (401, words, {})]) as server:
        calls = made(server.url, attempts=1, **options)
        (failed,) = ask(calls)
        with pytest.raises(ConfigError) as refused:
            ask(calls)
    assert server.heads[0]["authorization"] == "Bearer sk-very-secret"
    assert server.heads[0]["x-team"] == "team-secret"
    warn_of_failures("judge", [failed], 1)
    for shown in (str(failed), str(refused.value), repr(calls), caplog.text):
        assert "very-secret" not in shown and "team-secret" not in shown
    with pytest.raises(ConfigError, match=r"'Ä b' *") as odd:
        made("http://a.b", headers_env={"Ä b": "TEST_JUDGE_TEAM"})
    assert "team-secret" not in str(odd.value)


def test_a_proxy_is_used_if_its_variable_is_named(monkeypatch):
    with ChatStandIn(echo) as server:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert ask(made(server.url)) == [0]
        monkeypatch.setenv("TEST_PROXY", server.url)
        assert ask(made("http://judge.invalid/x", proxy_env="TEST_PROXY")) == [0]
        assert server.heads[1]["host"] == "judge.invalid"
        monkeypatch.setenv("TEST_PROXY", "no address")
        with pytest.raises(ConfigError, match="the proxy must be"):
            made(server.url, proxy_env="TEST_PROXY")


def test_a_reply_of_another_form_is_the_settings_fault_until_one_was_right():
    def read(reply):
        if reply["back"] > 1:
            raise WireError("no number")
        return reply["back"]

    with ChatStandIn(lambda body: {"back": body["n"] + server.shift}) as server:
        calls, server.shift = made(server.url), 5
        with pytest.raises(ConfigError, match="a reply of another form: no number"):
            ask(calls, 2, read)
        server.shift = 1
        right, wrong = ask(calls, 2, read)
        assert right == 1 and wrong.kind == "a reply of another form"
        assert len(server.seen) == 4


def test_a_fault_of_our_own_is_not_hidden():
    with ChatStandIn(echo) as server:
        with pytest.raises(ZeroDivisionError):
            ask(made(server.url), 3, lambda reply: 1 // 0)


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self):
        self.now, self.lock = 100.0, threading.Lock()

    def __call__(self):
        return self.now


def test_requests_are_spread_over_the_minute():
    clock = Clock()
    limit = RateLimit(requests_per_minute=30, clock=clock)
    sent = []
    for _ in range(90):
        clock.now += limit.reserve()
        sent.append(clock.now)
    assert sent[0] == 100 and sent[-1] == pytest.approx(100 + 89 * 2)
    assert max(sum(start <= time < start + 60 - 1e-6 for time in sent) for start in sent) == 30
    clock.now += 1000  # what was not used in the meantime is not saved up
    assert [limit.reserve(), limit.reserve()] == pytest.approx([0, 2])


def test_tokens_are_reserved_and_given_back():
    clock = Clock()
    limit = RateLimit(tokens_per_minute=6000, clock=clock)
    assert limit.reserve(1000) == 0
    assert limit.reserve(1000) == pytest.approx(10)
    assert limit.reserve(1000, most=5) is None
    limit.give_back(1500)
    assert limit.reserve(0) == pytest.approx(5)
    limit.hold(30)
    assert limit.reserve(0) == pytest.approx(30)
    assert RateLimit(clock=clock).reserve(10**9) == 0


def test_the_limit_holds_for_attempts_as_for_requests():
    with ChatStandIn(echo, [DOWN, None, None]) as server:
        pauses = []
        limit = RateLimit(600, clock=Clock())  # which stands still: places 0.1 s apart
        calls = made(server.url, limit=limit, max_concurrency=1, pause=pauses.append)
        assert ask(calls, 2) == [0, 1]
    first, _, second, third = pauses
    assert (first, second, third) == pytest.approx((0, 0.1, 0.2))
