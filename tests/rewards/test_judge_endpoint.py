"""The judge when its endpoint fails, costs and has to be waited for, and as a reward of an environment."""

import logging
import re
import sqlite3

import gymnasium as gym
import numpy as np
import pytest
from chat_stand_in import ChatStandIn, chat, verdict

import unirl_env  # noqa: F401
from unirl_env.errors import ConfigError
from unirl_env.rewards.external.judge_scorer import JudgeScorer
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

PROMPTS = [Prompt("a sum")] * 8
SAMPLES = [Sample(text=f"it is {n}") for n in range(8)]
PRICE = {"input": 2.0, "output": 8.0}
"""100 + 10 tokens of a stand-in's reply cost 0.00028."""


def judge(server, **options):
    return JudgeScorer(server.url, "judge-1", **{"rubric": "Good? {answer}", "attempts": 1, **options})


def by_number(body):
    return chat(verdict(int(re.search(r"it is (\d+)", body["messages"][1]["content"])[1])))


def test_what_fails_is_invalid_alone_and_said_once(caplog):
    faults = [None, (500, {"error": "oops"}, {}), "reset", "cut", b"<html>", 9.0, (429, {}, {})]
    with ChatStandIn(by_number, faults) as server:
        scorer = judge(server, max_concurrency=1, timeout=0.3)
        scores = score_safely(scorer, SAMPLES, PROMPTS)
        assert scores.valid.tolist() == [True] + [False] * 6 + [True] and len(server.seen) == 8
    assert scores.value[7].item() == pytest.approx(0.7)
    assert len(caplog.records) == 1 and "failed on 6 of 8 samples" in caplog.text
    assert scorer.spending.requests == 2


def test_with_attempts_nothing_is_lost_and_nothing_counted_twice():
    faults = [
        None,
        (500, {"error": "oops"}, {}),
        "reset",
        None,
        "cut",
        b"<html>",
        (429, {}, {"Retry-After": "0"}),
    ]
    with ChatStandIn(by_number, faults) as server:
        scorer = judge(server, attempts=6, price=PRICE)
        scores = scorer(SAMPLES, PROMPTS)
    assert scores.parts["raw"].tolist() == list(range(8)) and len(server.seen) == 8 + 5
    spent = scorer.spending
    assert (spent.requests, spent.prompt_tokens, spent.completion_tokens) == (8, 800, 80)
    assert spent.money == pytest.approx(8 * 0.00028)


def test_no_more_go_at_a_time_than_allowed():
    with ChatStandIn(seconds=0.05) as server:
        judge(server, max_concurrency=3)(SAMPLES, PROMPTS)
        assert server.most == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_an_endpoint_that_refuses_stops_the_run_in_its_own_words(status, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_TOKEN", "sk-secret")
    words = {"error": {"message": "The model `judge-1` is not for sk-secret"}}
    with ChatStandIn(faults=[(status, words, {})] * 8) as server:
        with pytest.raises(ConfigError, match=r"`judge-1` is not for \*\*\*"):
            score_safely(judge(server, token_env="TEST_JUDGE_TOKEN"), SAMPLES[:1], PROMPTS[:1])
        assert len(server.seen) == 1 and server.heads[0]["authorization"] == "Bearer sk-secret"


def test_an_address_that_is_no_chat_endpoint_is_a_wrong_setting():
    with ChatStandIn(lambda body: {"object": "list", "data": []}) as server:
        with pytest.raises(ConfigError, match="must have `choices` with a `message`"):
            judge(server)(SAMPLES, PROMPTS)


def test_a_budget_stops_the_run_and_what_was_paid_is_kept(tmp_path):
    settings = {"price": PRICE, "cache": tmp_path / "c", "max_concurrency": 1}
    with ChatStandIn(by_number) as server:
        poor = judge(server, budget=0.00084, **settings)
        with pytest.raises(ConfigError, match=r"`budget` must cover what is asked, got 0.00084 and 0.00084"):
            score_safely(poor, SAMPLES, PROMPTS)
        assert len(server.seen) == 3
        with sqlite3.connect(tmp_path / "c") as connection:
            assert connection.execute("SELECT count(*) FROM answers").fetchone() == (3,)
        assert judge(server, **settings)(SAMPLES, PROMPTS).parts["raw"].tolist() == list(range(8))
        assert len(server.seen) == 8
        assert judge(server, budget=0.0, **settings)(SAMPLES, PROMPTS).valid.all()  # all of it is kept
        assert len(server.seen) == 8


def test_a_budget_that_is_spent_by_the_last_request_loses_nothing():
    with ChatStandIn(by_number) as server:
        scorer = judge(server, price=PRICE, budget=0.00028 * 8)
        assert scorer(SAMPLES, PROMPTS).valid.all()
        with pytest.raises(ConfigError, match="`budget`"):
            scorer(SAMPLES[:1], PROMPTS[:1])


def test_replies_that_do_not_say_their_cost_are_counted_apart(caplog):
    odd = [None, {"prompt_tokens": None}, {"prompt_tokens": -1}, "many", {"prompt_tokens": 5}]

    def answer(body):
        usage = odd[int(re.search(r"it is (\d+)", body["messages"][1]["content"])[1])]
        return {**chat(verdict()), "usage": usage}

    caplog.set_level(logging.INFO)
    with ChatStandIn(answer) as server:
        scorer = judge(server)
        assert scorer(SAMPLES[:5], PROMPTS[:5]).valid.all()
        assert (scorer.spending.uncounted, scorer.spending.prompt_tokens) == (4, 5)
        assert "5 samples, 0 answers from the cache, 5 replies" in caplog.text
        assert "4 without a count" in caplog.text
        with pytest.raises(ConfigError, match="must be watched by the replies' `usage`"):
            judge(server, price=PRICE, budget=9.0, max_concurrency=1)(SAMPLES[:2], PROMPTS[:2])


def play(server, on_invalid="nan", **options):
    """One game of four additions; its last rewards."""
    spec = {"name": "judge", "url": server.url, "model": "m", "rubric": "{prompt} {answer} {expected}"}
    env = gym.make_vec(
        "unirl/TinyQwen3-Math-v0",
        num_envs=4,
        info_objects=True,
        vectorization_mode="vector_entry_point",
        group_size=2,
        max_new_tokens=3,
        autoreset_mode="disabled",
        scorer={**spec, **options},
        on_invalid=on_invalid,
    )
    try:
        env.reset(seed=3)
        total = np.zeros(4)
        for _ in range(3):
            _, reward, terminated, truncated, info = env.step(np.array([65, 66, 67, 68]))
            total += np.asarray(reward)
            if (np.asarray(terminated) | np.asarray(truncated)).all():
                return total, info["scores"]
    finally:
        env.close()
    raise AssertionError("the texts must have ended")


def test_it_is_the_reward_of_an_environment():
    with ChatStandIn(lambda body: chat(verdict(len(server.seen)))) as server:
        total, scores = play(server, max_concurrency=1)
    assert len(server.seen) == 4 and scores.valid.all()
    assert total.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert scores.parts["raw"].tolist() == [1, 2, 3, 4]
    with ChatStandIn(faults=[(503, {}, {})] * 2) as server:
        total, scores = play(server, max_concurrency=1, attempts=1)
    assert np.isnan(total).tolist() == [True, True, False, False]
