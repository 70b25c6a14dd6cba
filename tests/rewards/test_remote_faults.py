"""The remote scorer against everything that goes wrong between two processes, over real sockets."""

import logging
import threading
import time

import pytest
from faulty_service import FaultyService

from unirl_env.errors import ConfigError, ContractError, ScorerError, ServiceLost
from unirl_env.rewards import RemoteScorer, score_safely
from unirl_env.types import Prompt, Sample


def texts(count):
    return [Sample(text=str(i)) for i in range(count)], [Prompt(f"p{i}") for i in range(count)]


def made(*services, **options):
    options = {"request_size": 2, "timeout": 2.0, "backoff": 0.02, "cooldown": 0.2, **options}
    return RemoteScorer([service.url for service in services], "number", **options)


def assert_right(scores):
    assert scores.value.tolist() == list(range(len(scores))) and scores.valid.all()
    assert scores.parts["half"].tolist() == [i / 2 for i in range(len(scores))]


# An attempt that fails is made again, and the work is done once.

PASSING = {
    **{str(fault): fault for fault in ("reset", "cut", "lost", "html", "no json", 500, 502, 503, 504, 408)},
    "another id": lambda reply: {**reply, "id": "of another request"},
    "another reward": lambda reply: {**reply, "reward": "another"},
    "no scores": lambda reply: {"id": reply["id"], "reward": reply["reward"]},
    "a list": lambda reply: [],
    "too few": lambda reply: reply | {"scores": reply["scores"] | {"value": reply["scores"]["value"][:1]}},
    "too many": lambda reply: reply | {"scores": reply["scores"] | {"valid": [True] * 3}},
    "valid nothing": lambda reply: (
        reply | {"scores": reply["scores"] | {"value": [None, 0.0], "valid": [True, True]}}
    ),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_leaves_no_trace_in_the_scores(fault):
    with FaultyService([fault, None, fault]) as service:
        scorer = made(service, concurrency=2)
        assert_right(scorer(*texts(6)))
        assert scorer.counts["failures"] == 2 and scorer.counts["attempts"] == 5 == len(service.asked)
        assert len(set(service.asked)) == 3  # one id for all attempts at the same work
        assert set(service.computed.values()) == {1}


def test_a_reply_that_was_lost_does_not_make_the_service_work_twice():
    with FaultyService(["lost", "lost", "cut"]) as service:
        assert_right(made(service)(*texts(2)))
        assert len(service.asked) == 4 and list(service.computed.values()) == [1]


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_who_is_too_slow_is_left_for_another_replica(fault):
    with FaultyService(always=fault) as slow, FaultyService() as quick:
        scorer = made(slow, quick, timeout=0.25, request_size=1, concurrency=4)
        began = time.monotonic()
        assert_right(scorer(*texts(6)))
        assert time.monotonic() - began < 1.5
        assert scorer.counts["failures"] == 3 and slow.asked and quick.asked


def test_a_draining_replica_is_left_alone_for_as_long_as_it_asks():
    with FaultyService(always=(503, "30")) as draining, FaultyService() as other:
        scorer = made(draining, other, request_size=1, concurrency=1)
        assert_right(scorer(*texts(8)))
        assert len(draining.asked) == 1 and len(other.asked) == 8


def test_a_full_service_is_asked_again_when_it_said_and_that_is_no_failure():
    with FaultyService([(429, "0.15")] * 3) as service:
        scorer = made(service, attempts=1, failures=1)
        began = time.monotonic()
        assert_right(scorer(*texts(2)))
        assert time.monotonic() - began > 0.45
        assert scorer.counts == {"attempts": 4, "full": 3}


def test_a_service_that_stays_full_is_given_up_after_the_timeout():
    with FaultyService(always=(429, "0")) as service:
        scorer = made(service, timeout=0.3)
        began = time.monotonic()
        with pytest.raises(ServiceLost, match="answered 429: come again"):
            scorer(*texts(2))
        assert 0.3 < time.monotonic() - began < 1.5
        assert len(service.asked) > 3


# Refusals that do not pass are said at once.


@pytest.mark.parametrize(
    "status, error, words",
    [
        (400, ConfigError, "got 400: the stand-in says 400; try the same version"),
        (401, ConfigError, "got 401: the stand-in says 401; try to set .*UNIRL_SERVICE_TOKEN"),
        (404, ConfigError, "got 404: the stand-in says 404; try a reward that the service lists"),
        (409, ConfigError, "got 409"),
        (415, ConfigError, "got 415"),
        (302, ConfigError, "got 302"),
        (422, ContractError, "can judge them, got 422: the stand-in says 422"),
    ],
)
def test_a_refusal_is_raised_and_not_repeated(status, error, words):
    with FaultyService(always=status) as service, FaultyService() as other:
        scorer = made(service, other, concurrency=1)
        with pytest.raises(error, match=words):
            score_safely(scorer, *texts(8))
        assert len(service.asked) == 1 and len(other.asked) <= 1


def test_a_refusal_does_not_wait_for_the_requests_under_way():
    with FaultyService(["slow", 404]) as service:
        scorer = made(service, concurrency=2)
        began = time.monotonic()
        with pytest.raises(ConfigError, match="got 404"):
            scorer(*texts(4))
        assert time.monotonic() - began < 1.3


def test_requests_that_are_too_large_are_sent_in_halves(caplog):
    with FaultyService(most_samples=2) as service:
        scorer = made(service, request_size=7)
        for _ in range(2):
            assert_right(scorer(*texts(7)))
        assert sorted(service.sizes) == sorted([7, 4, 3, 2, 2, 2, 1] * 2)
        assert len(set(service.asked)) == 14  # halves are other requests
        assert set(service.computed.values()) == {1}
    assert caplog.text.count("are sent in halves; try a smaller `request_size`") == 1


def test_what_cannot_be_halved_is_refused():
    with FaultyService(most_samples=0) as service:
        with pytest.raises(ContractError, match=r"small enough for the service, got \d+ bytes for 1 sample"):
            made(service)(*texts(4))


# What fails for good.


def test_samples_without_an_answer_are_invalid_and_the_others_keep_their_scores(caplog):
    with FaultyService(["reset", "reset"]) as service:
        scorer = made(service, attempts=2, concurrency=1)
        with caplog.at_level(logging.WARNING):
            scores = scorer(*texts(6))
        assert scores.valid.tolist() == [False] * 2 + [True] * 4
        assert scores.value[:2].isnan().all() and scores.value[2:].tolist() == [2.0, 3.0, 4.0, 5.0]
        assert scores.parts["half"][:2].isnan().all() and scores.parts["half"][2:].tolist() == [
            1,
            1.5,
            2,
            2.5,
        ]
        assert scorer.counts["invalid"] == 2
    assert len(caplog.records) == 1
    assert "no scores of `number` for 2 of 6 samples" in caplog.text and service.url in caplog.text


def test_a_dead_service_fails_as_a_whole_and_is_not_asked_sample_by_sample(caplog):
    with FaultyService() as one, FaultyService() as two:
        scorer = made(one, two, attempts=3, failures=100)
    with pytest.raises(ServiceLost, match=r"got no scores of `number` for 8 samples: .*Connection refused"):
        scorer(*texts(8))
    assert scorer.counts["attempts"] == 12
    began = time.monotonic()
    scores = score_safely(scorer, *texts(8))
    assert not scores.valid.any() and scores.value.isnan().all() and len(scores) == 8
    assert scorer.counts["attempts"] == 24 and time.monotonic() - began < 1.0
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    with pytest.raises(ScorerError, match=r"`number` must score 8 samples, got ServiceLost"):
        score_safely(scorer, *texts(8), on_error="raise")


# The breaker.


def test_a_replica_that_fails_again_and_again_is_left_alone_and_taken_back():
    with FaultyService(["reset"] * 3) as weak, FaultyService() as sound:
        scorer = made(weak, sound, request_size=1, concurrency=1, failures=3, cooldown=0.3)
        assert_right(scorer(*texts(20)))
        assert len(weak.asked) == 3  # and not one of the later ones
        time.sleep(0.35)
        assert_right(scorer(*texts(20)))
        assert len(weak.asked) == 3 + 10
        assert scorer.counts["failures"] == 3


def test_where_all_are_left_alone_a_request_waits_for_the_one_that_recovers():
    with FaultyService(["reset"] * 3) as service:
        scorer = made(service, failures=2, cooldown=0.15, attempts=5, concurrency=4)
        assert_right(scorer(*texts(8)))
        assert scorer.counts["failures"] == 3


def test_where_all_stay_dead_the_end_comes_after_the_attempts():
    with FaultyService() as service:
        scorer = made(service, failures=2, cooldown=0.1, attempts=4, concurrency=8)
    began = time.monotonic()
    with pytest.raises(ServiceLost, match="Connection refused"):
        scorer(*texts(16))
    assert 0.1 < time.monotonic() - began < 1.5


def test_several_threads_may_share_one():
    with FaultyService(["reset", None, 503, None, "cut"]) as service:
        scorer, found = made(service, request_size=1), []
        threads = [threading.Thread(target=lambda: found.append(scorer(*texts(5)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for scores in found:
            assert_right(scores)
