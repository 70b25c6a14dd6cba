"""The service on Ray Serve: what is refused before anything starts, and replicas that die under load."""

import os
import signal
import socket
import threading

import cluster
import httpx
import pytest
import torch

from unirl_env.errors import ConfigError
from unirl_env.rewards.remote.remote_scorer import RemoteScorer
from unirl_env.service.service_settings import ServiceSettings
from unirl_env.types import Prompt, Sample

deploy = pytest.importorskip("unirl_env.service.deploy")
replicas_of = deploy.replicas_of
TOKEN = "a-token-of-the-tests-0123456789"
REWARDS = {"pid": {"name": "service.pid_scorer:PidScorer", "seconds": 0.1}}


def deployment(app):
    return app._bound_deployment


@pytest.mark.parametrize(
    "values, words",
    [
        ({"replica": 2}, "settings of theirs, got 'replica'.*did you mean `replicas`"),
        ({"replicas": 0}, "`replicas` must be at least 1"),
        ({"replicas": "two"}, "`replicas` must be"),
        ({"gpus_per_replica": -1}, "`gpus_per_replica` must be"),
        ({"gpus_per_replica": 1.5}, "must be whole above 1, got 1.5; try 2"),
        ({"replicas": 2, "max_replicas": 4}, "`replicas` must not be given together"),
        ({"min_replicas": 4, "max_replicas": 2}, "`max_replicas` must be at least `min_replicas`"),
    ],
)
def test_wrong_numbers_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        replicas_of(values)


def test_words_become_a_deployment():
    replicas = replicas_of({"replicas": "2", "gpus_per_replica": "0.25", "cpus_per_replica": "0.5"})
    made = deployment(deploy.bound(ServiceSettings(rewards=REWARDS, drain_seconds=7), replicas, None))
    assert made.num_replicas == 2
    assert made.ray_actor_options["num_gpus"] == 0.25 and made.ray_actor_options["num_cpus"] == 0.5
    assert made._deployment_config.graceful_shutdown_timeout_s > 7


def test_the_number_follows_the_load_where_it_may():
    replicas = replicas_of({"max_replicas": 8, "target_ongoing_requests": 4})
    made = deployment(deploy.bound(ServiceSettings(rewards=REWARDS), replicas, None))
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 8, 4)


def test_a_gpu_that_ray_would_hide_is_refused():
    inner = {"name": "over_frames", "scorer": {"name": "clip", "device": "cuda:0"}}
    with pytest.raises(ConfigError, match="`gpus_per_replica` must be above 0"):
        deploy.bound(ServiceSettings(rewards={"a": inner}), replicas_of({}), None)


def test_serve_run_needs_a_token(tmp_path, monkeypatch):
    config = tmp_path / "service.yaml"
    config.write_text("rewards: {pid: service.pid_scorer:PidScorer}\nmax_batch: 8\n")
    monkeypatch.delenv("UNIRL_SERVICE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"UNIRL_SERVICE_TOKEN.* must hold a token"):
        deploy.application({"config": str(config)})
    monkeypatch.setenv("UNIRL_SERVICE_TOKEN", TOKEN)
    app = deploy.application({"config": str(config), "replicas": "3", "max_wait_ms": 2})
    settings, token = deployment(app).init_args
    assert (settings.max_batch, settings.max_wait_ms, token) == (8, 2, TOKEN)
    assert deployment(app).num_replicas == 3
    with pytest.raises(ConfigError, match="replicsa"):
        deploy.application({"config": str(config), "replicsa": "3"})


def test_an_open_door_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="must hold a token"):
        deploy.serve_rewards(ServiceSettings(rewards=REWARDS, host="0.0.0.0"), replicas_of({}), None)


@pytest.fixture(scope="module")
def served():
    """Two replicas behind one door, which become three where the load asks for it; its address."""
    from ray import serve

    cluster.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ServiceSettings(rewards=REWARDS, port=port, max_batch=4, drain_seconds=1)
    replicas = replicas_of({"min_replicas": 2, "max_replicas": 3, "cpus_per_replica": 0.5})
    assert deploy.serve_rewards(settings, replicas, TOKEN)
    with pytest.raises(ConfigError, match="where Serve already runs"):
        deploy.serve_rewards(settings, replicas, None)
    assert serve.status().applications["rewards"].status == "RUNNING"
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_requests_survive_the_death_of_a_replica(served, monkeypatch):
    monkeypatch.setenv("UNIRL_SERVICE_TOKEN", TOKEN)
    with httpx.Client(base_url=served) as line:
        assert line.get("/health").status_code == 200
        assert line.get("/rewards").status_code == 401
    # One URL stands for all replicas: the failures of one of them are no reason to leave it alone.
    scorer = RemoteScorer(
        served, "pid", request_size=1, concurrency=8, failures=1000, attempts=20, timeout=30
    )
    assert scorer.pointwise
    pictures = [torch.full((3, 8, 8), i / 255) for i in range(40)]
    samples, prompts = [Sample(image=picture) for picture in pictures], [Prompt("a")] * len(pictures)
    first = set(scorer(samples, prompts).parts["process"].tolist())
    assert len(first) == 2, "both replicas must work"
    victim = int(min(first))
    killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
    killer.start()
    seen = set()
    for _ in range(4):
        scores = scorer(samples, prompts)
        assert scores.valid.all()
        assert scores.value.tolist() == [float(picture.mean()) for picture in pictures]
        seen |= set(scores.parts["process"].tolist())
    killer.join()
    assert seen & first
    assert not set(scorer(samples, prompts).parts["process"].tolist()) & {victim}
    assert scorer.counts["failures"] > 0, "some requests must have met the dead replica"
