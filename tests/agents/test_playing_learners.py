"""Learners that hold parts of the policy and play with them: the curve of one process, in every mode."""

import pytest
import torch
from failing_agent import FailingConfig
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

    def build(learners, config_class=GRPOConfig, **settings):
        settings = {"policy": {"lora_rank": None}, "num_minibatches": 1, **settings}
        config = toy_config(config_class, learner=SHARDED if learners else {}, **settings)
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
