"""Worlds from the arguments of an environment id: model, prompts, reward, and the wrappers around them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch

from unirl_env.build.scorers import build_scorer
from unirl_env.envs.denoise import DenoiseVectorEnv
from unirl_env.envs.single import SingleEnv
from unirl_env.errors import ConfigError
from unirl_env.models import DENOISERS, Denoiser
from unirl_env.models.options import MODEL_OPTIONS, model_options
from unirl_env.wrappers.flatten import ArrayInfo, FlattenForPPO, flatten_for_ppo
from unirl_env.wrappers.reward import RewardWrapper

__all__ = ["make_denoiser", "make_env", "make_vector_env", "pick_device"]

ONE_EPISODE = {"num_envs": 1, "group_size": 1, "array_backend": "numpy", "autoreset_mode": "disabled"}


def make_vector_env(
    num_envs: int = 1,
    *,
    scorer: Any = None,
    on_invalid: str | float = "nan",
    device: str = "cpu",
    flat: bool | Sequence[str] = False,
    **arguments: Any,
) -> gym.vector.VectorEnv:
    """Entry point of the vector environments: `DenoiseVectorEnv` inside `RewardWrapper`.

    Args:
        num_envs: B.
        scorer: Anything that `build_scorer` understands; None leaves the episodes unscored.
        on_invalid: What an invalid score pays: `"nan"`, `"raise"`, or a number.
        device: For the model's frozen half and the episodes; `"auto"` is the GPU where there is one.
        flat: For unmodified agents: see and act in one flat `Box` (`FlattenForPPO`), with an `info` of arrays
            (`ArrayInfo`); a sequence names the entries that are seen. An argument, because `gym.make_vec`
            cannot wrap natively batched environments.
        **arguments: `denoiser` (a name or a `Denoiser`), the model's options, and those of
            `DenoiseVectorEnv`.

    Raises:
        ConfigError: If an argument is unknown or does not fit.
    """
    device = pick_device(device)
    if isinstance(arguments.get("denoiser"), Denoiser):
        denoiser = arguments.pop("denoiser")
        rest = {k: v for k, v in arguments.items() if k not in (*MODEL_OPTIONS, "denoiser_options")}
    else:
        name, options, rest = model_options({**arguments, "device": device})
        denoiser = make_denoiser(name, options)
    known = {
        parameter
        for kind in (DenoiseVectorEnv, *DenoiseVectorEnv.__mro__[1:2])
        for parameter in inspect.signature(kind.__init__).parameters
    } - {"self", "denoiser", "shared"}
    unknown = set(rest) - known
    if unknown:
        raise ConfigError(
            f"The environment has no arguments {sorted(unknown)}; it has "
            f"{sorted(known | set(MODEL_OPTIONS) | {'denoiser', 'scorer', 'on_invalid', 'flat'})}."
        )
    env = DenoiseVectorEnv(denoiser, num_envs=num_envs, device=device, **rest)
    if scorer is not None:
        env = RewardWrapper(env, build_scorer(scorer), on_invalid=on_invalid)
    if not flat:
        return env
    return ArrayInfo(FlattenForPPO(env) if flat is True else FlattenForPPO(env, flat))


def make_env(*, flat: bool | Sequence[str] = False, **arguments: Any) -> gym.Env:
    """Entry point of the single environments: a view of a vector environment of one episode.

    Raises:
        ConfigError: If an argument is unknown or does not fit, or asks for more than one episode can be.
    """
    for name, value in ONE_EPISODE.items():
        if arguments.setdefault(name, value) != value:
            raise ConfigError(
                f"`{name}` must be {value!r} for a single environment, got {arguments[name]!r}; "
                "try gym.make_vec."
            )
    env = SingleEnv(make_vector_env(**arguments))
    if not flat:
        return env
    return flatten_for_ppo(env) if flat is True else flatten_for_ppo(env, flat)


def pick_device(device: str) -> str:
    """`"auto"` as a real device."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_denoiser(name: str, options: dict[str, Any]) -> Denoiser:
    """The adapter of a model family; its two halves load on first use.

    Raises:
        ConfigError: If the family is unknown or the options do not fit it.
    """
    target = DENOISERS.get(name)
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        raise ConfigError(f"The options of model {name!r} do not fit: {error}.") from error
    return target(**options)
