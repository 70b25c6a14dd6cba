"""Noising anew and the surrogates of a likelihood, against the Gaussian oracle."""

import math
from itertools import pairwise

import gaussian_line as line
import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.forward import WEIGHTS


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rest", [(5,), (4, 6, 6), (9, 4), (3, 2, 4, 4)])
def test_noised_at_every_rank(rest):
    x0, e, s = normal(3, *rest), normal(3, *rest, seed=1), torch.tensor([0.0, 0.25, 1.0])
    x, u = F.noised(x0, e, s)
    assert torch.equal(x[0], x0[0]) and torch.equal(x[2], e[2]) and torch.equal(u, e - x0)
    torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * e[1])
    torch.testing.assert_close(x - s.reshape(-1, *[1] * len(rest)) * u, x0)


def test_noised_widens_half_precision():
    x0, e = normal(2, 64).bfloat16(), normal(2, 64, seed=1).bfloat16()
    x, u = F.noised(x0, e, torch.tensor([0.3, 0.6]))
    assert x.dtype == u.dtype == torch.float32
    assert torch.equal(u, e.float() - x0.float())


@pytest.mark.parametrize("s", [0.05, 0.4, 0.9, 1.0])
def test_the_perfect_velocity_is_that_of_the_oracle(s):
    """Mean and slope of u given x, from quadrature over what `noised` returns."""
    x0, e, p = line.joint()
    x, u = F.noised(x0, e, torch.full((len(x0),), s))
    x, u = x.double()[:, 0], u.double()[:, 0]
    mean_x, mean_u = (p * x).sum(), (p * u).sum()
    assert ((p * (x - mean_x) ** 2).sum()).item() == pytest.approx(line.variance(s), rel=1e-5)
    slope = (p * (x - mean_x) * (u - mean_u)).sum() / line.variance(s)
    at = 0.7
    assert (mean_u + slope * (at - mean_x)).item() == pytest.approx(line.velocity(at, s), abs=1e-5)
    if s < 1:
        # What is left open, which the checks of losses rest on.
        x0, u, p = line.posterior(at, s)
        centred = x0 - (p[:, None] * x0).sum()
        q = line.variance(s)
        assert (p[:, None] * u).sum().item() == pytest.approx(line.velocity(at, s))
        assert (p[:, None] * centred**2).sum().item() == pytest.approx(line.K**2 * s**2 / q)
        assert (p[:, None] * centred * u).sum().item() == pytest.approx(-(line.K**2) * s / q)


def test_euler_with_the_perfect_velocity_keeps_the_mean_and_biases_the_spread():
    for steps, spread in ((10, 0.7018), (100, 0.7896)):
        sigmas = F.flow_sigmas(steps, shift=1.0)
        x = torch.tensor([[-1.0], [1.0]])
        for s, s_next in pairwise(sigmas):
            x, _ = F.transition(line.velocity(x, s), x, s, s_next, dynamics="ode")
        assert x.mean().item() == pytest.approx(line.M, abs=1e-6)
        assert (x[1] - x[0]).item() / 2 == pytest.approx(spread, abs=6e-5)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.2, 0.9)])
def test_sigmas_have_the_distribution_and_one_of_each_part(distribution, low, high):
    draws = 4
    uniform = torch.rand(20_000, draws, generator=torch.Generator().manual_seed(0))
    sigma = F.stratified_sigmas(uniform, distribution=distribution, low=low, high=high)
    assert sigma.shape == uniform.shape and sigma.dtype == torch.float32
    assert bool((sigma > 0).all()) and bool((sigma < 1).all())
    assert bool((sigma >= low - 1e-7).all()) and bool((sigma <= high + 1e-7).all())

    def share_below(s):  # independent of the library: the definition by math.erf
        if distribution == "uniform":
            return (s - low) / (high - low)

        def cdf(p):
            z = -math.inf if p <= 0 else math.inf if p >= 1 else math.log(p / (1 - p))
            return 0.5 * (1 + math.erf(z / math.sqrt(2)))

        return (cdf(s) - cdf(low)) / (cdf(high) - cdf(low))

    for s in (0.3, 0.5, 0.8):
        expected = share_below(s)
        found = (sigma < s).double().mean().item()
        # Only the part that s lies in varies.
        assert found == pytest.approx(expected, abs=4 * 0.5 / draws / math.sqrt(20_000))
        part = int(expected * draws)
        assert bool((sigma[:, :part] < s).all()) and bool((sigma[:, part + 1 :] > s).all())


