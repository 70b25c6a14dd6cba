"""Whose turn it is among replicas, and who is left alone."""

import threading
import time

import pytest

from unirl_env.rewards.remote.replicas import NoReplica, Replicas


@pytest.fixture
def three(clock):
    return Replicas(["a", "b", "c"], failures=2, cooldown=10.0, clock=clock)


def lose(replicas, *urls):
    for replica in replicas.all:
        if replica.url in urls:
            for _ in range(replica.breaker.failures):
                replicas.failed(replica)


def test_they_take_turns(three):
    assert [three.take().url for _ in range(7)] == list("abcabca")


def test_the_next_attempt_goes_to_another_one(three):
    first = three.all[0]
    assert "a" not in {three.take(after=first).url for _ in range(20)}
    assert Replicas(["a"], 2, 10.0).take(after=first).url == "a"


def test_one_that_failed_is_passed_over_until_its_probe_succeeds(three, clock):
    lose(three, "b")
    assert {three.take().url for _ in range(6)} == {"a", "c"}
    clock.now += 10
    taken = [three.take().url for _ in range(6)]
    assert taken.count("b") == 1  # the probe
    three.answered(three.all[1])
    assert sorted(three.take().url for _ in range(6)) == list("aabbcc")


def test_a_request_that_failed_before_goes_to_a_sound_one_rather_than_on_a_probe(three, clock):
    lose(three, "b")
    clock.now += 10
    assert {three.take(after=three.all[0]).url for _ in range(5)} == {"c"}


def test_one_that_asked_for_a_rest_gets_it(three, clock):
    three.answered(three.all[0], rest=3.0)
    assert {three.take().url for _ in range(6)} == {"b", "c"}
    three.answered(three.all[0], rest=1.0)
    clock.now += 2.9
    assert {three.take().url for _ in range(6)} == {"b", "c"}
    clock.now += 0.1
    assert {three.take().url for _ in range(6)} == {"a", "b", "c"}


def test_where_all_rest_it_waits():
    one = Replicas(["a"], 2, 10.0)
    one.answered(one.all[0], rest=0.15)
    began = time.monotonic()
    assert one.take().url == "a"
    assert 0.14 < time.monotonic() - began < 0.6


def test_who_waits_for_a_probe_is_served_when_it_succeeds():
    one = Replicas(["a"], 1, 0.05)
    lose(one, "a")
    time.sleep(0.06)
    probe, found = one.take(), []
    waiting = threading.Thread(target=lambda: found.append(one.take()))
    waiting.start()
    time.sleep(0.05)
    assert found == []
    one.answered(probe)
    waiting.join(1.0)
    assert found == [probe]


def test_who_waits_for_a_probe_is_told_when_it_fails():
    one = Replicas(["a"], 1, 0.05)
    lose(one, "a")
    time.sleep(0.06)
    probe, told = one.take(), []

    def ask():
        try:
            one.take()
        except NoReplica as error:
            told.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    time.sleep(0.05)
    one.failed(probe, cause="it burns")
    waiting.join(1.0)
    assert [str(error) for error in told] == ["it burns"]


def test_who_gives_up_gets_none():
    one = Replicas(["a"], 1, 1000.0)
    lose(one, "a")
    began = time.monotonic()
    assert one.take(given_up=lambda: time.monotonic() > began + 0.05) is None
    assert time.monotonic() - began < 1.0
