"""A real process: it starts, answers curl's kind of call, and ends in order when it is told to."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from service_cases import body

TOKEN = "a-token-of-the-tests-0123456789"
SCORER = """
import time, torch
from unirl_env.types import Scores

class Slow:
    name = "slow"
    def __init__(self, seconds=0.0):
        self.seconds = seconds
    def __call__(self, samples, prompts):
        print("scoring", flush=True)
        time.sleep(self.seconds)
        return Scores(torch.ones(len(samples)))
"""


class Process:
    """The service in a process of its own, with what it has printed so far."""

    def __init__(self, folder: Path, *words, token=TOKEN):
        (folder / "my_slow_scorer.py").write_text(SCORER)
        (folder / "my.yaml").write_text("rewards: {slow: my_slow_scorer.Slow}\nport: 0\n")
        command = [sys.executable, "-m", "unirl_env.service", "--config", "my.yaml", *words]
        root = str(Path(__file__).parents[2])
        env = {**os.environ, "PYTHONPATH": root, "UNIRL_SERVICE_TOKEN": token, "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.heard = ""
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = self.wait_for(r"Ready at (\S+)")

    def _listen(self):
        for line in self.process.stdout:
            self.heard += line

    def wait_for(self, words, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(words, self.heard):
                return found[found.re.groups and 1]
            time.sleep(0.02)
        raise AssertionError(f"{words} was not said: {self.heard}")

    def ask(self, answers, **options):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        try:
            answers.append(
                httpx.post(
                    f"{self.url}/score", json=body(["a"], "slow", **options), headers=headers, timeout=60
                )
            )
        except httpx.HTTPError as error:
            answers.append(error)

    def asking(self, **options):
        answers = []
        thread = threading.Thread(target=self.ask, args=(answers,), kwargs=options)
        thread.start()
        self.wait_for("scoring")
        return thread, answers


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(*words, **options):
        started.append(Process(tmp_path, *words, **options))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_taken_is_finished_and_what_comes_then_is_refused(start, number):
    service = start("rewards.slow={name: my_slow_scorer.Slow, seconds: 3}")
    thread, answers = service.asking()
    service.process.send_signal(number)
    service.wait_for("Finishing 1 requests within 30 seconds")
    health = httpx.get(f"{service.url}/health")
    assert (health.status_code, health.json()["status"]) == (503, "draining")
    late = []
    service.ask(late)
    assert late[0].status_code == 503 and late[0].headers["Retry-After"]
    assert late[0].json()["error"]["code"] == "draining"
    thread.join()
    assert answers[0].status_code == 200 and answers[0].json()["scores"]["value"] == [1.0]
    assert service.process.wait(20) == 0
    assert TOKEN not in service.heard and "$UNIRL_SERVICE_TOKEN" in service.heard
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/health")


def test_what_does_not_end_in_time_is_told_so(start):
    service = start("rewards.slow={name: my_slow_scorer.Slow, seconds: 50}", "drain_seconds=0.3")
    thread, answers = service.asking(id="1")
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers[0].status_code == 503 and "before the scores were there" in answers[0].text
    assert service.process.wait(20) == 0 and time.monotonic() - began < 15


def test_an_idle_service_ends_at_once_and_a_second_signal_does_not_wait(start):
    service = start()
    answers = []
    service.ask(answers)
    assert answers[0].json()["scores"]["valid"] == [True]
    assert "slow   │ slow   │ it does not say │ no" in service.heard
    assert "[1/1] slow: " in service.heard and '/score -H "Authorization: Bearer $UNIRL' in service.heard
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0


def test_asked_twice_it_leaves_at_once(start):
    service = start("rewards.slow={name: my_slow_scorer.Slow, seconds: 50}", "drain_seconds=60")
    thread, answers = service.asking()
    for _ in range(2):
        service.process.send_signal(signal.SIGINT)
        service.wait_for("Once")
    assert service.process.wait(20) == 130
    thread.join()
    assert isinstance(answers[0], Exception) or answers[0].status_code >= 500
