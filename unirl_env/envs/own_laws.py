"""The laws that an environment names for itself, beside those of every environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gymnasium.vector import VectorEnv

from unirl_env.envs.contract import told
from unirl_env.envs.default_acts import Act
from unirl_env.errors import ConfigError, ContractError
from unirl_env.registry import Registry

__all__ = ["LAWS", "Law", "check_own_laws", "named_laws"]

Law = Callable[..., None]
"""`law(env, act, seed, max_steps)`, which raises where it does not hold."""

LAWS = Registry(
    "law",
    {
        "hybrid": "unirl_env.envs.hybrid_laws:check_hybrid",
        "latents": "unirl_env.envs.latent_laws:check_latents",
        "mdp": "unirl_env.envs.mdp_laws:check_mdp",
        "tokens": "unirl_env.envs.token_laws:check_tokens",
    },
)
"""Laws by the names that an environment's `laws` may hold; a dotted path stands wherever a name does."""


def named_laws(env: VectorEnv) -> list[Law]:
    """The laws that an environment names.

    Raises:
        ContractError: If they are no sequence of laws, or one cannot be found.
    """
    laws = told(env, "laws")
    if isinstance(laws, str) or not isinstance(laws, Sequence):
        raise ContractError(
            f"`laws` must be a tuple of functions or of their names, got {laws!r}; try laws = ('tokens',)."
        )
    found = []
    for named in laws:
        try:
            law = LAWS.get(named) if isinstance(named, str) else named
        except ConfigError as error:
            raise ContractError(f"`laws` must name laws that there are, got {named!r}: {error}") from error
        if not callable(law):
            raise ContractError(f"`laws` must hold functions or their names, got {law!r}.")
        found.append(law)
    return found


def check_own_laws(laws: Sequence[Law], env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    """Hold an environment to its own laws, one after the other.

    Raises:
        ContractError: With what the law says that was broken.
    """
    for law in laws:
        name = getattr(law, "__qualname__", type(law).__qualname__)
        try:
            kept = law(env, act, seed, max_steps)
        except ContractError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ContractError(f"The environment's own law `{name}` must hold, got {said}.") from error
        if kept is False:
            raise ContractError(f"The environment's own law `{name}` must hold, and said False.")
