"""Learners that hold parts of the policy and play with them: the curve of one process, in every mode."""

import time

import pytest
import torch
from test_processes import assert_same_curve, train, weights
from toy import POINTS, toy_config

from unirl_env.agents import FlowDPPOConfig, GRPOConfig
from unirl_env.errors import ConfigError, LearnerLost
from unirl_env.prompts.sources import PromptSource

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SHARDED = {"parallel": "sharded"}


@pytest.fixture
def build(cluster):
    agents = []

    def build(learners, config_class=GRPOConfig, env=None, **settings):
        settings = {"policy": {"lora_rank": None}, "num_minibatches": 1, **settings}
        config = toy_config(config_class, learner=SHARDED if learners else {}, **settings)
        config.environment(env or config.env)
        agents.append(config.learners(num_learners=learners).build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


def test_what_they_play_and_learn_is_that_of_one_process(build):
    whole, parts = build(0, FlowDPPOConfig), build(2, FlowDPPOConfig)
    assert_same_curve(train(parts, 3), train(whole, 3))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=0, atol=1e-5)
    assert parts.iteration_metrics["sync_bytes"] == 0, "weights go nowhere"
    assert parts.env_runner_group.local_env_runner.module is None, "and the driver has none"
    assert len(parts.last_batch.samples) == 32

    points = list(PromptSource.of(POINTS))
    for prompts in (points[:3], points[:1]):  # fewer than learners, and what cannot be dealt evenly
        mine, theirs = (a.rollout_eval(prompts, samples_per_prompt=3, base=False) for a in (parts, whole))
        torch.testing.assert_close(mine.rewards, theirs.rewards, rtol=1e-3, atol=1e-4)
        assert mine.group.tolist() == theirs.group.tolist()
        assert torch.equal(mine.episode_seed, theirs.episode_seed)
    assert parts.drift(points).kl["image"] == pytest.approx(whole.drift(points).kl["image"], rel=1e-3)


def test_an_error_in_play_ends_the_others_and_is_told(build):
    agent = build(2, env="failing_agent:failing/Points-v0")
    began = time.monotonic()
    with pytest.raises(MemoryError, match="a player of two") as told:
        agent.train()
    assert time.monotonic() - began < 30
    assert any("Learner 1 failed by this during a rollout" in note for note in told.value.__notes__)
    with pytest.raises(LearnerLost, match="got none: the others have died"):
        agent.train()


def test_an_engine_beside_the_policy_is_refused_with_the_remedy():
    config = GRPOConfig().environment("unirl/TinyQwen3-Math-v0").learners(num_learners=2)
    config.training(learner=SHARDED, engine="vllm")
    with pytest.raises(
        ConfigError, match=r"`engine` must be 'local' where learners play .* num_env_runners=1"
    ):
        config.validate()
