"""Mixtures against integrals, gradients and samples: nothing here trusts the formulas that are tested."""

from itertools import pairwise

import pytest
import torch
from scipy import stats

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.models.gaussian_mixture import (
    GaussianMixture,
    mixture_log_prob,
    mixture_mean,
    mixture_sample,
    mixture_velocity,
    tilted_mixture,
)

DOUBLE = torch.float64
LINE = GaussianMixture.of([[-1.0], [0.4], [1.5]], [0.3, 0.6, 0.2], [0.5, 0.3, 0.2], DOUBLE)
SPACE = GaussianMixture.of(
    [[-1.0, 0.5, 0.0], [0.7, -0.2, 1.0]], [[0.3, 0.5, 0.8], [0.6, 0.2, 0.4]], [3.0, 1.0], DOUBLE
)
GRID = torch.linspace(-9, 9, 6001, dtype=DOUBLE)
STEP = float(GRID[1] - GRID[0])


def density(x, mixture=LINE):
    """Written out with loops, as a second opinion."""
    share = torch.softmax(mixture.log_weights, 0)
    total = torch.zeros_like(x)
    for weight, mean, std in zip(share, mixture.means[:, 0], mixture.stds[:, 0], strict=True):
        total += weight * torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * (2 * torch.pi) ** 0.5)
    return total


def test_the_density_is_the_sum_of_its_parts():
    found = mixture_log_prob(GRID[:, None], LINE).exp()
    torch.testing.assert_close(found, density(GRID))
    assert float(found.sum() * STEP) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.8, 0.999])
