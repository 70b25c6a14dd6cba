"""One denoising step as a Gaussian policy over the next latent: its kernel, and how it is sampled and scored.

A flow-matching model predicts a velocity, and `x_t = (1 - sigma) x_0 + sigma * noise`. Its ODE is
deterministic; the kernels here turn one step of it into `N(mean, std^2 I)`. `transition` is the only place
where a mean and a standard deviation are made: sampling, log-probabilities, divergences and trust regions all
use it. `choose_steps` says which steps of an iteration are stochastic, and therefore trained.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.noise import derive_seed
from unirl_env.functional.require import require_choice, require_floating, require_shape

DYNAMICS = ("flow", "dance", "cps", "ddim", "ode")
SMALLEST_ETA = 1e-4  # below it, std drowns in the rounding of float32 latents
ROUNDING = 1e-6  # a first sigma may miss 1 by rounding
NEAR_ONE = 1.0 - 5e-4  # schedules that begin with pure noise just below 1: 0.9997 is SANA's
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def transition(
    velocity: Tensor,
    latent: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    dynamics: str = "flow",
    eta: float = 0.7,
    sigma_max: float | None = None,
    stochastic: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the policy over the next latent.

    With s = sigma, s' = sigma_next, D = s - s':

    - "flow": `g = eta * sqrt(s / (1 - s))`; mean `x (1 - g^2 D / 2s) - v (1 + g^2 (1 - s) / 2s) D`, std
      `g sqrt(D)`. As the steps become small it has the marginals of the ODE, where it starts below s = 1. A
      first step from s = 1 has not, however small: there `g sqrt(D) = eta`, and pure noise becomes noise of
      std `sqrt(1 + eta^4 / 4)` (1.03 at eta 0.7, 1.12 at 1, 1.41 at sqrt(2)). The later steps wear that off:
      the data's end as they should.
    - "dance": the same with a constant `g = eta`; as the steps become small it has the marginals of the ODE,
      from s = 1, too.
    - "cps": std `s' sin(eta pi / 2)`; mean `x_0 (1 - s') + noise sqrt(s'^2 - std^2)`, with the predicted
      `x_0 = x - s v` and `noise = x + (1 - s) v`. Each step keeps the coefficients of data and noise for the
      x_0 it predicts. The marginals are not the ODE's, however small the steps: x_0 is predicted as its mean,
      and fresh noise stands for what that mean leaves open. Gaussian data end with `cos(eta pi / 4)` of their
      std in the limit of many steps (0.85 at eta 0.7: 0.09 too little of 0.6), and less in a few.
    - "ode": std 0; mean `x - v D`.

    Where the std is 0 (eta 0, `stochastic` False, "cps" towards sigma 0) the mean is exactly the Euler step.

    Args:
        velocity: `[*lead, ...]` the model's prediction, noise minus data.
        latent: `[*lead, ...]` the current latent x.
        sigma: Current noise level in (0, 1], 1 is pure noise; a number, [B] or [B, S].
        sigma_next: Next noise level in [0, sigma); 0 is the last step.
        dynamics: The kernel.
        eta: Strength of the noise; 0, or at least 1e-4; at most 1 for "cps" and "ddim".
        sigma_max: "flow" is singular at s = 1; there, 1 - s is taken at min(s, sigma_max). Pass the
            schedule's second value. None takes `sigma_next` where sigma is 1: the same, for a first step.
        stochastic: Bool `[*lead]`; False makes the row the Euler ODE.

    Returns:
        `mean` `[*lead, ...]` and `std` `[*lead]`, float32; lead is [B] when every sigma is a number.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or sigmas on the CPU do not fall.
        ConfigError: An unknown kernel, or `eta` or `sigma_max` out of range.

    Reference:
        Flow-GRPO (arXiv 2505.05470), the ODE turned into an SDE; DanceGRPO (2505.07818); Flow-CPS
        (2509.05952); DDIM (2010.02502), equations 12 and 16, the kernel of DDPO (2305.13301).
    """
    _check_kernel(dynamics, eta, sigma_max)
    require_floating("latent", latent)
    require_floating("velocity", velocity)
    require_shape("velocity", velocity, latent.shape, "latent")
    s, s_next, noisy = _rows(latent, sigma, sigma_next, stochastic)

    wide = s.shape + (1,) * (latent.ndim - s.ndim)
    if noisy.device.type == "cpu" and True not in noisy.flatten().tolist():
        return latent.float() - velocity.float() * (s - s_next).reshape(wide), torch.zeros_like(s)
    keep, push, std = _coefficients(s, s_next, dynamics, eta, sigma_max)
    noisy = noisy & (std > 0)
    # The deterministic rows take Euler's coefficients themselves, not a limit that rounds to them.
    keep = torch.where(noisy, keep, 1.0)
    push = torch.where(noisy, push, s - s_next)
    std = torch.where(noisy, std, 0.0)
    mean = latent.float() * keep.reshape(wide) - velocity.float() * push.reshape(wide)
    return mean, std


