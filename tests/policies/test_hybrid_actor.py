"""The hybrid policy step by step: each episode in its own phase, exactly as whole rollouts sample."""

import gymnasium as gym
import pytest
import torch
from janus_cases import write_tiny_janus

import unirl_env.functional as F
from unirl_env.errors import ConfigError
from unirl_env.policies.actor import Actor
from unirl_env.policies.stepping import act_by_phase
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout

ONE, TWO, TOKENS = "unirl/TinyUnified-T2I-v0", "unirl/TinyEnhancerAndSD3-T2I-v0", "unirl/Janus-T2I-v0"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    tokens = {
        "pretrained": write_tiny_janus(tmp_path_factory.mktemp("janus")),
        "max_new_tokens": 30,
        "max_prompt_tokens": 96,
        "prompts": "shapes_train",
        "model_options": {"eos_opens": True},
        "scorer": {"name": "pictured", "scorer": "shapes"},
    }
    return {ONE: {"num_steps": 3}, TWO: {"num_steps": 3}, TOKENS: tokens}


def make(env_id, chosen, num_envs=4, **more):
    settings = {"array_backend": "torch", "autoreset_mode": "disabled", "info_objects": True}
    settings |= {**chosen, **more}
    return gym.make_vec(
        f"unirl_env:{env_id}", num_envs=num_envs, vectorization_mode="vector_entry_point", **settings
    )


@pytest.mark.parametrize("env_id", [ONE, TWO, TOKENS])
def test_steps_are_those_of_a_whole_rollout(env_id, options):
    """The same keyed draws and noise: the same texts and pictures, and the same log-probabilities."""
    env = make(env_id, options[env_id])
    model = env.unwrapped.unified_model
    actor = Actor(model, eta=0.7) if not model.discrete else Actor(model)
    obs, info = env.reset(seed=5)
    prompts, seeds = info["prompt"], torch.as_tensor(info["episode_seed"])
    samples, done = [None] * 4, torch.zeros(4, dtype=torch.bool)
    log_prob = {0: torch.zeros(4), 1: torch.zeros(4)}
    while not done.all():
        phase = obs["phase"].clone()
        place = obs["length"] - obs["prompt_length"]
        if model.discrete:
            place = torch.where(phase == 1, env.unwrapped.max_new_tokens + obs["image_length"], place)
        uniform = torch.stack([F.keyed_uniform(seeds[i : i + 1], int(place[i])) for i in range(4)]).flatten()
        noise = None
        if not model.discrete:
            shape = obs["latent"].shape[1:]
            noise = torch.cat(
                [F.keyed_noise([int(s)], int(k), shape) for s, k in zip(seeds, obs["step"], strict=True)]
            )
        step = act_by_phase(actor, obs, uniform, noise)
        for value in (0, 1):
            log_prob[value] += torch.where((phase == value) & ~done, step.log_prob, 0.0)
        obs, _, ended, cut, info = env.step(step.action)
        for i, sample in enumerate(info.get("samples", ())):
            samples[i] = sample or samples[i]
        done |= ended | cut
    rollout = Rollout(lambda n, num_steps=None: make(env_id, options[env_id], n), actor)
    offsets = [[p.id for p in prompts[:i]].count(prompt.id) for i, prompt in enumerate(prompts)]
    batch = rollout.collect(RolloutRequest(list(prompts), seed=5, sample_offset=offsets))
    assert batch.episode_seed.tolist() == seeds.tolist()
    for mine, theirs in zip(samples, batch.samples, strict=True):
        assert mine.text == theirs.text and mine.truncated == theirs.truncated
        assert (mine.image is None) == (theirs.image is None)
        if mine.image is not None:
            torch.testing.assert_close(mine.image, theirs.image, atol=2e-3, rtol=0)
    for name, value in (("text", 0), ("image", 1)):
        phase = batch.phases[name]
        mine = (phase.log_prob * phase.mask).sum(1)
        torch.testing.assert_close(mine, log_prob[value], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("env_id", [ONE, TOKENS])
def test_without_draws_it_is_greedy(env_id, options):
    env = make(env_id, options[env_id])
    obs, _ = env.reset(seed=1)
    actor = Actor(env.unwrapped.unified_model)
    first, again = act_by_phase(actor, obs), act_by_phase(actor, obs)
    assert torch.equal(first.action["token"], again.action["token"])
    assert (first.log_prob == 0).all(), "a greedy choice has no distribution"


def test_guidance_of_picture_tokens_is_the_models_own(options):
    model = make(TOKENS, options[TOKENS]).unwrapped.unified_model
    with pytest.raises(ConfigError, match="guidance"):
        Actor(model, guidance=2.0)
