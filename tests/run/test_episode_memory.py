"""What a rollout of latents keeps is said before it is played, and refused where it cannot fit."""

import math

import pytest
from models.wan_cases import WAN

from unirl_env.errors import ConfigError
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.modes import MODES
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.run import memory
from unirl_env.run.agent_setup import agent_config
from unirl_env.train import settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("wan")
    WAN.build(folder)
    return folder


def read(*overrides):
    cfg = settings("diffusion/tiny_sd3", [*overrides])
    return cfg, agent_config(cfg)


def kept(batch):
    """Bytes of what an iteration holds of its episodes, without contexts and numbers."""
    phase = next(iter(batch.phases.values()))
    tensors = [phase.observation["latent"], phase.action, phase.mean, phase.final]
    tensors += [sample.video for sample in batch.samples]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@pytest.mark.parametrize("agent", ["flow_dppo", "grpo", "nft"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_it_is_what_a_rollout_keeps(folder, storage, agent):
    _, config = read(f"agent={agent}", f"policy.storage_dtype={storage}", "model.num_steps=4")
    denoiser = WAN.denoiser(folder)
    asked = MODES.get("diffusion").training_options(config, 0, checked=False)
    rollout = Rollout(
        lambda n: WAN.env(denoiser, n, 4, WAN.prompts, 1.0), Actor(denoiser, storage_dtype=storage)
    )
    batch = rollout.collect(RolloutRequest(list(WAN.prompts), seed=1, **{**asked, "levels": None}))
    found = memory.episode_memory(denoiser, config)
    assert kept(batch) == len(batch) * (found.total - found.velocities)


def test_little_is_not_worth_a_line_and_a_clip_always_is(folder):
    cfg, config = read()
    assert memory.memory_note(cfg, TinySD3Denoiser(), config) == ()
    (line,) = memory.memory_note(cfg, WAN.denoiser(folder), config)
    assert line.startswith("An episode keeps ") and "96 of an iteration" in line


def test_what_cannot_fit_is_refused_with_what_would(folder, monkeypatch):
    cfg, config = read()
    denoiser = WAN.denoiser(folder)
    each = memory.episode_memory(denoiser, config).total
    monkeypatch.setattr(memory, "_room", lambda: 10 * each)
    with pytest.raises(ConfigError, match=r"got 96: .* Try at most 10 episodes; or `policy.storage_dtype=bf"):
        memory.memory_note(cfg, denoiser, config)
    cfg.rollout.num_env_runners = 2
    assert memory.memory_note(cfg, denoiser, config)


def test_agents_of_finished_latents_keep_the_last_step_alone(folder):
    _, config = read("agent=nft")
    said = memory.episode_memory(WAN.denoiser(folder), config)
    assert said.steps == 1 and said.final
    assert said.velocities == 4 * config.noising.draws * math.prod(WAN.denoiser(folder).latent_shape)
    _, config = read("agent=awm")
    assert not memory.episode_memory(WAN.denoiser(folder), config).velocities