def test_the_velocity_is_the_posterior_mean_of_noise_minus_data(sigma):
    """E[noise - x_0 | x] by integration over x_0: given x, the noise is a function of it."""
    x = torch.linspace(-2.5, 2.5, 21, dtype=DOUBLE)
    noise = (x[:, None] - (1 - sigma) * GRID) / sigma
    joint = density(GRID) * torch.exp(-(noise**2) / 2)
    expected = (joint * (noise - GRID)).sum(1) / joint.sum(1)
    found = mixture_velocity(x[:, None], sigma, LINE)[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(
        mixture_log_prob(x[:, None], LINE, sigma).exp(),
        joint.sum(1) * STEP / sigma / (2 * torch.pi) ** 0.5,
        atol=1e-9,
        rtol=1e-7,
    )


def test_the_velocity_follows_from_the_score():
    """v = -(sigma * score + x) / (1 - sigma), with the score by autograd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator, dtype=DOUBLE, requires_grad=True)
    sigma = torch.rand(64, generator=generator, dtype=DOUBLE) * 0.98 + 0.01
    score = torch.autograd.grad(mixture_log_prob(x, SPACE, sigma).sum(), x)[0]
    expected = -(sigma[:, None] * score + x) / (1 - sigma[:, None])
    torch.testing.assert_close(mixture_velocity(x, sigma, SPACE), expected.detach(), atol=1e-9, rtol=1e-9)


def test_at_both_ends_one_of_the_two_is_known():
    x = torch.tensor([[-0.3, 0.1, 2.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(mixture_velocity(x, 1.0, SPACE), x - mixture_mean(SPACE))
    torch.testing.assert_close(mixture_velocity(x, 0.0, SPACE), -x)


def cdf(points, offset=0.0):
    share = torch.softmax(LINE.log_weights, 0)
    parts = zip(share, LINE.means[:, 0] + offset, LINE.stds[:, 0], strict=True)
    return sum(float(w) * stats.norm.cdf(points, float(m), float(s)) for w, m, s in parts)


def test_the_flow_carries_noise_to_the_mixture():
    """The deterministic flow in 400 small steps, judged by a KS test (a correct one fails it in 0.1 %)."""
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    for sigma, sigma_next in pairwise(F.flow_sigmas(400, shift=1.0).double()):
        x = x - mixture_velocity(x, sigma, LINE) * (sigma - sigma_next)
    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > 1e-3
    # The test has the power to see a mixture that lies a tenth beside.
    assert stats.kstest(x[:, 0].numpy(), lambda points: cdf(points, 0.1)).pvalue < 1e-3


def test_samples_have_the_moments_of_the_mixture():
    generator = torch.Generator().manual_seed(2)
    count = 200_000
    x = mixture_sample(
        SPACE,
        torch.rand(count, generator=generator, dtype=DOUBLE),
        torch.randn(count, 3, generator=generator, dtype=DOUBLE),
    )
    share = torch.softmax(SPACE.log_weights, 0)
    mean = mixture_mean(SPACE)
    variance = share @ (SPACE.stds.square() + SPACE.means.square()) - mean.square()
    five_errors = 5 * (variance / count).sqrt()
    assert bool(((x.mean(0) - mean).abs() < five_errors).all())
    assert bool(((x.var(0) / variance - 1).abs() < 5 * (3 / count) ** 0.5).all())
    # With the weights 3 : 1 given, the lighter component owns a quarter.
    nearer = (x[:, 0] > 0.0).double().mean()
    inside = stats.norm.sf(0, -1.0, 0.3) * 0.75 + stats.norm.sf(0, 0.7, 0.6) * 0.25
    assert float(nearer) == pytest.approx(inside, abs=5 * (0.25 / count) ** 0.5)


@pytest.mark.parametrize("beta", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("weight", [1.0, -0.7])
def test_the_tilt_is_the_normalised_product(beta, weight):
    tilt = tilted_mixture(LINE, torch.tensor([weight], dtype=DOUBLE), beta)
    product = density(GRID) * torch.exp(weight * GRID / beta)
    normaliser = product.sum() * STEP
    expected = product / normaliser
    torch.testing.assert_close(density(GRID, tilt.mixture), expected, atol=1e-9, rtol=1e-7)
    reward = (expected * weight * GRID).sum() * STEP
    inside = expected > 1e-200
    kl = (expected * (expected / density(GRID)).log())[inside].sum() * STEP
    assert float(tilt.reward) == pytest.approx(float(reward), abs=1e-8)
    assert float(tilt.kl) == pytest.approx(float(kl), abs=1e-8)
    assert float(tilt.objective) == pytest.approx(float(reward - beta * kl), abs=1e-8)
    assert float(tilt.objective) == pytest.approx(float(beta * normaliser.log()), abs=1e-8)


def test_the_tilt_beats_its_neighbours():
    """In three dimensions, by samples: every other mixture has a smaller reward minus price."""
    weights, beta = torch.tensor([1.0, -0.5, 0.2], dtype=DOUBLE), 0.7
    tilt = tilted_mixture(SPACE, weights, beta)
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(50_000, generator=generator, dtype=DOUBLE)
    noise = torch.randn(50_000, 3, generator=generator, dtype=DOUBLE)

    def objective(mixture):
        x = mixture_sample(mixture, uniform, noise)
        value = x @ weights - beta * (mixture_log_prob(x, mixture) - mixture_log_prob(x, SPACE))
        return value.mean(), value.std() / len(x) ** 0.5

    best, error = objective(tilt.mixture)
    # At the optimum the integrand is constant, so that even its sampling error vanishes.
    assert float(error) < 1e-9
    assert float(best) == pytest.approx(float(tilt.objective), abs=1e-9)
    for change in ([0.2, 0.0, 0.0], [0.0, -0.2, 0.0], [0.0, 0.0, 0.2], [-0.2, 0.0, 0.1]):
        means = tilt.mixture.means + torch.tensor(change, dtype=DOUBLE)
        value, error = objective(GaussianMixture(tilt.mixture.log_weights, means, tilt.mixture.stds))
        assert float(value) < float(best) - 3 * float(error)


def test_stds_may_be_written_in_three_ways():
    means = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert GaussianMixture.of(means, 0.5).stds.tolist() == [[0.5, 0.5]] * 3
    assert GaussianMixture.of(means, [0.5, 1.0, 2.0]).stds.tolist() == [[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]]
    assert GaussianMixture.of(means, [[1.0, 2.0]] * 3).stds.tolist() == [[1.0, 2.0]] * 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianMixture.of([[0.0]], -1.0), ConfigError, "`stds` must be positive"),
        (lambda: GaussianMixture.of([[0.0]], 1.0, [0.0]), ConfigError, "`weights` must be positive"),
        (lambda: GaussianMixture.of([[0.0], [1.0]], [1.0, 1.0, 1.0]), ShapeError, "`stds` must be"),
        (lambda: GaussianMixture.of([[0.0], [1.0]], 1.0, [1.0]), ShapeError, "`weights` must hold one"),
        (lambda: GaussianMixture.of([0.0, 1.0], 1.0), ShapeError, r"must be \[K, D\]"),
        (lambda: mixture_velocity(torch.zeros(3), 0.5, LINE), ShapeError, r"`x` must be \[N, D\]"),
        (lambda: mixture_velocity(torch.zeros(3, 2), 0.5, LINE), ShapeError, r"`x` must be \[N, 1\]"),
        (lambda: mixture_velocity(torch.zeros(3, 1), torch.zeros(2), LINE), ShapeError, "`sigma` must be"),
        (lambda: tilted_mixture(LINE, torch.zeros(2), 1.0), ShapeError, "`weights` must be one number"),
        (lambda: tilted_mixture(LINE, torch.zeros(1), 0.0), ConfigError, "`beta` must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
