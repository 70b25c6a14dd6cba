"""The contract of a generative batch environment, in one place, and the one way to read what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym

from unirl_env.errors import ContractError
from unirl_env.types import Prompt, Sample

__all__ = ["OPTIONAL", "GenerativeEnv", "env_attr"]


class GenerativeEnv(Protocol):
    """What this library reads of an environment, beside Gymnasium's own `VectorEnv`.

    `GenerativeVectorEnv` answers all of it for its subclasses; an environment that derives from something
    else answers it itself. `check_vector_env` tells what is still wrong.

    Gymnasium's own part: `num_envs`, the four spaces (observations are a flat `Dict`; actions may be
    anything), `metadata["autoreset_mode"]` (DISABLED or NEXT_STEP), `reset`, `step`, `close`.

    `reset(seed=, options=)` takes the options `prompts`, `group_size`, `same_noise` and `sample_offset`, and
    refuses others with ConfigError; `GenerativeVectorEnv.reset` says what they mean. `info` holds `group`,
    `prompt`, `prompt_id` and `episode_seed`, each `[B]` with its mask, in every step.

    Attributes:
        started: Whether `reset` has been called.
        playing: The B prompts of the present episodes.
        finished: The samples of the episodes that the last step has finished, by their rows.
        array_backend: `"torch"` where observations are tensors; without it, `"numpy"`.
        info_objects: Whether `info` holds the library's objects instead of plain data; without it, it does
            not. Whoever can do both lets it be set.
        laws: What holds here beyond the laws of every environment: functions `law(env, act, seed, max_steps)`
            that raise where it does not hold, or their names (`"tokens"`, `"package.module:law"`). None
            without it: nothing is guessed from the shape of a space.
        example_act: `example_act(obs) -> actions`, a policy to judge the environment with, a function of what
            is seen; without it, actions are drawn from the action space, keyed by the observation.
        prompts: Where a `reset` without `prompts` takes them from (a `PromptSource`); None without it.
    """

    started: bool
    playing: tuple[Prompt, ...]
    finished: Mapping[int, Sample]
    array_backend: str
    info_objects: bool
    laws: Sequence[Callable[..., None] | str]
    example_act: Callable[[dict[str, Any]], Any] | None
    prompts: Any

    def snapshot(self) -> Any:
        """The whole state, in the middle of an episode too; nothing that happens later changes it."""

    def restore(self, snapshot: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go back to a snapshot; its observation and info."""

    def fork(self, indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Let episode i go on from where episode `indices[i]` stands; further copies draw fresh noise."""


OPTIONAL: Mapping[str, Any] = {
    "started": False,
    "array_backend": "numpy",
    "info_objects": False,
    "laws": (),
    "example_act": None,
    "prompts": None,
    "scores": None,
    "judged": None,
}
"""What an environment need not say, and what is taken for it. `scores` and `judged` are wrappers' words: what
a scorer said of the samples of the last step, and of which rows."""
_MISSING = object()


def env_attr(env: gym.vector.VectorEnv, name: str, default: Any = _MISSING) -> Any:
    """What the outermost environment that knows `name` says, whatever wrappers are around it.

    Wrappers that change what the environment beneath them says say it in its place.

    Args:
        env: Wrapped or not.
        name: An attribute of `GenerativeEnv`, or `scores` or `judged`.
        default: What is taken where nobody knows it; without one, that of `OPTIONAL`.

    Raises:
        ContractError: If none knows it, and there is no default.
    """
    inner: Any = env
    while inner is not None:
        if hasattr(inner, name):
            return getattr(inner, name)
        inner = getattr(inner, "env", None)
    default = OPTIONAL.get(name, _MISSING) if default is _MISSING else default
    if default is not _MISSING:
        return default
    raise ContractError(
        f"A generative environment must have `{name}`, got none in {env}; `unirl_env.envs.contract` says "
        "what it must be. Try a `GenerativeVectorEnv`."
    )
