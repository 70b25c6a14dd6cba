"""Agents whose learners hold parts of the weights, in Ray: one curve, states for all, and told errors."""

import time

import pytest
import ray
import torch
from failing_agent import FailingConfig
from test_processes import assert_same_curve, train, weights
from toy import toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.errors import LearnerLost
from unirl_env.rollouts.calls import call_runners

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def agent_of(parallel, learners, kind=GRPOConfig, **settings):
    settings = {"policy": {"lora_rank": None}, "num_minibatches": 1, **settings}
    config = toy_config(kind, learner={"parallel": parallel}, **settings)
    return config.learners(num_learners=learners).build_algo()


@pytest.fixture
def sharded(cluster):
    agent = agent_of("sharded", 2)
    yield agent
    agent.stop()


def test_states_pass_between_shards_and_whole_learners(sharded, tmp_path):
    whole = agent_of("replicated", 0)
    try:
        curve = train(whole, 2)
        assert_same_curve(train(sharded, 2), curve)
        state, meta = sharded.run_state()
        assert state.keys() == whole.run_state()[0].keys()
        after = train(whole, 2)
        whole.load_run_state(state, meta)
        assert_same_curve(train(whole, 2), after)
        sharded.load_run_state(*whole.run_state())
        for name, tensor in weights(whole).items():
            assert torch.equal(weights(sharded)[name], tensor)
        assert sharded.drift(sharded.source.take(0, 4, seed=0)).kl["image"] > 0
    finally:
        whole.stop()


def test_players_get_the_weights_of_shards_in_buckets(cluster):
    settings = {"policy": {"lora_rank": None}, "num_minibatches": 1}
    config = toy_config(GRPOConfig, learner={"parallel": "sharded"}, **settings)
    config.learners(num_learners=2).env_runners(num_env_runners=2)
    config.fault_tolerance(restart_failed_env_runners=True)
    agent, whole = config.build_algo(), agent_of("replicated", 0)
    try:
        agent.sync.bucket_bytes = 300
        assert_same_curve(train(agent, 1), train(whole, 1))
        report = agent.sync.publish(1)
        assert report.buckets > 2 and report.size == agent.iteration_metrics["sync_bytes"] > 900
        # One player is left with half of other weights: it says so, and is given all of them.
        first, arguments = next(agent.sync._buckets(7))
        assert 0 < first < report.size
        call_runners(agent.env_runner_group, "load_weights", {1: arguments})
        assert_same_curve(train(agent, 2), train(whole, 2))
    finally:
        agent.stop()
        whole.stop()


def test_one_that_fails_ends_the_others_at_once_and_its_error_is_told(cluster):
    agent = agent_of("sharded", 2, FailingConfig, micro_batch_size=2)
    began = time.monotonic()
    with pytest.raises(MemoryError, match="a learner of two") as told:
        agent.train()
    assert time.monotonic() - began < 30
    assert any("Learner 1 failed by this during an update" in note for note in told.value.__notes__)
    with pytest.raises(LearnerLost, match=r"got none: the others have died|died during"):
        agent.run_state()
    agent.stop()


def test_one_that_is_killed_is_named_as_lost(sharded):
    sharded.train()
    victim = next(iter(sharded.learner_group._worker_manager.actors().values()))
    ray.kill(victim)
    with pytest.raises(LearnerLost):
        sharded.train()
