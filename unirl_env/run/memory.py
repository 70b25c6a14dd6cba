"""What a rollout of latents keeps of each episode, in bytes, before anything is loaded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.loading import as_dtype
from unirl_env.settings import RunConfig

GB = 1e9
WORTH_SAYING = 2 * GB
"""Of an iteration; less is not worth a line."""


@dataclass(frozen=True)
class EpisodeMemory:
    """What an iteration keeps of an episode until its update is over, without what prompts are read as.

    Attributes:
        step: Bytes of a recorded step: the latent that the policy saw, the one that it chose (both in
            `policy.storage_dtype`) and, where the loss or the first check reads it, the mean (float32).
        steps: How many are recorded; of agents that noise the finished latent anew, the last one alone.
        final: Bytes of the finished latent, where the loss reads it.
        sample: Bytes of the picture (float32) or the clip (8 bits), where samples are kept.
        velocities: Bytes of what the policy that sampled says of the latents that an update noises anew
            (float32), where the loss reads it.
    """

    step: int
    steps: int
    final: int
    sample: int
    velocities: int = 0

    @property
    def total(self) -> int:
        """Bytes of an episode."""
        return self.steps * self.step + self.final + self.sample + self.velocities


def episode_memory(model: Denoiser, config: Any) -> EpisodeMemory:
    """What is kept of each episode of `model` under an agent's settings.

    Args:
        model: The environment's, of which nothing needs to be loaded.
        config: An `AgentConfig`.
    """
    elements = math.prod(model.latent_shape)
    stored = elements * as_dtype("policy.storage_dtype", config.policy.storage_dtype).itemsize
    forward = config.looks_forward
    pixels = 3 * getattr(model, "height", 0) * getattr(model, "width", 0)
    sample = pixels * (getattr(model, "num_frames", 0) if model.makes == "video" else 4)
    return EpisodeMemory(
        step=2 * stored + (0 if forward else 4 * elements),
        steps=1 if forward else len(config.trained_steps(0)),
        final=stored if "final" in config.needs or forward else 0,
        sample=sample if config.keep_samples else 0,
        velocities=4 * elements * config.noising.draws if forward and "velocity" in config.needs else 0,
    )


def told(memory: EpisodeMemory, episodes: int) -> str:
    """It in a sentence."""
    parts = [f"{memory.steps} step{'s' * (memory.steps > 1)} of {_readable(memory.step)}"]
    parts += [f"the finished latent, {_readable(memory.final)}"] if memory.final else []
    parts += [f"the sample, {_readable(memory.sample)}"] if memory.sample else []
    parts += (
        [f"velocities to hold new ones against, {_readable(memory.velocities)}"] if memory.velocities else []
    )
    return (
        f"An episode keeps {_readable(memory.total)} ({', '.join(parts)}), the {episodes} of an "
        f"iteration {_readable(memory.total * episodes)}."
    )


def memory_note(cfg: RunConfig, model: Any, config: Any) -> tuple[str, ...]:
    """What an iteration keeps, where that is much; nothing for small pictures and for texts.

    Raises:
        ConfigError: If this machine alone plays, and has less memory; names what would fit.
    """
    if not isinstance(model, Denoiser):
        return ()
    memory, episodes = episode_memory(model, config), cfg.rollout.num_prompts * cfg.rollout.group_size
    whole, room = memory.total * episodes, _room()
    if whole > room and not cfg.rollout.num_env_runners:
        raise ConfigError(
            f"`rollout.num_prompts` x `rollout.group_size` must be episodes that fit into the "
            f"{_readable(room)} of this machine, got {episodes}: {told(memory, episodes)} "
            f"Try {'; or '.join(_remedies(cfg, memory, room))}."
        )
    return (told(memory, episodes),) if whole >= WORTH_SAYING or model.makes == "video" else ()


def _remedies(cfg: RunConfig, memory: EpisodeMemory, room: int) -> list[str]:
    found = [f"at most {int(room // memory.total)} episodes"] if memory.total <= room else []
    if cfg.policy.storage_dtype == "float32":
        found.append("`policy.storage_dtype=bfloat16`")
    if memory.steps > 1:
        found += ["fewer trained `steps`", "`agent.estimator=elbo`, which records one alone"]
    if memory.velocities:
        found.append("fewer `noising.draws`")
    if memory.sample * 2 > memory.total:
        found.append("`rollout.keep_samples=false`")
    return [*found, "players on other machines (`rollout.num_env_runners`)"]


def _room() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _readable(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.2g} {unit}"
        count /= 1000
    return ""
