"""What may be written in several ways, brought into one form: ids, seeds, devices."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import torch

from unirl_env.checks import whole
from unirl_env.errors import ConfigError

__all__ = ["env_spec", "normalize"]

PACKAGE = __name__.partition(".")[0]
NAMESPACE = "unirl"


def normalize(config: Any) -> None:
    """Change an `AgentConfig` in place.

    Raises:
        ConfigError: If a form is not understood.
    """
    if isinstance(config.env, str) and config.env.startswith(f"{NAMESPACE}/"):
        # A remote runner has imported nothing: the prefix tells it what registers the id.
        config.env = f"{PACKAGE}:{config.env}"
    if config.seed is not None:
        # RLlib would seed every process's global generators and force slow deterministic kernels.
        config.run_seed, config.seed = whole("seed", config.seed), None
    _place(config)


def env_spec(env: Any) -> gym.envs.registration.EnvSpec:
    """The registered spec of an id, whose prefix may say what to import first.

    Raises:
        ConfigError: If there is no such id.
    """
    if not isinstance(env, str):
        raise ConfigError(f"`environment` must be a registered id, got {env!r}; try 'unirl/TinySD3-T2I-v0'.")
    module, _, name = env.rpartition(":")
    try:
        importlib.import_module(module or PACKAGE)
        return gym.spec(name)
    except (ModuleNotFoundError, gym.error.Error) as error:
        raise ConfigError(f"`environment` must be a registered id, got {env!r}: {error}") from error


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