def _coefficients(
    s: Tensor, s_next: Tensor, dynamics: str, eta: float, sigma_max: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`keep`, `push`, `std` `[*lead]` with mean = keep * latent - push * velocity."""
    delta = s - s_next
    if dynamics == "ode" or eta == 0:
        return torch.ones_like(s), delta, torch.zeros_like(s)
    if dynamics == "cps":
        std = s_next * math.sin(eta * math.pi / 2)
        # sqrt(s'^2 - std^2) without the cancellation; eta = 1 leaves no direction of the old noise.
        root = s_next * max(0.0, math.cos(eta * math.pi / 2))
        return (1 - s_next) + root, s * (1 - s_next) - (1 - s) * root, std
    if dynamics == "ddim":
        # Where padded rows have s = s' = 0, there is no step and no noise.
        scale = (s * (1 - s_next)).clamp_min(torch.finfo(torch.float32).tiny)
        kept = s_next * (1 - s) / scale  # rho
        fresh = (delta / scale).clamp_max(1.0) * (1 + kept)  # 1 - rho^2, without the cancellation
        root = s_next * ((1 - eta) * (1 + eta) + (eta * kept) ** 2).sqrt()
        return (1 - s_next) + root, s * (1 - s_next) - (1 - s) * root, eta * s_next * fresh.sqrt()
    if dynamics == "dance":
        half = eta**2 / (2 * s.clamp_min(torch.finfo(torch.float32).tiny))
        std = eta * delta.sqrt()
    else:
        if sigma_max is None:
            level = torch.where(s >= NEAR_ONE, s_next, s)
        else:
            level = s.clamp_max(sigma_max)
        half = eta**2 / (2 * (1 - level))  # g^2 / 2s: the s cancels
        std = eta * (s / (1 - level) * delta).sqrt()
    return 1 - half * delta, (1 + half * (1 - s)) * delta, std


def _rows(
    latent: Tensor, sigma: float | Tensor, sigma_next: float | Tensor, stochastic: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The per-row arguments, checked and brought to `[*lead]` on the latent's device."""
    if stochastic is None:
        stochastic = torch.ones((), dtype=torch.bool)
    elif not isinstance(stochastic, Tensor) or stochastic.dtype != torch.bool:
        raise ShapeError("`stochastic` must be a bool tensor; try torch.as_tensor(stochastic).bool().")
    rows = torch.as_tensor(sigma), torch.as_tensor(sigma_next), stochastic
    rank = max(1, *(value.ndim for value in rows))
    lead = latent.shape[:rank]
    if latent.ndim <= rank:
        raise ShapeError(
            f"`latent` must have element dimensions behind its leading {list(lead)}, "
            f"got {list(latent.shape)}; try latent[..., None] for scalar actions."
        )
    for name, value in zip(("sigma", "sigma_next", "stochastic"), rows, strict=True):
        if value.shape != lead and value.ndim:
            raise ShapeError(
                f"`{name}` must be one number or have the leading shape {list(lead)} of `latent`, "
                f"got {list(value.shape)}; try {name}.expand{tuple(lead)}."
            )
    s, s_next = rows[0].to(torch.float32), rows[1].to(torch.float32)
    s, s_next, stochastic = (v if v.ndim == rank else v.expand(lead) for v in (s, s_next, stochastic))
    # Values are checked where that costs no wait for an accelerator; as plain numbers, because between two
    # passes of a network one operation on arrays costs more than all of these.
    if s.device.type == "cpu" and s_next.device.type == "cpu":
        for high, low in zip(s.flatten().tolist(), s_next.flatten().tolist(), strict=True):
            if not 0 <= low <= high <= 1 + ROUNDING:
                raise ShapeError(
                    "`sigma` and `sigma_next` must fall within 1 >= sigma >= sigma_next >= 0, got "
                    f"{sigma} and {sigma_next}; try consecutive values of flow_sigmas(num_steps)."
                )
    device = latent.device
    return s.to(device), s_next.to(device), stochastic.to(device)


def _check_kernel(dynamics: str, eta: float, sigma_max: float | None) -> None:
    require_choice("dynamics", dynamics, DYNAMICS)
    if not (eta == 0 or (math.isfinite(eta) and eta >= SMALLEST_ETA)):
        raise ConfigError(f"`eta` must be 0 (the ODE) or at least {SMALLEST_ETA}, got {eta}; try 0.7.")
    if dynamics in ("cps", "ddim") and eta > 1:
        raise ConfigError(f'`eta` must be at most 1 for dynamics="{dynamics}", got {eta}; try 0.7.')
    if sigma_max is not None and not 0 < sigma_max < 1:
        raise ConfigError(
            f"`sigma_max` must lie between 0 and 1, got {sigma_max}; try float(sigmas[1]), or None."
        )


class SDEStep(NamedTuple):
    """What one step gives, whether it was sampled or scored.

    Attributes:
        latent: `[*lead, ...]` the next latent, in the storage dtype.
        log_prob: `[*lead]` float32 log-density of `latent`, mean over elements unless told otherwise; 0 where
            the step is deterministic.
        mean: `[*lead, ...]` float32.
        std: `[*lead]` float32; 0 where the step is deterministic.
    """

    latent: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor


def sde_step(
    velocity: Tensor,
    latent: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    dynamics: str = "flow",
    eta: float = 0.7,
    sigma_max: float | None = None,
    next_latent: Tensor | None = None,
    noise: Tensor | None = None,
    storage_dtype: torch.dtype | None = None,
    stochastic: Tensor | None = None,
    reduction: str = "mean",
) -> SDEStep:
    """Sample the next latent (`noise` given) or score one (`next_latent` given), by one and the same code.

    The log-probability is the Gaussian log-density `-(x' - mean)^2 / (2 std^2) - ln std - ln(2 pi) / 2` for
    every kernel. (Other implementations drop the variance and the constant for "cps"; the ratio of two
    policies is then taken to the power `2 std^2`, so a clip range would mean something else at every step.)
    It treats the next latent as data: no gradient flows through it.

    A stochastic step is a policy of its own and does not draw what the ODE would: `transition` says how far
    the distributions of "flow" and "cps" lie from the ODE's.

    It is a mean over the D elements by default: ratios are then the D-th roots of likelihood ratios, which
    float32 can hold at any size. A threshold on that scale means D times as many nats (`nats_to_mean`).

    Args:
        velocity: `[*lead, ...]` as in `transition`.
        latent: `[*lead, ...]`: images [B, S, C, H, W], packed latents [B, S, L, D], video [B, S, C, F, H, W],
            or any of them without S.
        sigma: A number, [B] or [B, S].
        sigma_next: As `sigma`.
        dynamics: As in `transition`.
        eta: As in `transition`.
        sigma_max: As in `transition`.
        next_latent: `[*lead, ...]` to be scored.
        noise: `[*lead, ...]` standard normal, to sample with; may be None if every row is deterministic.
        storage_dtype: What latents are stored in; the next latent is rounded to it before it is scored, so
            that scoring what was stored gives the ratio 1. None is the dtype of `latent`.
        stochastic: As in `transition`.
        reduction: "mean" over elements, or "sum" for the joint log-density in nats.

    Returns:
        The step; its latent has `storage_dtype`.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or there is nothing to sample with.
        ConfigError: A setting out of range, or both `next_latent` and `noise`.

    Reference:
        The step of DDPO (arXiv 2305.13301) that samples or scores; Flow-GRPO (arXiv 2505.05470).
    """
    require_choice("reduction", reduction, ("mean", "sum"))
    if next_latent is not None and noise is not None:
        raise ConfigError(
            "`next_latent` and `noise` must not both be given; try `noise` to sample, `next_latent` to score."
        )
    for name, tensor in (("next_latent", next_latent), ("noise", noise)):
        if tensor is not None:
            require_floating(name, tensor)
            require_shape(name, tensor, latent.shape, "latent")
    mean, std = transition(
        velocity,
        latent,
        sigma,
        sigma_next,
        dynamics=dynamics,
        eta=eta,
        sigma_max=sigma_max,
        stochastic=stochastic,
    )
    wide = std.shape + (1,) * (mean.ndim - std.ndim)
    if next_latent is None:
        if noise is not None:
            next_latent = mean + std.reshape(wide) * noise.float()
        elif any(std.flatten().tolist()):
            raise ShapeError(
                "`noise` must be given to sample a stochastic step, got None; try "
                "keyed_noise(episode_seeds, step, latent.shape[1:]), or eta=0 for the ODE."
            )
        else:
            return SDEStep(mean.to(storage_dtype or latent.dtype), torch.zeros_like(std), mean, std)
        storage_dtype = storage_dtype or latent.dtype
    next_latent = next_latent.to(storage_dtype or next_latent.dtype)

    noisy = std > 0
    safe = torch.where(noisy, std, 1.0)
    square = ((next_latent.detach().float() - mean) / safe.reshape(wide)).square().flatten(std.ndim)
    log_prob = -0.5 * square.mean(-1) - safe.log() - HALF_LOG_TWO_PI
    if reduction == "sum":
        log_prob = log_prob * square.shape[-1]
    return SDEStep(next_latent, torch.where(noisy, log_prob, 0.0), mean, std)


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


def shortened_tail(num_steps: int, steps: Sequence[int], tail: float) -> tuple[int, ...]:
    """The levels of a schedule that are visited if an episode has fewer steps behind the last of `steps`.

    Of the R steps behind it `max(1, round(tail R))` are left, evenly spaced among its levels: the same
    schedule with larger steps, from where exploration has ended to 0.

    Args:
        num_steps: T, steps of the whole schedule.
        steps: The stochastic ones, of which there must be one.
        tail: The share of the steps behind them that is kept, in (0, 1]; 1 keeps all.

    Returns:
        Rising indices into the `T + 1` levels, from 0 to T.

    Raises:
        ConfigError: If nothing explores, or `tail` is out of range.

    Reference:
        MixGRPO-Flash (arXiv 2507.21802), which takes DPM-Solver++(2M) there.
    """
    if not 0 < tail <= 1:
        raise ConfigError(f"`tail` must lie in (0, 1], got {tail}; try 0.5, or 1 for the whole tail.")
    if not steps or not 0 <= max(steps) < num_steps:
        raise ConfigError(
            f"`steps` must name some of the {num_steps} steps, got {list(steps)}: a tail begins behind the "
            "last one that explores; try a smaller `num_steps` where none does."
        )
    first = max(steps) + 1
    rest = num_steps - first
    kept = min(rest, max(1, math.floor(rest * tail + 0.5)))
    if not rest:
        return tuple(range(num_steps + 1))
    return (*range(first), *(first + (2 * i * rest + kept) // (2 * kept) for i in range(kept + 1)))


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