def test_sigmas_by_hand_and_at_the_ends():
    uniform = torch.tensor([[0.5, 0.0]])
    assert F.stratified_sigmas(uniform).tolist() == [[0.25, 0.5]]
    torch.testing.assert_close(F.stratified_sigmas(uniform, low=0.5), torch.tensor([[0.625, 0.75]]))
    logit = F.stratified_sigmas(uniform, distribution="logit_normal")
    # The quartile of a standard normal.
    torch.testing.assert_close(logit, torch.tensor([[1 / (1 + math.exp(0.6744898)), 0.5]]))
    extremes = torch.tensor([[0.0], [1 - 2**-24]])
    for distribution in ("uniform", "logit_normal"):
        sigma = F.stratified_sigmas(extremes, distribution=distribution)
        assert sigma[0].item() == 2**-24 and 0.99 < sigma[1].item() < 1
        assert bool(sigma.log().isfinite().all()) and bool((1 - sigma).log().isfinite().all())


def test_strata_reduce_the_variance_of_a_mean_over_draws():
    uniform = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    spread = F.stratified_sigmas(uniform).square().mean(1).var()
    assert spread < uniform.square().mean(1).var() / 8


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_surrogates_against_their_definitions(reduction):
    v, u, s = normal(4, 3, 5), normal(4, 3, 5, seed=1), torch.tensor([0.05, 0.3, 0.8, 1.0])
    d = (v - u).double().flatten(1)
    wide = s.double()
    miss = (wide[:, None] * d).square().mean(1)
    expected = {
        "unit": d.square().mean(1),
        "x0": miss,
        "adaptive": miss / (wide[:, None] * d).abs().mean(1),
        "elbo": (1 - wide) / wide * d.square().mean(1),
        "ghuber": wide / 0.25 * ((d.square().mean(1) + 1e-10) ** 0.25 - 1e-10**0.25),
    }
    assert set(expected) == set(WEIGHTS)
    for weight, value in expected.items():
        found = F.surrogate(v, u, s, weight=weight, reduction=reduction)
        factor = 15 if reduction == "sum" else 1
        torch.testing.assert_close(found, factor * value.float(), rtol=1e-5, atol=1e-6)


def test_slopes_of_the_surrogates():
    v, u, s = normal(3, 8).requires_grad_(), normal(3, 8, seed=1), torch.tensor([0.1, 0.5, 1.0])
    d, level = (v - u).detach(), s[:, None]
    square, size = d.square().mean(1, keepdim=True), d.abs().mean(1, keepdim=True)
    slopes = {
        "unit": torch.ones_like(square),
        "x0": level**2,
        "adaptive": level / size,  # its denominator has no gradient
        "elbo": (1 - level) / level,
        "ghuber": level * (square + 1e-10) ** -0.75,
    }
    for weight, slope in slopes.items():
        (gradient,) = torch.autograd.grad(F.surrogate(v, u, s, weight=weight).sum(), v)
        torch.testing.assert_close(gradient, slope * 2 * d / 8, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_perfect_velocity_and_sigma_zero_stay_finite(weight):
    u = normal(2, 6)
    v = torch.stack([u[0], u[1] + 1]).requires_grad_()
    for s in (0.0, 2**-24, 1e-3, 1.0):
        value = F.surrogate(v, u, torch.full((2,), s), weight=weight)
        (gradient,) = torch.autograd.grad(value.sum(), v)
        assert value[0] == 0 and torch.equal(gradient[0], torch.zeros(6))
        assert bool(value.isfinite().all()) and bool(gradient.isfinite().all())
        assert bool((value >= 0).all())


def test_elbo_is_exact_from_its_floor_on():
    v, u = torch.ones(4, 2), torch.zeros(4, 2)
    found = F.surrogate(v, u, torch.tensor([0.0, 5e-4, 1e-3, 0.01]), weight="elbo")
    torch.testing.assert_close(found, torch.tensor([1000.0, 999.5, 999.0, 99.0]))


def test_the_elbo_tells_two_gaussians_apart_by_exactly_their_kl():
    """A model that takes the mean for M + shift: its KL is shift^2 / 2 K^2 nats, in both functions."""
    shift, draws = 0.25, 2000
    sigma = F.stratified_sigmas(torch.full((1, draws), 0.5))[0]
    x0, e, p = line.joint(count=12)
    s = sigma[:, None].expand(draws, len(p)).reshape(-1)
    x, u = F.noised(x0.repeat(draws, 1), e.repeat(draws, 1), s)
    true = line.velocity(x, s[:, None])
    other = true - shift * (s / line.variance(s))[:, None]
    weights = p.repeat(draws) / draws
    expected = shift**2 / (2 * line.K**2)
    at = dict(weight="elbo", reduction="sum")
    worse = F.surrogate(other, u, s, **at) - F.surrogate(true, u, s, **at)
    assert (weights * worse).sum().item() == pytest.approx(expected, rel=2e-3)
    apart = F.velocity_kl(other, true, s, **at)
    assert (weights * apart).sum().item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("eta, factor", [(0.7, 1.5817), (math.sqrt(2), 1.0), (1.0, 1.125)])
def test_a_step_of_the_sde_is_the_elbo_weighted_velocity_mse(eta, factor):
    s, s_next = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.8, 0.45, 0.1])
    x, v, reference = normal(3, 16), normal(3, 16, seed=1), normal(3, 16, seed=2)
    mean, std = F.transition(v, x, s, s_next, eta=eta)
    other, _ = F.transition(reference, x, s, s_next, eta=eta)
    found = F.gaussian_kl(mean, other, std, reduction="sum")
    weighted = F.velocity_kl(v, reference, s, weight="elbo", reduction="sum")
    torch.testing.assert_close(found, factor * (s - s_next) * weighted, rtol=1e-4, atol=1e-5)


