"""Solving the ODE of a flow model to second order, with one call of the network a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.functional.require import require_floating, require_shape
from unirl_env.functional.sde import transition


class Prediction(NamedTuple):
    """What a step hands to the next one: the x_0 that it predicted, and where.

    Attributes:
        final: `[*lead, ...]` float32, `x - s v`.
        sigma: `[*lead]` float32.
    """

    final: Tensor
    sigma: Tensor


def dpm2m_step(
    velocity: Tensor,
    latent: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    previous: Prediction | None = None,
) -> tuple[Tensor, Prediction]:
    """One step of DPM-Solver++(2M) for `x_s = (1 - s) x_0 + s e`: Euler's, and what the last step has taught.

    With s = sigma, s' = sigma_next, `x_0 = x - s v` predicted here and `x_0-` in the previous step, at s-:

        x' = x - (s - s') v + (1 - s' / s) h / (2 h-) (x_0 - x_0-)

    where h and h- are the lengths of this step and of the previous one in `lambda = ln((1 - s) / s)`. The
    exact step is the integral of x_0 along the path; Euler takes the present x_0 for all of it, and the last
    term is how far it will have moved on average.

    Steps that are Euler's to the bit, because the last term has no meaning or no weight there:

    - without `previous`: the first step, from any sigma.
    - where s- is 1: lambda is minus infinite there and h- infinite, so that a second step from pure noise
      gives the previous prediction the weight 0.
    - to s' = 0, where h is infinite: it ends at the predicted x_0, as Euler does.
    - where s- is not above s: a row that has begun a new episode since. Whoever restarts some rows elsewhere
      sets their `previous.sigma` to 1.

    After a stochastic step the previous prediction is of another path: pass None there.

    Errors fall as `1 / T^2`, Euler's as `1 / T`. On `flow_sigmas` that is up to a logarithm and shows from
    some 64 steps on, because the few steps at each end are long in lambda. For Gaussian data of std 0.8 the
    spread is too small by 0.15 (Euler) and 0.06 in 10 steps at shift 3, by 0.098 and 0.007 in 16, by 0.05 and
    -0.008 in 32.

    Args:
        velocity: `[*lead, ...]` the model's prediction, noise minus data.
        latent: As `velocity`, the current latent x.
        sigma: Current noise level in (0, 1]; a number, [B] or [B, S].
        sigma_next: Next noise level in [0, sigma].
        previous: What the previous step returned.

    Returns:
        The next latent, float32, which is to be stored in the dtype of choice; and what to pass to the next
        step.

    Raises:
        ShapeError: Shapes or dtypes do not belong together, or sigmas on the CPU do not fall.

    Reference:
        DPM-Solver++ (arXiv 2211.01095), algorithm 2, the multistep solver of order 2, with alpha = 1 - s.
    """
    euler, std = transition(velocity, latent, sigma, sigma_next, dynamics="ode")
    s, s_next = (
        torch.as_tensor(value).to(latent.device, torch.float32).expand(std.shape)
        for value in (sigma, sigma_next)
    )
    wide = std.shape + (1,) * (latent.ndim - std.ndim)
    present = Prediction(latent.float() - s.reshape(wide) * velocity.float(), s)
    if previous is None:
        return euler, present
    for name, tensor, like in (("final", previous.final, present.final), ("sigma", previous.sigma, s)):
        require_floating(f"previous.{name}", tensor)
        require_shape(f"previous.{name}", tensor, like.shape, f"latent's {name}")
    weight, usable = _weight(s, s_next, previous.sigma)
    ahead = euler + weight.reshape(wide) * (present.final - previous.final)
    return torch.where(usable.reshape(wide), ahead, euler), present


def _weight(s: Tensor, s_next: Tensor, s_before: Tensor) -> tuple[Tensor, Tensor]:
    """What `x_0 - x_0-` counts, `[*lead]`, and where it counts at all."""
    usable = (s_next > 0) & (s < s_before) & (s_before < 1)
    # Any falling numbers do where it does not count: no infinity arises.
    s, s_next, s_before = (
        torch.where(usable, value, other)
        for value, other in ((s, 0.5), (s_next, 0.25), (s_before.float(), 0.75))
    )
    h, h_before = s.logit() - s_next.logit(), s_before.logit() - s.logit()
    return (1 - s_next / s) * h / (2 * h_before), usable
