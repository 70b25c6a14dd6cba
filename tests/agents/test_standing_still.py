"""Calls to processes that were stopped: Ray waits for ever, a run does not."""

import os
import signal
import time

import pytest
import ray

from unirl_env.run import interrupt as stopping
from unirl_env.run.interrupt import Interrupt

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@ray.remote(num_cpus=0)
class Worker:
    def pid(self):
        return os.getpid()

    def work(self):
        time.sleep(600)


def test_a_call_to_a_stopped_or_a_hanging_process_is_broken_off(cluster, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(stopping, "STOPPED_FOR", 1.0)
    worker = Worker.remote()
    pid = ray.get(worker.pid.remote())
    for wait in (ray.get, lambda reference: ray.wait([reference])):
        with Interrupt() as interrupt, stopping.Watchdog(interrupt, timeout_s=1.0) as dog:
            with dog.over("iteration 1"), pytest.raises(KeyboardInterrupt):
                wait(worker.work.remote())
        assert "rollout.timeout_s" in interrupt.expired
    os.kill(pid, signal.SIGSTOP)
    with Interrupt() as interrupt, stopping.Watchdog(interrupt) as dog:
        dog.processes = {"Runner 1": pid}
        with dog.over("iteration 2"), pytest.raises(KeyboardInterrupt):
            ray.get(worker.pid.remote())
        assert "Runner 1" in interrupt.expired and "SIGSTOP" in interrupt.expired
        dog.end(still=True)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(worker.pid.remote(), timeout=60)
