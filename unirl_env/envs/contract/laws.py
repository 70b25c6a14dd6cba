"""The laws that an environment names for itself, beside those of every environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.envs.contract.comparing import Act, check_place, copied, law, like, present, same
from unirl_env.errors import ConfigError, ContractError, UnirlError
from unirl_env.registry import Registry

Law = Callable[..., None]
"""`law(env, act, seed, max_steps)`, which raises where it does not hold."""

LAWS = Registry(
    "law",
    {
        "hybrid": "unirl_env.envs.contract.writing_laws:check_hybrid",
        "latents": "unirl_env.envs.contract.laws:check_latents",
        "mdp": "unirl_env.envs.contract.laws:check_mdp",
        "tokens": "unirl_env.envs.contract.writing_laws:check_tokens",
    },
)
"""Laws by the names that an environment's `laws` may hold; a dotted path stands wherever a name does."""


def named_laws(env: VectorEnv) -> list[Law]:
    """The laws that an environment names.

    Raises:
        ContractError: If they are no sequence of laws, or one cannot be found.
    """
    laws = env_attr(env, "laws")
    if isinstance(laws, str) or not isinstance(laws, Sequence):
        raise ContractError(
            f"`laws` must be a tuple of functions or of their names, got {laws!r}; try laws = ('tokens',)."
        )
    found = []
    for named in laws:
        try:
            rule = LAWS.get(named) if isinstance(named, str) else named
        except ConfigError as error:
            raise ContractError(f"`laws` must name laws that there are, got {named!r}: {error}") from error
        if not callable(rule):
            raise ContractError(f"`laws` must hold functions or their names, got {rule!r}.")
        found.append(rule)
    return found


def check_own_laws(laws: Sequence[Law], env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    """Hold an environment to its own laws, one after the other.

    Raises:
        ContractError: With what the law says that was broken.
    """
    for rule in laws:
        name = getattr(rule, "__qualname__", type(rule).__qualname__)
        try:
            kept = rule(env, act, seed, max_steps)
        except ContractError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ContractError(f"The environment's own law `{name}` must hold, got {said}.") from error
        if kept is False:
            raise ContractError(f"The environment's own law `{name}` must hold, and said False.")


def check_latents(env: VectorEnv, act: Any, seed: int, max_steps: int = 100_000) -> None:
    """Episodes begin with noise of their own.

    Args:
        env: A generative vector environment that observes a `latent`.
        act: As in every law; unused.
        seed: Key of the episodes.
        max_steps: As in every law; unused.

    Raises:
        ContractError: With the law that was broken.
    """
    seen: Any = env.single_observation_space
    law(
        "latent" in seen.spaces,
        f"Observations must have `latent` where it is denoised, got {list(seen)}.",
    )
    first = env.reset(seed=seed)[0]["latent"]
    # Tensors may be live buffers.
    kept = as_numpy(first).copy()
    other = as_numpy(env.reset(seed=seed + 1)[0]["latent"])
    law(not np.array_equal(kept, other), "`reset` with another seed must give other episodes.")


def check_mdp(env: VectorEnv, act: Act, seed: int, max_steps: int = 100_000) -> None:
    """Offer malformed actions, and play a batch twice in another order.

    Args:
        env: A generative vector environment with `Discrete` actions or a `Box`.
        act: `act(obs) -> actions`.
        seed: Key of the episodes.
        max_steps: Where to stop looking.

    Raises:
        ContractError: With the law that was broken.
    """
    space = env.single_action_space
    law(
        isinstance(space, spaces.Discrete | spaces.Box),
        f"`single_action_space` must be Discrete or a Box where a process is played, got {space}.",
    )
    _check_mdp_refusals(env, act, seed)
    check_place(env, act, seed, max_steps)


def _check_mdp_refusals(env: VectorEnv, act: Act, seed: int) -> None:
    obs, _ = env.reset(seed=seed)
    before = copied(obs)
    good = as_numpy(act(env.reset(seed=seed)[0])).copy()
    bad = [good[:, None], {"action": good}]
    space = env.single_action_space
    if isinstance(space, spaces.Discrete):
        beyond = int(space.start) + int(space.n)
        bad += [np.full_like(good, beyond), good.astype(np.float32) + 0.5]
    else:
        bad.append(np.full_like(good, np.nan))
    for actions in bad:
        try:
            env.step(like(obs, actions))
        except (UnirlError, ValueError, TypeError):
            continue
        law(False, "Actions of another shape or dtype, or outside what can be done, must be refused.")
    law(same(before, copied(present(env))), "A refused action must change nothing.")
