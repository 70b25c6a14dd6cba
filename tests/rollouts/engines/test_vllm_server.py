"""vLLM on a server of our own, one for the whole session: real vLLM on a CPU.

An untrained tiny Qwen3-VL, so that texts and pictures are served by one.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from policies import gap, greedy, make_actor, picture_requests, requests, train

from pretraining.qwen_vl_build import build_tiny_qwen_vl
from unirl_env.errors import EngineError, EngineLost, StaleWeights
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.rollouts.engines import ENGINES

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SMALL = {"max-num-seqs": 32, "kv-cache-memory-bytes": 64 << 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory, quiet_models):
    return QwenVL(str(build_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "vl", seed=2)), max_images=2)


@pytest.fixture(scope="module")
def pixels(model):
    return {name: getattr(model, name) for name in ("max_images", "min_pixels", "max_pixels")}


@pytest.fixture(scope="module")
def server(model, pixels):
    made = ENGINES.get("vllm_server")(
        model.pretrained, eos_ids=model.eos_ids, lora_rank=6, dtype="float32", options=SMALL, **pixels
    )
    group = made._process._process.pid
    yield made
    made.close()
    assert members(group) == []


@pytest.fixture
def attached(server, model, pixels, asked):
    """A second engine on the same server, for all weights; the untrained ones are back after it."""
    made = ENGINES.get("vllm_server")(
        model.pretrained, eos_ids=model.eos_ids, url=server._server.url, key=server._server.key, **pixels
    )
    yield made
    made.generate(asked[:1], base=True)
    made.close()
    assert server._server.healthy()


@pytest.fixture(scope="module")
def asked(model):
    """Texts, two of them longer than a block of the prefix cache, and pictures."""
    texts = [
        replace(one, inputs={"positions": torch.arange(len(one.tokens)).repeat(3, 1)})
        for one in requests(4, max_new_tokens=12, longest=200)
    ]
    return [*texts, *picture_requests(model)]


def members(group):
    """The processes of a process group, and how they were called."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgid = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgid) == group and state != "Z":
                found.append((int(process.name), (process / "cmdline").read_text().replace("\0", " ")))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def answers(engine, asked, **options):
    return [answer.tokens for answer in engine.generate(asked, **options)]


def test_it_listens_on_this_machine_alone_and_asks_for_its_key(server):
    assert server._server.url.startswith("http://127.0.0.1:")
    refused = httpx.post(f"{server._server.url}/inference/v1/generate", json={}, trust_env=False)
    assert refused.status_code == 401
    words = " ".join(name for _, name in members(server._process._process.pid))
    assert "api_server" in words and server._server.key not in words


def test_greedy_answers_are_the_trained_networks_after_each_publication(server, model, asked):
    actor = make_actor(6, model)
    untrained = greedy(actor, asked)
    server.load_weights(1, actor)
    for version in (2, 3):
        assert answers(server, asked, temperature=0) == greedy(actor, asked)
        train(actor, seed=version)
        # The same comparison, without the publication.
        assert answers(server, asked, temperature=0) != greedy(actor, asked)
        server.load_weights(version, actor)
        assert answers(server, asked, temperature=0, base=True) == untrained
    assert answers(server, asked, temperature=0) == greedy(actor, asked)


def test_log_probs_are_those_of_our_own_scoring(server, model, asked, monkeypatch):
    actor = train(make_actor(6, model, temperature=0.7, top_p=0.9, top_k=20), seed=5)
    for name in ("temperature", "top_p", "top_k"):
        monkeypatch.setattr(server, name, getattr(actor.head(), name))
    server.load_weights(1, actor)
    made = server.generate(asked)
    assert gap(actor, asked, made) < 1e-4
    assert [answer.tokens for answer in server.generate(asked[::-1])] == [a.tokens for a in made[::-1]]


def test_too_long_a_context_is_refused(server, model):
    server.load_weights(1, make_actor(6, model))
    (request,) = requests(1, max_new_tokens=server.max_length)
    with pytest.raises(EngineError, match=r"try an engine with `max_length="):
        server.generate([request])


def test_all_weights_reach_a_server_that_somebody_else_runs(server, attached, model, asked):
    actor = train(make_actor(model=model), seed=8)
    server.load_weights(1, make_actor(6, model))
    attached.load_weights(1, actor)
    assert answers(attached, asked, temperature=0) == greedy(actor, asked)
    assert answers(attached, asked, temperature=0, base=True) == greedy(make_actor(model=model), asked)
    with pytest.raises(StaleWeights, match="another run"):
        server.generate(asked)


def test_a_refusal_comes_in_the_servers_words_and_leaves_it_alive(server):
    with pytest.raises(EngineError, match="status 500"):
        server._remotely("no_such_method")
    assert server._server.healthy()
    with pytest.raises(EngineError, match="status 404"):
        server._server.post("/v1/unload_lora_adapter", {"lora_name": "nobody"})


def test_a_killed_server_is_lost_and_restart_brings_the_same_answers(server, model, asked):
    actor = train(make_actor(6, model), seed=9)
    server.load_weights(4, actor)
    before = answers(server, asked)
    group = server._process._process.pid
    worker = next(pid for pid, name in members(group) if "Worker" in name or "EngineCore" in name)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(EngineLost, match="`restart` brings it back"):
        server.generate(asked)
    server.restart()
    assert members(group) == []
    assert server.weights_version is None
    server.load_weights(4, actor)
    assert answers(server, asked) == before


def test_a_server_that_cannot_start_shows_cause_and_remedy(tmp_path):
    with pytest.raises(EngineError, match=r"must start, got exit status(.|\n)*Check the model") as caught:
        ENGINES.get("vllm_server")(str(tmp_path / "nowhere"), eos_ids=(1,), dtype="float32", options=SMALL)
    assert "nowhere" in str(caught.value)
