"""The laws of environments that denoise, beside those of every mode."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv

from unirl_env.envs.laws import law, same

__all__ = ["check_latents"]


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
    law(
        "latent" in env.single_observation_space.spaces,
        f"Observations must have `latent` where it is denoised, got {list(env.single_observation_space)}.",
    )
    first = env.reset(seed=seed)[0]["latent"]
    # Tensors may be live buffers.
    kept = first.clone() if hasattr(first, "clone") else first.copy()
    other = env.reset(seed=seed + 1)[0]["latent"]
    law(not same({"_": kept}, {"_": other}), "`reset` with another seed must give other episodes.")