def test_velocity_kl_weights_and_gradients():
    v, r = normal(3, 5).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    s = torch.tensor([0.2, 0.5, 1.0])
    square = (v - r).square().mean(1)
    for weight, factor in (
        ("unit", 1.0),
        ("adaptive", 1.0),
        ("ghuber", 1.0),
        ("x0", s**2),
        ("elbo", (1 - s) / s),
    ):
        found = F.velocity_kl(v, r, s, weight=weight)
        torch.testing.assert_close(found, factor * square)
        torch.testing.assert_close(F.velocity_kl(v, r, s, weight=weight, reduction="sum"), 5 * found)
    same, gone = torch.autograd.grad(F.velocity_kl(v, r, s).sum(), (v, r), allow_unused=True)
    assert gone is None and same.abs().sum() > 0
    at_reference = v.detach().clone().requires_grad_()
    for weight in WEIGHTS:
        value = F.velocity_kl(at_reference, v.detach(), s, weight=weight).sum()
        (gradient,) = torch.autograd.grad(value, at_reference)
        assert value == 0 and torch.equal(gradient, torch.zeros(3, 5))


def test_rows_of_steps_as_well():
    v, u, s = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), torch.rand(2, 3)
    for function in (F.surrogate, F.velocity_kl):
        found = function(v, u, s)
        assert torch.equal(found.flatten(), function(v.flatten(0, 1), u.flatten(0, 1), s.flatten()))
    x, _ = F.noised(v, u, s)
    assert torch.equal(x.flatten(0, 1), F.noised(v.flatten(0, 1), u.flatten(0, 1), s.flatten())[0])


def test_what_is_refused():
    x, s = torch.zeros(2, 3), torch.tensor([0.5, 0.5])
    for wrong in (s[:1], s[:, None].expand(2, 3), torch.tensor([0.5, 1.5]), torch.tensor([1, 0])):
        with pytest.raises(ShapeError, match="`sigma`"):
            F.noised(x, x, wrong)
    with pytest.raises(ShapeError, match="`noise`"):
        F.noised(x, x[:1], s)
    with pytest.raises(ShapeError, match="`target`"):
        F.surrogate(x, x[:, :2], s)
    with pytest.raises(ShapeError, match="`reference`"):
        F.velocity_kl(x, x[:, :2], s)
    for function in (F.surrogate, F.velocity_kl):
        with pytest.raises(ConfigError, match="`weight`"):
            function(x, x, s, weight="uniform")
        with pytest.raises(ConfigError, match="`reduction`"):
            function(x, x, s, reduction="max")
    for wrong in (torch.zeros(3), torch.zeros(3, 0), torch.ones(2, 2), torch.zeros(2, 2).long()):
        with pytest.raises(ShapeError, match="`uniform`"):
            F.stratified_sigmas(wrong)
    for low, high in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ConfigError, match="`low` and `high`"):
            F.stratified_sigmas(torch.zeros(2, 2), low=low, high=high)
    with pytest.raises(ConfigError, match="`distribution`"):
        F.stratified_sigmas(torch.zeros(2, 2), distribution="normal")
