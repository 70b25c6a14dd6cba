"""Guidance of evaluation, apart from that of training."""

import pytest
import torch
from toy import POINTS, toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.envs import PromptSource

pytestmark = pytest.mark.usefixtures("cluster")


def drawn(**policy):
    """What the untrained and the trained policy draw in evaluation, and the iteration between."""
    agent, prompts = toy_config(GRPOConfig, policy=policy).build_algo(), list(PromptSource.of(POINTS))
    try:
        before = agent.rollout_eval(prompts, samples_per_prompt=2, base=True).samples
        agent.train()
        after = agent.rollout_eval(prompts, samples_per_prompt=2).samples
        row = {
            k: v for k, v in agent.iteration_metrics.items() if "seconds" not in k and "per_second" not in k
        }
        return *(torch.stack([sample.latent for sample in each]) for each in (before, after)), row
    finally:
        agent.stop()


def test_evaluation_has_a_guidance_of_its_own_and_training_keeps_its():
    plain, plain_after, row = drawn()
    guided, guided_after, same = drawn(eval_guidance=3.0)
    always, _, _ = drawn(guidance=3.0)
    assert torch.equal(guided, always) and not torch.allclose(guided, plain)
    assert not torch.allclose(guided_after, plain_after)
    assert same == row, "training does not know of it"
    back, _, _ = drawn(guidance=3.0, eval_guidance=1.0)
    assert torch.equal(back, plain)
