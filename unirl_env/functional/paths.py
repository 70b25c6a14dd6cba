"""Exact values and optima of T-step Gaussian policies on a line, by dynamic programming on a grid.

The objective is the one that a diffusion agent with a reference policy climbs,

    J = E[r(x_T)] - beta * sum_k E[KL(policy_k || reference_k)],

the sum running over the stochastic steps, x_T the finished latent, the first one standard normal. In one
dimension expectations are sums over a grid, so that J and its maximum are known to many digits, for precisely
the kernel and the number of steps that an agent uses.

With `eta = sqrt(2)` ("memoryless" noise, Adjoint Matching, arXiv 2409.08861) and many steps, the best path
ends in the tilted mixture of `tilted_mixture`, whose velocity is the best policy. At T steps both are missed
by about 1 / T. With any other eta of the "flow" kernel the tilted velocity is not the best policy, and the
optimum depends on the first latent, though less and less: its trace falls like T^(-eta^2 / 2).

Conversion to an agent's settings. The learner adds `reference_kl` times a KL that is a mean over the D
elements and over the entries [B, S]; its surrogate is a mean over the same entries of log-probabilities that
are means over the same elements. Both are 1 / (S D) of the sums above, so S and D cancel. What remains:

    beta = reference_kl * scale * G / (G - 1)

where `scale` is what advantages are divided by (1 for "none"; the std of the rewards within a group for
"group"), and G / (G - 1) corrects for the baseline, which contains the judged sample itself.

With `kl_in="return"`, beta is `reference_kl` itself, in units of the reward, whatever `scale` and G are, and
the gradient is that of J (`unirl_env.functional.advantages.charged_advantages`); what follows is about
`kl_in="loss"`.

What the loss leaves out. Its gradient treats the visited states as given, so it does not see that a step
changes the KL which later steps will pay. Its fixed point (`gaussian_policy(..., future_kl=False)`) is
therefore not quite the maximum of J; the two agree where later KL does not depend on the state. What that
costs depends on the class of policies, which costs something itself: on the mixture of the agents' tests,
where J rises from -0.181 to at most 0.333, the best that a mixture's own six numbers can do is 0.011 below
that, and the loss ends 0.004 below this best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.sde import transition

REACH = 8.0
"""How far a step leads, in its std."""


@dataclass(frozen=True)
class PathPolicy:
    """T Gaussian steps, as functions of the state on a grid.

    Attributes:
        grid: `[N]` float64, evenly spaced.
        mean: `[T, N]`, mean of the next state from each grid point.
        std: `[T]`; 0 is a deterministic step.
    """

    grid: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(
        cls,
        velocity: Callable[[Tensor, Tensor], Tensor],
        sigmas: Tensor,
        *,
        grid: Tensor,
        dynamics: str = "flow",
        eta: float = 0.7,
        stochastic_steps: Sequence[int] | None = None,
    ) -> PathPolicy:
        """The policy that a velocity field makes by the transition kernel.

        Args:
            velocity: `(latent [N, 1], sigma [N]) -> [N, 1]`.
            sigmas: `[T + 1]` from 1 to 0.
            grid: `[N]`.
            dynamics: As in `transition`.
            eta: As in `transition`.
            stochastic_steps: The steps with noise; None is all but the last, as in the environment.
        """
        noisy = range(len(sigmas) - 2) if stochastic_steps is None else stochastic_steps
        latent, means, stds = grid.float()[:, None], [], []
        for k, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            v = velocity(latent, sigma.expand(len(grid)))
            kind = dynamics if k in noisy else "ode"
            mean, std = transition(v, latent, sigma, sigma_next, dynamics=kind, eta=eta)
            means.append(mean[:, 0].to(grid.dtype))
            stds.append(std[0].to(grid.dtype))
        return cls(grid, torch.stack(means), torch.stack(stds))


class PathValue(NamedTuple):
    """What a policy achieves, in units of the reward and in nats.

    Attributes:
        objective: Scalar, J.
        reward: Scalar, the expected reward.
        kl: Scalar, the expected sum of the divergences.
        start: `[N]`, the objective from each first state.
    """

    objective: Tensor
    reward: Tensor
    kl: Tensor
    start: Tensor


def path_grid(limit: float = 10.0, spacing: float = 0.025) -> Tensor:
    """Evenly spaced points `[N]` float64 from `-limit` to `limit`.

    Sums over them stand for integrals against Gaussians of std at least `spacing`; the error falls faster
    than any power of std / spacing and is about 1e-8 at 1.
    """
    count = 2 * math.ceil(limit / spacing) + 1
    return torch.linspace(-limit, limit, count, dtype=torch.float64)


def path_value(policy: PathPolicy, reference: PathPolicy, reward: Tensor, beta: float) -> PathValue:
    """The exact value of a policy.

    Args:
        policy: To be judged, with gradient if wanted. Its deterministic steps are taken as they are and cost
            nothing, as in the learner.
        reference: What deviations are measured from; of the same stds.
        reward: `[N]` on the grid.
        beta: Price of a nat.

    Raises:
        ShapeError: The two policies or the reward are not on one grid, or a std differs or is too small.
    """
    _check(reference, reward)
    if policy.mean.shape != reference.mean.shape or not torch.equal(policy.std, reference.std):
        raise ShapeError("`policy` and `reference` must have one grid, as many steps, and the same stds.")
    kl = torch.zeros_like(reward)
    for mean, old, std in reversed(list(zip(policy.mean, reference.mean, policy.std, strict=True))):
        if std == 0:
            reward, kl = _at(reward, policy.grid, mean), _at(kl, policy.grid, mean)
        else:
            ahead = _Ahead(mean, std, policy.grid)
            kl = ahead.mean(kl) + ((mean - old) / std).square() / 2
            reward = ahead.mean(reward)
    return _averaged(policy.grid, reward, kl, beta)


def any_policy_optimum(reference: PathPolicy, reward: Tensor, beta: float) -> PathValue:
    """The maximum of J over all policies whatever, Gaussian or not: an upper bound for every agent.

    Backwards in time, `V_k(x) = beta log E[exp(V_{k+1}(x') / beta) | x]` under the reference, and the
    optimal policy is the reference times `exp(V_{k+1}(x') / beta)`, normalised. Deterministic steps are
    the reference's. The gradient of `objective` with respect to `reward` is the distribution of x_T.

    Raises:
        ShapeError: The reward is not on the grid, or a std is too small for it.
        ConfigError: `beta` is not positive.
    """
    _check(reference, reward)
    _check_beta(beta)
    value = reward
    for mean, std in reversed(list(zip(reference.mean, reference.std, strict=True))):
        if std == 0:
            reward, value = _at(reward, reference.grid, mean), _at(value, reference.grid, mean)
        else:
            ahead = _Ahead(mean, std, reference.grid)
            tilted = ahead.log_chances + ahead.of(value) / beta
            value = beta * torch.logsumexp(tilted, dim=1)
            reward = ahead.mean(reward, torch.softmax(tilted, dim=1))
    return _averaged(reference.grid, reward, (reward - value) / beta, beta)


def gaussian_policy(
    reference: PathPolicy, reward: Tensor, beta: float, *, future_kl: bool = True
) -> PathPolicy:
    """The best policy among the Gaussians of the reference's stds, whose means are free at every state.

    Args:
        reference: What deviations are measured from; its deterministic steps are kept.
        reward: `[N]` on the grid.
        beta: Price of a nat, positive.
        future_kl: True maximises J. False leaves out of each step's decision what the later steps will pay:
            the fixed point of a loss that adds the KL of the visited states (see the module's text).

    Returns:
        The policy; `path_value` judges it.

    Raises:
        ShapeError: The reward is not on the grid, or a std is too small for it.
        ConfigError: `beta` is not positive.
    """
    _check(reference, reward)
    _check_beta(beta)
    grid, value, means = reference.grid, reward, []
    for old, std in reversed(list(zip(reference.mean, reference.std, strict=True))):
        if std == 0:
            mean, value = old, _at(value, grid, old)
        else:
            # Every grid point is a candidate for the mean; a parabola through the best one refines it.
            ahead = _Ahead(grid, std, grid).mean(value)
            gain = ahead - beta * ((grid - old[:, None]) / std).square() / 2
            mean = _refined(grid, gain)
            value = _Ahead(mean, std, grid).mean(value)
            if future_kl:
                value = value - beta * ((mean - old) / std).square() / 2
        means.append(mean)
    return PathPolicy(grid, torch.stack(means[::-1]), reference.std)


def _averaged(grid: Tensor, reward: Tensor, kl: Tensor, beta: float) -> PathValue:
    start = torch.softmax(-grid.square() / 2, 0)
    value = reward - beta * kl
    return PathValue(start @ value, start @ reward, start @ kl, value)


class _Ahead:
    """The grid points that a step leads to from each of M means, normalised on the grid.

    Where steps are small against the grid, those within 8 std alone: the rest weighs e^-32.

    Attributes:
        log_chances: `[M, W]`, their log-probabilities.
    """

    def __init__(self, mean: Tensor, std: Tensor, grid: Tensor):
        spacing, last = grid[1] - grid[0], len(grid) - 1
        reach = math.ceil(REACH * float(std) / float(spacing))
        self._index: Tensor | None = None
        if 2 * (2 * reach + 1) > last:
            self.log_chances = torch.log_softmax(-((grid - mean[:, None]) / std).square() / 2, dim=1)
            return
        # A mean beyond the grid, or none at all, leads to its end.
        place = ((mean.detach() - grid[0]) / spacing).nan_to_num(0.0).round().clamp(0, last).long()
        index = place[:, None] + torch.arange(-reach, reach + 1, device=grid.device)
        inside = (index >= 0) & (index <= last)
        self._index = index.clamp(0, last)
        log = -((grid[self._index] - mean[:, None]) / std).square() / 2
        self.log_chances = torch.log_softmax(torch.where(inside, log, -math.inf), dim=1)

    def of(self, value: Tensor) -> Tensor:
        """`value` `[N]` at these points, `[N]` or `[M, W]`."""
        return value if self._index is None else value[self._index]

    def mean(self, value: Tensor, chances: Tensor | None = None) -> Tensor:
        """The mean `[M]` of `value` `[N]`, under `chances` `[M, W]` or the step's own."""
        chances = self.log_chances.exp() if chances is None else chances
        return chances @ value if self._index is None else (chances * self.of(value)).sum(1)


def _at(value: Tensor, grid: Tensor, x: Tensor) -> Tensor:
    """`value` `[N]` between the grid points and beyond them, linearly."""
    spacing = grid[1] - grid[0]
    left = ((x.detach() - grid[0]) / spacing).floor().clamp(0, len(grid) - 2).long()
    part = (x - grid[left]) / spacing
    return value[left] * (1 - part) + value[left + 1] * part


def _refined(grid: Tensor, gain: Tensor) -> Tensor:
    """Where each row of `gain` `[N, M]` is largest, between the grid points."""
    best = gain.argmax(1).clamp(1, len(grid) - 2)
    low, mid, high = (gain.gather(1, (best + i)[:, None])[:, 0] for i in (-1, 0, 1))
    curvature = (low - 2 * mid + high).clamp_max(-torch.finfo(gain.dtype).tiny)
    shift = (0.5 * (low - high) / curvature).clamp(-1, 1)
    return grid[best] + shift * (grid[1] - grid[0])


def _check(reference: PathPolicy, reward: Tensor) -> None:
    if reward.shape != reference.grid.shape:
        raise ShapeError(f"`reward` must be [{len(reference.grid)}] like the grid, got {list(reward.shape)}.")
    spacing = float(reference.grid[1] - reference.grid[0])
    smallest = min((float(s) for s in reference.std if s > 0), default=math.inf)
    if smallest < spacing:
        raise ShapeError(
            f"`grid` must be at least as fine as the smallest std {smallest:.3g}, got a spacing of "
            f"{spacing:.3g}; try path_grid(spacing={smallest / 1.5:.2g})."
        )


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ConfigError(f"`beta` must be positive, got {beta}; without a price the optimum is infinite.")
