"""Noise schedules of flow matching: falling sigmas from pure noise (1) to data (0)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unirl_env.errors import ConfigError


def flow_sigmas(num_steps: int, shift: float = 3.0) -> Tensor:
    """The shifted uniform schedule `sigma = shift * t / (1 + (shift - 1) * t)`, t from 1 to 0 in equal steps.

    A shift above 1 spends more steps near pure noise, where large images are decided.

    Args:
        num_steps: Number of denoising steps T, at least 1.
        shift: Positive; 1 keeps the uniform grid, 3 is SD3's value, 5 is usual for video.

    Returns:
        `[T + 1]` float32 on the CPU, strictly falling, from exactly 1 (pure noise) to exactly 0 (data).

    Raises:
        ConfigError: `num_steps` or `shift` is not positive.

    Reference:
        Esser et al., Scaling Rectified Flow Transformers (arXiv 2403.03206), on resolution-dependent shifts.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ConfigError(f"`num_steps` must be an integer of at least 1, got {num_steps!r}; try 10.")
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"`shift` must be a positive number, got {shift!r}; try 3.0, or 1.0 for no shift.")
    t = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    return (shift * t / (1.0 + (shift - 1.0) * t)).float()


def dynamic_shift_sigmas(
    num_steps: int,
    num_tokens: int,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> Tensor:
    """The schedule whose shift grows with the size of the picture, as FLUX uses it.

    `mu` is linear in the number of latent tokens, through (`base_tokens`, `base_shift`) and (`max_tokens`,
    `max_shift`), and continues beyond them; the shift of `flow_sigmas` is `exp(mu)`.

    Args:
        num_steps: Number of denoising steps T, at least 1.
        num_tokens: Tokens the denoiser sees per sample; 1024 for a 512 x 512 picture with 16 x 16 patches.
        base_tokens: Where `mu` is `base_shift`.
        max_tokens: Where `mu` is `max_shift`; not a limit.
        base_shift: `mu` at `base_tokens`, the logarithm of a shift.
        max_shift: `mu` at `max_tokens`, the logarithm of a shift.

    Returns:
        `[T + 1]` float32 on the CPU, from 1 to 0.

    Raises:
        ConfigError: A count is not positive, or the two anchors coincide.

    Reference:
        Esser et al. (arXiv 2403.03206); the anchors are FLUX.1's published settings.
    """
    if num_tokens < 1:
        raise ConfigError(f"`num_tokens` must be at least 1, got {num_tokens}; try height * width / 256.")
    if base_tokens < 1 or max_tokens <= base_tokens:
        raise ConfigError(
            f"`max_tokens` must be larger than `base_tokens` >= 1, got {max_tokens} and {base_tokens}; "
            "try 4096 and 256."
        )
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    mu = base_shift + slope * (num_tokens - base_tokens)
    return flow_sigmas(num_steps, math.exp(mu))
