"""Which denoising steps of an episode are recorded, and what of each."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["kept_steps", "seen_of"]


def kept_steps(explored: Collection[int], num_steps: int, keep_final: bool) -> tuple[int, ...]:
    """The recorded steps: those that explore.

    Where none does, but the finished latent is wanted, it is the last one, which ends in it: a phase then
    has one row for each episode.

    Args:
        explored: The stochastic steps.
        num_steps: T.
        keep_final: Whether the finished latent is wanted.

    Returns:
        Rising indices in [0, T).
    """
    if not explored and keep_final and num_steps:
        return (num_steps - 1,)
    return tuple(sorted(explored))


def seen_of(explored: Collection[int]) -> tuple[str, ...]:
    """What of a recorded step's observation is kept, beside its context.

    A step that was not drawn must say so, or it would be scored as if it had been.
    """
    return ("latent", "sigma", "sigma_next", *(() if explored else ("stochastic",)))
