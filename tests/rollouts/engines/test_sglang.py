"""SGLang's routes, against a stand-in that answers as a real server of version 0.5.23 was recorded to do."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from sglang_stand_in import MAX_LENGTH, StandIn

import unirl_env.functional as F
from unirl_env.errors import ConfigError, EngineError, EngineLost, StaleWeights
from unirl_env.rollouts.engines import ENGINES, Answer, Request
from unirl_env.types import Prompt

PROMPT = Prompt("count")
EOS = (7, 9)
RECORDED = json.loads((Path(__file__).parent / "sglang_0.5.23.json").read_text())
REQUESTS = [Request((1, 2, 3, row), PROMPT, seed=row, max_new_tokens=12) for row in range(5)]


class Actor:
    """A policy whose weights are a word."""

    def __init__(self, word, rank=None):
        self.word, self.lora = word, None if rank is None else SimpleNamespace(rank=rank)
        self.network = torch.nn.Linear(1, 1)

    def trainable_state(self):
        return dict(self.network.named_parameters())

    def save_adapters(self, directory):
        Path(directory, "weights.txt").write_text(self.word)

    save_weights = save_adapters


@pytest.fixture
def server():
    stand_in = StandIn(key="secret")
    yield stand_in
    stand_in.stop()


@pytest.fixture
def untrained(tmp_path):
    (tmp_path / "weights.txt").write_text("untrained")
    return str(tmp_path)


@pytest.fixture
def connect(server, untrained):
    """Makes engines for the server, and closes them."""
    engines = []

    def make(**settings):
        settings = {"eos_ids": EOS, "url": server.url, "key": "secret", "start_seconds": 5.0} | settings
        engines.append(ENGINES.get("sglang")(untrained, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def expected(server, request, weights, temperature=1.0):
    seed = F.derive_seed(request.seed, request.position) if temperature else None
    sampling = {"max_new_tokens": request.max_new_tokens, "stop_token_ids": EOS}
    return tuple(server.tokens(weights, list(request.tokens), seed, sampling)[0])


def test_answers_come_in_order_with_their_own_seeds_and_log_probs(server, connect):
    engine = connect()
    engine.load_weights(3, Actor("v3"))
    answers = engine.generate(REQUESTS)
    assert engine.weights_version == 3
    assert [a.tokens for a in answers] == [expected(server, r, "v3") for r in REQUESTS]
    assert all(a.log_probs == tuple(-2.0 - t / 256 for t in a.tokens) for a in answers)
    later = engine.generate([replace(r, position=1) for r in REQUESTS])
    assert [a.tokens for a in later] != [a.tokens for a in answers]
    assert engine.generate([]) == []


def test_greedy_answers_have_log_prob_zero_and_no_truncation(server, connect):
    engine = connect(top_p=0.9)
    engine.load_weights(0, Actor("v0"))
    answers = engine.generate(REQUESTS, temperature=0)
    assert [a.tokens for a in answers] == [expected(server, r, "v0", 0) for r in REQUESTS]
    assert all(set(a.log_probs) == {0.0} for a in answers)
    assert server.seen[-1][1]["sampling_params"]["top_p"] == 1.0


@pytest.mark.parametrize("truncation", [{"top_p": 0.9}, {"top_k": 20}])
def test_truncated_log_probs_come_from_the_sampling_mask(connect, truncation):
    engine = connect(**truncation)
    engine.load_weights(0, Actor("v0"))
    for answer in engine.generate(REQUESTS):
        assert answer.log_probs == tuple(-0.5 - t / 256 for t in answer.tokens)


def test_both_truncations_are_refused(connect):
    with pytest.raises(ConfigError, match=r"must not both truncate.*try `top_p=1`"):
        connect(top_p=0.9, top_k=20)


def test_all_weights_travel_through_the_disk_and_leave_nothing_there(server, connect):
    engine = connect()
    for version in (1, 2):
        engine.load_weights(version, Actor(f"v{version}"))
        assert [a.tokens for a in engine.generate(REQUESTS)] == [
            expected(server, r, f"v{version}") for r in REQUESTS
        ]
    assert [path for path, _ in server.seen if "weight" in path] == ["/update_weights_from_disk"] * 2
    assert not server.paused
    bodies = [body for path, body in server.seen if path == "/update_weights_from_disk"]
    assert all(body["flush_cache"] for body in bodies)
    old, new = (body["model_path"] for body in bodies)
    assert not os.path.exists(old) and os.path.exists(new)
    engine.close()
    assert not os.path.exists(new)


def test_base_answers_with_the_untrained_weights_and_the_trained_ones_come_back(server, connect):
    engine = connect()
    engine.load_weights(1, Actor("v1"))
    assert engine.generate(REQUESTS, base=True)[0].tokens == expected(server, REQUESTS[0], "untrained")
    assert engine.weights_version == 1
    assert engine.generate(REQUESTS)[0].tokens == expected(server, REQUESTS[0], "v1")


def test_adapters_have_a_name_per_publication(server, connect):
    engine = connect(lora_rank=4)
    assert engine.generate(REQUESTS, base=True)[0].tokens == expected(server, REQUESTS[0], "untrained")
    for version in (1, 2, 2):
        engine.load_weights(version, Actor(f"+{version}", rank=4))
        answers = engine.generate(REQUESTS)
        assert [a.tokens for a in answers] == [expected(server, r, f"untrained+{version}") for r in REQUESTS]
        assert len(server.adapters) == 1
    names = [body["lora_name"] for path, body in server.seen if path == "/load_lora_adapter"]
    assert len(set(names)) == 3
    assert engine.generate(REQUESTS, base=True)[0].tokens == expected(server, REQUESTS[0], "untrained")


def test_nothing_answers_before_weights_are_loaded(connect):
    with pytest.raises(StaleWeights, match="call `load_weights` first"):
        connect().generate(REQUESTS)


def test_weights_of_another_publisher_are_noticed(server, connect):
    engine, other = connect(), connect()
    engine.load_weights(1, Actor("mine"))
    other.load_weights(1, Actor("theirs"))
    with pytest.raises(StaleWeights, match="another run"):
        engine.generate(REQUESTS)
    engine.load_weights(2, Actor("mine"))
    assert len(engine.generate(REQUESTS)) == 5


def test_the_engine_and_the_policy_must_agree_on_adapters(connect):
    engine = connect(lora_rank=4)
    for actor in (Actor("all"), Actor("wide", rank=8)):
        with pytest.raises(ConfigError, match=r"make the engine with `lora_rank="):
            engine.load_weights(1, actor)


def test_a_refusal_is_an_error_in_the_servers_words(server, connect):
    engine = connect()
    engine.load_weights(1, Actor("v1"))
    server.faults["/generate"] = (400, {"error": "unknown field `nope`, expected one of `max_new_tokens`"})
    with pytest.raises(EngineError, match="unknown field `nope`"):
        engine.generate(REQUESTS[:1])
    server.faults["/generate"] = (400, {"error": {"message": "Either text, input_ids or input_embeds"}})
    with pytest.raises(EngineError, match="Either text"):
        engine.generate(REQUESTS[:1])


@pytest.mark.parametrize("status", [200, 400])
def test_weights_that_are_refused_leave_no_version(server, connect, status):
    engine = connect()
    engine.load_weights(1, Actor("v1"))
    refusal = {"success": False, "message": "Failed to get weights", "num_paused_requests": 0}
    server.faults["/update_weights_from_disk"] = (status, refusal)
    with pytest.raises(EngineError, match="Failed to get weights"):
        engine.load_weights(2, Actor("v2"))
    assert engine.weights_version is None and not server.paused
    with pytest.raises(StaleWeights):
        engine.generate(REQUESTS)


def test_a_cut_connection_is_a_loss_and_restart_finds_the_server_again(server, connect):
    engine = connect()
    engine.load_weights(1, Actor("v1"))
    before = engine.generate(REQUESTS)
    server.faults["/generate"] = "reset"
    with pytest.raises(EngineLost, match="`restart` brings it back"):
        engine.generate(REQUESTS)
    engine.restart()
    assert engine.weights_version is None
    engine.load_weights(1, Actor("v1"))
    assert engine.generate(REQUESTS) == before


def test_a_server_that_is_gone_is_lost_and_its_absence_named(server, connect):
    engine = connect(start_seconds=0.2)
    engine.load_weights(1, Actor("v1"))
    server.stop()
    with pytest.raises(EngineLost, match="must answer /generate"):
        engine.generate(REQUESTS)
    with pytest.raises(EngineError, match="got nothing within 0 s; start it there"):
        engine.restart()


def test_an_ill_server_is_lost_and_a_healthy_one_has_merely_failed(server, connect):
    engine = connect()
    engine.load_weights(1, Actor("v1"))
    server.faults["/generate"] = (500, {"error": {"message": "out of memory"}})
    with pytest.raises(EngineError, match="out of memory"):
        engine.generate(REQUESTS[:1])
    server.faults |= {"/generate": (500, ""), "/health": (503, "")}
    with pytest.raises(EngineLost, match="status 500"):
        engine.generate(REQUESTS[:1])


def test_a_wrong_key_is_refused_at_once(connect):
    with pytest.raises(EngineError, match="Unauthorized"):
        connect(key="wrong")


def test_too_long_a_context_is_refused_with_a_remedy(connect):
    engine = connect()
    engine.load_weights(1, Actor("v1"))
    with pytest.raises(EngineError, match=rf"must fit into {MAX_LENGTH} tokens, got 250 \+ 12; try"):
        engine.generate([Request((1,) * 250, PROMPT, max_new_tokens=12)])


def test_an_end_that_the_policy_does_not_know_is_refused(server, connect):
    engine = connect(eos_ids=(40,))  # the model itself also ends at 9
    engine.load_weights(1, Actor("v1"))
    with pytest.raises(EngineError, match=r"name all end tokens of the model in `eos_ids`"):
        engine.generate([Request((1, 2), PROMPT, max_new_tokens=200)])


def test_missing_log_probs_are_refused(server, connect):
    engine = connect(top_k=5)
    engine.load_weights(1, Actor("v1"))
    answer = server.generate({"input_ids": [1], "sampling_params": {"temperature": 1, "max_new_tokens": 2}})[
        1
    ]
    answer["meta_info"]["weight_versions"][0]["version"] = server.version
    server.faults["/generate"] = (200, answer)
    with pytest.raises(EngineError, match="from its sampling mask"):
        engine.generate([Request((1,), PROMPT, max_new_tokens=2)])


@pytest.mark.parametrize("exchange", RECORDED, ids=lambda e: f"{e['path']}-{e['status']}")
def test_the_stand_in_answers_as_the_real_server_did(exchange, untrained):
    stand_in = StandIn()
    try:
        body = exchange["request"]
        if "success" in str(exchange["response"]) and "model_path" in (body or {}):
            body = body | {"model_path": untrained if exchange["status"] == 200 else "/nonexistent"}
        answer = httpx.request(exchange["method"], stand_in.url + exchange["path"], json=body)
    finally:
        stand_in.stop()
    assert answer.status_code == exchange["status"]
    if isinstance(exchange["response"], str):
        assert not answer.headers.get("content-type")
    else:
        assert like(answer.json(), exchange["response"])


def like(ours, recorded):
    """Whether `ours` has the recorded form: no key of its own, equal types all the way down."""
    if isinstance(recorded, dict):
        return set(ours) <= set(recorded) and all(like(ours[name], recorded[name]) for name in ours)
    if isinstance(recorded, list):
        return isinstance(ours, list) and all(like(ours[0], one) for one in recorded[:1] if ours)
    return isinstance(ours, type(recorded))


def test_sglang_that_is_not_installed_is_named(untrained):
    with pytest.raises(EngineError, match="start it elsewhere and give its `url`"):
        ENGINES.get("sglang")(untrained, eos_ids=EOS)


def test_an_answer_needs_as_many_log_probs_as_tokens():
    with pytest.raises(Exception, match="one log-probability for each token"):
        Answer((1, 2), (0.0,))
