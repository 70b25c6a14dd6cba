"""Pictures of evaluation that are larger than those of training."""

import pytest
import torch
from toy import toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.errors import ConfigError
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt
from unirl_env.worlds.world import world_of

PROMPTS = [Prompt("a red circle"), Prompt("a blue square")]


def test_a_run_trains_small_and_evaluates_large(cluster):
    config = (
        GRPOConfig()
        .environment("unirl/TinySD3-T2I-v0", env_config={"num_steps": 2, "height": 16, "width": 16})
        .training(
            num_prompts=2, group_size=2, num_minibatches=1, policy={"eval_size": [32, 40], "guidance": 2.0}
        )
    )
    agent = config.build_algo()
    before = agent.rollout_eval(PROMPTS, num_steps=3)
    agent.train()
    after = agent.rollout_eval(PROMPTS, num_steps=3)
    for batch in (before, after):
        assert {sample.image.shape for sample in batch.samples} == {(3, 32, 40)}

    # The very pictures of a world of that size.
    arguments = {"num_steps": 3, "height": 32, "width": 40, "with_negative": True}
    arguments |= {"array_backend": "torch", "autoreset_mode": "disabled"}
    world = world_of("unirl/TinySD3-T2I-v0", arguments)
    rollout = Rollout(world.env, Actor(TinySD3Denoiser(height=32, width=40), guidance=2.0))
    own = rollout.collect(RolloutRequest(PROMPTS, seed=0, stochastic_steps=()))
    for ours, theirs in zip(before.samples, own.samples, strict=True):
        assert (ours.image - theirs.image).abs().max() < 1e-5
    agent.stop()


def test_sizes_share_what_is_frozen(tiny_dir):
    small = TinySD3Denoiser(tiny_dir, height=16, width=16)
    large = small.sized(32, 64)
    assert large.frozen is small.frozen and (small.height, small.width) == (16, 16)
    assert large.latent_shape == (4, 8, 16) and small.latent_shape == (4, 4, 4)
    assert torch.equal(large.sigmas(4), TinySD3Denoiser(tiny_dir, height=32, width=64).sigmas(4))
    with pytest.raises(ConfigError, match=r"`height` must be.*got 36; try 32 or 40"):
        small.sized(36, 32)


def test_what_draws_one_size_refuses_another(cluster):
    config = toy_config(GRPOConfig, policy={"eval_size": [8, 8]})
    with pytest.raises(ConfigError, match=r"`policy\.eval_size` must be null for .*got \[8, 8\]"):
        config.build_algo().rollout_eval([Prompt("a cat")])
    with pytest.raises(ConfigError, match=r"eval_size` must be a height and a width.*\[32\]"):
        toy_config(GRPOConfig, policy={"eval_size": [32]}).validate()
