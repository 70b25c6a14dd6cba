"""Services that are killed: processes of their own, ended by SIGKILL while requests are under way."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unirl_env.rewards import RemoteScorer
from unirl_env.types import Prompt, Sample

PROGRAM = Path(__file__).with_name("faulty_service.py")


class Service:
    """A stand-in in a process."""

    def __init__(self, port=0, delay=0.0):
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(PROGRAM), "--port", str(port), "--delay", str(delay)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.wait(5)
        self.process.stdout.close()


@pytest.fixture
def start():
    running = []

    def started(**options):
        running.append(Service(**options))
        return running[-1]

    yield started
    for service in running:
        if service.process.poll() is None:
            service.kill()


def texts(count):
    return [Sample(text=str(i)) for i in range(count)], [Prompt(f"p{i}") for i in range(count)]


def made(*services, **options):
    options = {"request_size": 1, "timeout": 2.0, "backoff": 0.02, "cooldown": 0.3, **options}
    return RemoteScorer([service.url for service in services], "number", **options)


def after(scorer, attempts, act):
    """Do `act` when so many attempts were made."""

    def wait():
        while scorer.counts["attempts"] < attempts:
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_replica_killed_in_the_middle_of_a_batch_costs_no_score(start):
    one, two = start(delay=0.1), start(delay=0.1)
    scorer = made(one, two, concurrency=8)
    killer = after(scorer, 12, one.kill)
    scores = scorer(*texts(32))
    killer.join(5)
    assert one.process.poll() is not None
    assert scores.value.tolist() == list(range(32)) and scores.valid.all()
    assert scores.parts["half"].tolist() == [i / 2 for i in range(32)]
    assert scorer.counts["failures"] >= 2  # it was killed with requests under way


def test_a_service_that_is_started_again_on_its_port_is_waited_for(start):
    first = start(delay=0.05)
    scorer = made(first, concurrency=4, failures=2, cooldown=0.2, attempts=8, backoff=0.1)
    second = []

    def restart():
        first.kill()
        time.sleep(0.2)
        second.append(start(port=first.port))

    killer = after(scorer, 7, restart)
    scores = scorer(*texts(16))
    killer.join(5)
    assert second and scorer.counts["failures"] >= 2
    assert scores.value.tolist() == list(range(16)) and scores.valid.all()


def test_connections_left_from_before_a_restart_do_no_harm(start):
    first = start()
    scorer = made(first, concurrency=4)
    assert scorer(*texts(8)).valid.all()
    first.kill()
    start(port=first.port)
    assert scorer(*texts(8)).value.tolist() == list(range(8))


def test_a_service_killed_for_good_makes_invalid_scores_of_what_it_did_not_answer(start):
    service = start(delay=0.1)
    scorer = made(service, concurrency=2, attempts=2, failures=2, cooldown=0.1)
    killer = after(scorer, 5, service.kill)
    scores = scorer(*texts(12))
    killer.join(5)
    told = int(scores.valid.sum())
    assert 3 <= told <= 5  # of five attempts, at most two were under way
    for i in range(12):
        assert scores.value[i].isnan() if not scores.valid[i] else scores.value[i] == i
    assert scorer.counts["invalid"] == 12 - told
