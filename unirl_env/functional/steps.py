"""Which denoising steps are stochastic, and therefore trained, in an iteration."""

from __future__ import annotations

import math
import random

from unirl_env.errors import ConfigError
from unirl_env.functional.noise import derive_seed
from unirl_env.functional.require import require_choice

__all__ = ["choose_steps"]


def choose_steps(
    kind: str,
    num_steps: int,
    *,
    fraction: tuple[float, float] = (0.0, 0.5),
    count: int | None = None,
    window: int = 4,
    stride: int | None = None,
    iterations_per_window: int = 25,
    seed: int = 0,
    iteration: int = 0,
    include_last: bool = False,
) -> tuple[int, ...]:
    """The indices of the stochastic steps: a function of the arguments, with no hidden state.

    - "all": every step.
    - "none": no step. The deterministic ODE is played, as losses that need no log-probability may have it.
    - "fraction": the steps i with `fraction[0] * T <= i < fraction[1] * T`.
    - "random": `count` of those, drawn without replacement anew in every iteration.
    - "window": `window` consecutive steps that move from noise to data by `stride` after every
      `iterations_per_window` iterations, and start over. The last window is moved back to be full.

    The step to sigma 0 is left out of every kind unless asked for: its noise stays in the picture, and
    rewards would be those of noisy pictures.

    Deterministic steps have no log-probability: the gradient through them is missing from a policy gradient,
    and no KL is charged there. `StepSettings` says how much each kind sees.

    Args:
        kind: "all", "none", "fraction", "random" or "window".
        num_steps: Number of denoising steps T.
        fraction: Part of the trajectory for "fraction" and "random", from 0 (noise) to 1 (data).
        count: Number of steps for "random", which needs it.
        window: Length of the window; the whole trajectory if that is shorter.
        stride: How far the window moves; None is `window - 1` (at least 1), so that windows overlap by one
            step.
        iterations_per_window: How long the window stays.
        seed: The seed of the run: runs with other seeds draw other steps.
        iteration: The number of the rollout, from 0.
        include_last: Whether the step to sigma 0 may be chosen.

    Returns:
        Rising indices in [0, T).

    Raises:
        ConfigError: The settings leave no step, or ask for more than there are.

    Reference:
        Flow-GRPO (arXiv 2505.05470) for all steps; MixGRPO (2507.21802) for the moving window.
    """
    require_choice("kind", kind, ("all", "none", "fraction", "random", "window"))
    if kind == "none":
        return ()
    usable = num_steps if include_last else num_steps - 1
    if usable < 1:
        raise ConfigError(
            f"`num_steps` must leave a step before the last, got {num_steps}; try 10, or include_last=True."
        )
    if iteration < 0:
        raise ConfigError(f"`iteration` must be at least 0, got {iteration}.")
    if kind == "all":
        return tuple(range(usable))
    if kind == "window":
        return _window(usable, window, stride, iterations_per_window, iteration)
    start, stop = fraction
    if not 0 <= start < stop <= 1:
        raise ConfigError(f"`fraction` must rise within [0, 1], got {fraction}; try (0.0, 0.5).")
    # Products such as 0.7 * 10 may miss an integer by rounding.
    steps = range(math.ceil(start * num_steps - 1e-9), min(usable, math.ceil(stop * num_steps - 1e-9)))
    if not steps:
        raise ConfigError(
            f"`fraction` must hold a step that may be trained, got {fraction} of {num_steps} "
            "steps; try (0.0, 0.5)."
        )
    if kind == "fraction":
        return tuple(steps)
    if count is None or not 1 <= count <= len(steps):
        raise ConfigError(
            f'`count` must lie between 1 and {len(steps)} for kind="random" in this `fraction`, '
            f"got {count}; try {min(3, len(steps))}."
        )
    return tuple(sorted(random.Random(derive_seed("steps", seed, iteration)).sample(steps, count)))


def _window(
    usable: int, window: int, stride: int | None, iterations_per_window: int, iteration: int
) -> tuple[int, ...]:
    stride = max(1, window - 1) if stride is None else stride
    for name, value in (
        ("window", window),
        ("stride", stride),
        ("iterations_per_window", iterations_per_window),
    ):
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {value}.")
    window = min(window, usable)
    last = usable - window
    starts = [*range(0, last, stride), last]
    start = starts[(iteration // iterations_per_window) % len(starts)]
    return tuple(range(start, start + window))
