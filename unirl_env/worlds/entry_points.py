"""The entry points of environment ids, and of environments in Python: worlds from arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from unirl_env.envs.single import SingleEnv
from unirl_env.errors import ConfigError
from unirl_env.worlds.arguments import check_flat
from unirl_env.worlds.world import World
from unirl_env.wrappers.flatten import flatten_for_ppo
from unirl_env.wrappers.reward import UNASKED

__all__ = ["make_env", "make_vector_env"]

ONE_EPISODE = {
    "num_envs": 1,
    "group_size": 1,
    "array_backend": "numpy",
    "autoreset_mode": "disabled",
    "overlap": False,
}


def make_vector_env(
    num_envs: int = 1,
    *,
    generator: Mapping[str, Any] | None = None,
    scorer: Any = None,
    on_invalid: str | float = UNASKED,
    together: bool = False,
    overlap: bool = False,
    device: str = "cpu",
    flat: bool | Sequence[str] = False,
    **arguments: Any,
) -> gym.vector.VectorEnv:
    """Entry point of the vector environments: the model's environment inside `RewardWrapper`.

    Args:
        num_envs: B.
        generator: Of a language model, what draws its texts: `{"denoiser": "tiny_sd3", ...}` with the
            options of that model and those of `DrawWrapper`; `together` is True by default in autoreset mode
            DISABLED. None leaves texts as they are.
        scorer: Anything that `build_scorer` understands; None leaves the episodes unscored.
        on_invalid: What an invalid score pays: `"raise"`, because no agent is handed NaN unasked, `"nan"`,
            or a number; this library's own agents, which read scores, take the default for `"nan"`. See
            `RewardWrapper`.
        together: Judge all episodes of a batch at its end, in one call of the scorer; see `RewardWrapper`.
        overlap: Judge in the background: a step does not wait for its scores; see `RewardWrapper`.
        device: For the model's frozen half and the episodes; `"auto"` is the GPU where there is one.
        flat: For unmodified agents: see one flat `Box`, the prompt included, and act in one, or by tokens
            (`FlattenForPPO`); a sequence names the entries that are seen. An argument, because
            `gym.make_vec` cannot wrap natively batched environments.
        **arguments: `denoiser`, `language_model` or `unified_model` (a registered name, a dotted path, a
            class or a model), the model's options, those of `DenoiseVectorEnv`, `TokenVectorEnv` or
            `HybridVectorEnv`, and `env`, a class of your own (or its path) in the place of these.

    Raises:
        UnknownArgument: If an argument is unknown; a ConfigError and a TypeError.
        ConfigError: If an argument does not fit.
        PromptError: If a prompt cannot be used, or lacks what the scorer asks for.
    """
    given = {"generator": generator, "scorer": scorer, "on_invalid": on_invalid, "together": together}
    given |= {"overlap": overlap, "device": device, "flat": flat, **arguments}
    return World.of(given).env(num_envs)


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
    check_flat(flat)
    env = SingleEnv(make_vector_env(**arguments))
    if not flat:
        return env
    return flatten_for_ppo(env) if flat is True else flatten_for_ppo(env, flat)
