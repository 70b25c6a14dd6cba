"""Gaussian data under the exact velocity: every step is linear, what it draws and learns known exactly."""

import math
from itertools import pairwise

import pytest
import torch

import unirl_env.functional as F


def velocity(x, s, mean, std):
    """Of Gaussian data `N(mean, std^2)`: noise minus data, as expected at x."""
    residual = (x - (1 - s) * mean) / ((1 - s) ** 2 * std**2 + s**2)
    return s * residual - (mean + (1 - s) * std**2 * residual)


def linear_steps(sigmas, data_std, stochastic=None, **kernel):
    """`x' = keep x + move mean + std noise` of every step: keep, move, std, each `[T]`."""
    s, s_next = sigmas[:-1], sigmas[1:]
    count = len(s)
    latent = torch.zeros(3, count, 1)
    latent[1] = 1.0
    mean = torch.zeros(3, count, 1)
    mean[2] = 1.0
    v = velocity(latent, s[:, None], mean, data_std)
    if stochastic is not None:
        stochastic = torch.tensor([k in stochastic for k in range(count)]).expand(3, count)
    found, std = F.transition(
        v, latent, s.expand(3, count), s_next.expand(3, count), stochastic=stochastic, **kernel
    )
    zero, one, moved = found[..., 0].double()
    return one - zero, moved - zero, std[0].double()


def stds(sigmas, data_std, **kernel):
    """`[T]`, of the latents after every step from standard normal noise."""
    keep, _, std = linear_steps(sigmas, data_std, **kernel)
    variance, found = 1.0, []
    for k, s in zip(keep.tolist(), std.tolist(), strict=True):
        variance = k * k * variance + s * s
        found.append(math.sqrt(variance))
    return found


def share_of_gradient(num_steps, steps, data_std, eta=0.7):
    """What the stochastic `steps` see of the derivative of E[x_T] with respect to the mean of the data."""
    sigmas = F.flow_sigmas(num_steps)
    keep, move, _ = linear_steps(sigmas, data_std, steps, eta=eta)
    after = torch.cat([keep.flip(0).cumprod(0).flip(0)[1:], torch.ones(1)])
    parts = after * move
    return float(parts[list(steps)].sum() / parts.sum())


@pytest.mark.parametrize("eta, expected", [(0.7, 1.030), (1.0, 1.118), (math.sqrt(2), 1.414)])
@pytest.mark.parametrize("data_std", [0.2, 1.0])
def test_the_first_step_of_flow_is_too_wide_however_small(eta, expected, data_std):
    sigmas = F.flow_sigmas(4000)
    found = stds(sigmas, data_std, dynamics="flow", eta=eta)
    assert found[0] == pytest.approx(math.sqrt(1 + eta**4 / 4), abs=2e-3) == pytest.approx(expected, abs=2e-3)
    assert found[-1] == pytest.approx(data_std, rel=0.01)
    # Not from below pure noise, nor for the constant coefficient.
    assert stds(sigmas, data_std, dynamics="dance", eta=eta)[0] == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("data_std", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_cps_ends_too_narrow_however_many_the_steps(eta, data_std):
    few, many = (stds(F.flow_sigmas(count), data_std, dynamics="cps", eta=eta)[-1] for count in (50, 4000))
    assert many == pytest.approx(data_std * math.cos(eta * math.pi / 4), rel=1e-2)
    assert few < many
    if eta == 0.7 and data_std == 0.6:
        assert data_std - many == pytest.approx(0.09, abs=0.003)


@pytest.mark.parametrize(
    ("data_std", "all_but_last", "half", "window"), [(1.0, 0.90, 0.27, 0.45), (0.6, 0.76, 0.15, 0.36)]
)
def test_the_share_of_the_gradient_that_stochastic_steps_see(data_std, all_but_last, half, window):
    everything = F.choose_steps("all", 10)
    assert share_of_gradient(10, [*everything, 9], data_std) == pytest.approx(1.0)
    assert share_of_gradient(10, everything, data_std) == pytest.approx(all_but_last, abs=0.006)
    assert share_of_gradient(10, F.choose_steps("fraction", 10), data_std) == pytest.approx(half, abs=0.006)
    places = [F.choose_steps("window", 10, iteration=25 * turn) for turn in range(3)]
    seen = [share_of_gradient(10, steps, data_std) for steps in places]
    assert sum(seen) / 3 == pytest.approx(window, abs=0.006)
    if data_std == 1.0:
        assert seen == pytest.approx([0.18, 0.46, 0.72], abs=0.006)


def test_the_share_is_that_of_the_score_function():
    """The expected `x_T * d log p` over the stochastic steps, by sampling, against the closed form."""
    count, data_std, steps = 200_000, 1.0, F.choose_steps("fraction", 10)
    sigmas, generator = F.flow_sigmas(10), torch.Generator().manual_seed(0)
    keep, move, std = (each.float() for each in linear_steps(sigmas, data_std, steps, eta=0.7))
    x, score = torch.randn(count, generator=generator), torch.zeros(count)
    for k, _ in enumerate(pairwise(sigmas)):
        noise = torch.randn(count, generator=generator)
        x = keep[k] * x + std[k] * noise
        if k in steps:
            score += noise * move[k] / std[k]
    after = torch.cat([keep.flip(0).cumprod(0).flip(0)[1:], torch.ones(1)])
    seen, error = float((x * score).mean()), float((x * score).std()) / math.sqrt(count)
    assert seen == pytest.approx(
        share_of_gradient(10, steps, data_std) * float((after * move).sum()), abs=4 * error
    )
