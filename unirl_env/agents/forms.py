"""What may be written in several ways, brought into one form: ids, seeds, devices."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.envs.registration import EnvSpec

from unirl_env.arguments.values import whole
from unirl_env.errors import ConfigError
from unirl_env.prompts.sources import PromptSource
from unirl_env.worlds.arguments import check_words
from unirl_env.worlds.registration import OURS, full_id, recall, spec_of
from unirl_env.worlds.world import ForeignWorld, World, world_of

__all__ = ["env_spec", "normalize", "prompts_of", "runners_options", "runners_world"]


def normalize(config: Any) -> None:
    """Change an `AgentConfig` in place.

    Raises:
        ConfigError: If a form is not understood.
    """
    # A remote runner has imported nothing: the prefix tells it what registers the id, and the spec what it
    # means where no import does, as of one that was registered in a notebook.
    config._env_spec = env_spec(config)
    config.env = full_id(config.env)
    if config._env_spec.vector_entry_point == OURS:
        check_words(config.env_options())
    if config.seed is not None:
        # RLlib would seed every process's global generators and force slow deterministic kernels.
        config.run_seed, config.seed = whole("seed", config.seed), None
    _place(config)


def env_spec(config: Any) -> EnvSpec:
    """The registered spec of an `AgentConfig`'s environment.

    Raises:
        ConfigError: If there is no such id.
    """
    held = getattr(config, "_env_spec", None)
    if held is not None and held.id == str(config.env).rpartition(":")[2]:
        recall(config.env, held)
    return spec_of(config.env)


def runners_options(config: Any) -> dict[str, Any]:
    """Arguments of a runner's environment, which plays groups by hand, beside those of its id."""
    return {
        # A runner says itself where its environment lives.
        **{name: value for name, value in config.env_config.items() if name != "device"},
        "array_backend": "torch",
        "autoreset_mode": "disabled",
        **config.mode.env_options(config),
    }


def prompts_of(config: Any, runner: Any) -> PromptSource:
    """What an agent takes prompts from: those that it was given, or those that its runner has read.

    Args:
        config: The settings.
        runner: That of the agent's own process, which plays nothing where others do.
    """
    if config.prompts is None and runner.world is not None and runner.world.prompts is not None:
        return runner.world.prompts
    return PromptSource.of(config.prompt_source())


def runners_world(config: Any, device: str) -> World | ForeignWorld:
    """The world of a runner on `device`.

    Raises:
        ConfigError: If an argument of the environment does not fit.
        ModelNotFound: If its model cannot be loaded.
    """
    env_spec(config)
    return world_of(config.env, {**config.rollout_env_options(), "device": device})


def _place(config: Any) -> None:
    """Let the environment's `device` say where the driver's own parts live.

    Remote processes get their devices from Ray, which must be told how many.
    """
    device = str(config.env_config.get("device", "cpu"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda"):
        return
    for processes, gpus in (
        ("num_learners", "num_gpus_per_learner"),
        ("num_env_runners", "num_gpus_per_env_runner"),
    ):
        if getattr(config, gpus) > 0:
            continue
        if getattr(config, processes) > 0:
            raise ConfigError(
                f"`{gpus}` must be positive with `{processes}` = {getattr(config, processes)} and device "
                f"{device!r}, got {getattr(config, gpus)}; try {gpus}=1 (or a share of a GPU), or "
                "device='cpu'."
            )
        setattr(config, gpus, 1)
    if ":" in device:
        config.local_gpu_idx = int(device.partition(":")[2])
