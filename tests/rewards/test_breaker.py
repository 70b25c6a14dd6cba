"""The circuit breaker, by a clock that is set by hand."""

import threading

import pytest

from unirl_env.rewards.remote.replicas import CircuitBreaker


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(failures=3, cooldown=10.0, clock=clock)


def opened(breaker):
    for _ in range(breaker.failures):
        breaker.failed()
    return breaker


def test_a_closed_breaker_lets_everything_in(breaker):
    assert [breaker.enter() for _ in range(5)] == [True] * 5
    assert breaker.state == "closed" and breaker.wait() == 0.0


def test_it_opens_after_failures_in_a_row_only(breaker):
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"
    breaker.failed()
    breaker.failed()
    assert breaker.enter()
    breaker.failed()
    assert breaker.state == "open" and not breaker.enter()


def test_it_stays_open_for_the_cooldown(breaker, clock):
    opened(breaker)
    assert breaker.wait() == 10.0
    clock.now += 9.9
    assert breaker.state == "open" and not breaker.enter() and breaker.wait() == pytest.approx(0.1)
    clock.now += 0.1
    assert breaker.state == "half_open" and breaker.wait() == 0.0


def test_half_open_it_lets_one_probe_in_at_a_time(breaker, clock):
    opened(breaker)
    clock.now += 10
    assert [breaker.enter() for _ in range(3)] == [True, False, False]
    assert breaker.wait() > 0
    breaker.succeeded()
    assert breaker.state == "closed" and breaker.enter() and breaker.enter()


def test_a_failed_probe_opens_it_for_another_cooldown(breaker, clock):
    opened(breaker)
    clock.now += 10
    assert breaker.enter() and breaker.failed() is True
    assert breaker.state == "open" and not breaker.enter() and breaker.wait() == 10.0
    clock.now += 10
    assert breaker.enter()


def test_after_it_closed_it_counts_anew(breaker, clock):
    opened(breaker)
    clock.now += 10
    assert breaker.enter()
    breaker.succeeded()
    breaker.failed()
    breaker.failed()
    assert breaker.state == "closed"


def test_failures_of_requests_sent_before_it_opened_do_not_prolong_it(breaker, clock):
    opened(breaker)
    clock.now += 9
    assert breaker.failed() is False
    clock.now += 1
    assert breaker.enter()


def test_an_answer_to_an_old_request_closes_it(breaker):
    opened(breaker)
    breaker.succeeded()
    assert breaker.state == "closed"


def test_of_many_threads_one_is_the_probe(breaker, clock):
    opened(breaker)
    clock.now += 10
    start, let_in = threading.Barrier(16), []

    def ask():
        start.wait()
        if breaker.enter():
            let_in.append(threading.get_ident())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 1
