"""DiffusionNFT against its closed forms on the Gaussian line."""

import math
from itertools import pairwise

import gaussian_line as line
import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.forward import WEIGHTS


def make(rows=5, elements=6, *, moved=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    old, target, away = (torch.randn(rows, elements, generator=g) for _ in range(3))
    sigma, advantages = torch.rand(rows, generator=g), 3 * torch.randn(rows, generator=g)
    return (old + moved * away, old, target, sigma, advantages)


def gradient_of(args, **kwargs):
    velocity = args[0].detach().requires_grad_()
    value, metrics = F.nft_loss(velocity, *args[1:], **kwargs)
    (gradient,) = torch.autograd.grad(value, velocity)
    return value.detach(), gradient, metrics


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_against_the_definition(weight, beta):
    v, old, u, s, a = make()
    value, _, metrics = gradient_of((v, old, u, s, a), beta=beta, advantage_clip=2.0, weight=weight)
    total, clipped = 0.0, 0.0
    positive, negative = (
        F.surrogate(w * v + (1 - w) * old, u, s, weight=weight) for w in (beta, -beta)
    )  # v- = (1 + beta) old - beta v
    for i in range(5):
        r = 0.5 + max(-2.0, min(2.0, a[i].item())) / 4
        total += 2.0 / beta * (r * positive[i].item() + (1 - r) * negative[i].item())
        clipped += abs(a[i].item()) > 2.0
    assert value.item() == pytest.approx(total / 5, rel=1e-5)
    assert metrics["positive"].value.item() == pytest.approx(positive.mean().item(), rel=1e-5)
    assert metrics["negative"].value.item() == pytest.approx(negative.mean().item(), rel=1e-5)
    drift = (v - old).square().mean(1)
    assert metrics["drift"].value.item() == pytest.approx(drift.mean().item(), rel=1e-5)
    assert metrics["drift_max"].value.item() == pytest.approx(drift.max().item(), rel=1e-5)
    assert metrics["advantage_clip_fraction"].value.item() == pytest.approx(clipped / 5)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_at_the_old_velocity_the_gradient_is_the_advantage_times_that_of_u(weight, beta, reduction):
    args = make(moved=0.0)
    _, gradient, _ = gradient_of(args, beta=beta, advantage_clip=2.5, weight=weight, reduction=reduction)
    v = args[0].clone().requires_grad_()
    (of_u,) = torch.autograd.grad(
        F.surrogate(v, args[2], args[3], weight=weight, reduction=reduction).sum(), v
    )
    clipped = args[4].clamp(-2.5, 2.5)
    torch.testing.assert_close(gradient, clipped[:, None] * of_u / 5, rtol=2e-4, atol=1e-6)


def test_each_branch_has_a_denominator_of_its_own_and_no_gradient_through_it():
    v, old, u, s, _ = args = make()
    _, gradient, _ = gradient_of((*args[:4], torch.zeros(5)), beta=0.5)
    expected = torch.zeros(5, 6)
    for sign in (1.0, -1.0):
        d = old + sign * 0.5 * (v - old) - u
        size = d.abs().mean(1, keepdim=True)
        # C / beta * 1/2 * beta * sign * 2 s d / (D size)
        expected += 5.0 * sign * s[:, None] * d / (6 * size)
    torch.testing.assert_close(gradient, expected / 5, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3  # a row without advantage is not idle


def best_velocity(x, s, beta, kappa, weight):
    """Where the expected loss given x_s = x has no gradient, and the old velocity. The loss is quadratic."""
    x0, u, p = (each.float() for each in line.posterior(x, s, count=12))
    count, clip = len(x0), 1e3
    old = torch.full((count, 1), line.velocity(x, s))
    advantages = 2 * clip * kappa * (x0[:, 0] - line.M)

    def slope(v):
        at = torch.full((), v, requires_grad=True)
        value, _ = F.nft_loss(
            at.expand(count, 1),
            old,
            u,
            torch.full((count,), s),
            advantages,
            beta=beta,
            advantage_clip=clip,
            weight=weight,
            weight_rows=p,
            denominator=clip,
        )
        return torch.autograd.grad(value, at)[0].item()

    here = float(old[0])
    low, high = slope(here), slope(here + 1.0)
    return here - low / (high - low), here


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("weight", ["unit", "x0"])
def test_the_optimum_is_a_pure_bias(weight, beta):
    kappa = 0.04  # r stays within [0, 1] at all nodes
    for s in (0.2, 0.6, 0.95):
        for x in (-1.0, 0.4):
            best, old = best_velocity(x, s, beta, kappa, weight)
            expected = -2 * kappa / beta * line.K**2 * s / line.variance(s)
            assert best - old == pytest.approx(expected, rel=2e-3, abs=2e-5)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_mean_of_what_it_makes_moves_by_exactly_that_of_the_tilted_density(steps, beta):
    kappa = 0.04  # r stays within [0, 1] at all nodes
    x = torch.tensor([[0.0]])  # the mean of pure noise: all is linear
    sigmas = F.flow_sigmas(steps)
    for s, s_next in pairwise(sigmas.tolist()):
        at = min(s, 0.9999)  # where there is no posterior, its limit
        shift = best_velocity(x.item(), at, beta, kappa, "unit")[0] - line.velocity(x.item(), at)
        x, _ = F.transition(line.velocity(x, s) + shift, x, s, s_next, dynamics="ode")
    assert x.item() - line.M == pytest.approx(2 * kappa * line.K**2 / beta, rel=3e-3)
    if beta == 1:
        nodes, weights = line.normal_nodes()
        x0 = line.M + line.K * nodes
        tilted = weights * 2 * (0.5 + kappa * (x0 - line.M))
        assert x.item() == pytest.approx((tilted * x0).sum().item(), rel=3e-3)


def test_micro_batches_masks_and_weights():
    args = make(rows=8)
    mask = torch.tensor([True, False] * 4)
    weights = torch.rand(8)
    whole, gradient, metrics = gradient_of(args, mask=mask, weight_rows=weights)
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        cut = tuple(each[rows] for each in args)
        parts.append(gradient_of(cut, mask=mask[rows], weight_rows=weights[rows], denominator=4))
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), gradient)
    merged = F.merge_metrics([part[2] for part in parts])
    for name in metrics:
        torch.testing.assert_close(merged[name].value, metrics[name].value)
    # A weight is how often a row counts.
    twice = torch.tensor([2.0, 0, 1, 0, 0, 0, 0, 0])
    value, _, _ = gradient_of(args, weight_rows=twice, denominator=3)
    chosen = torch.tensor([0, 0, 2])
    torch.testing.assert_close(value, gradient_of(tuple(each[chosen] for each in args))[0])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nothing_leaks_from_masked_rows(poison):
    args = make(rows=4)
    mask = torch.tensor([True, False, True, False])
    clean = gradient_of(args, mask=mask, weight_rows=torch.ones(4))
    bad = [each.where(mask.reshape(-1, *[1] * (each.ndim - 1)), poison) for each in args]
    found = gradient_of(tuple(bad), mask=mask, weight_rows=torch.ones(4).where(mask, poison))
    assert torch.equal(found[0], clean[0]) and torch.equal(found[1], clean[1])
    assert all(torch.equal(found[2][name].value, clean[2][name].value) for name in clean[2])
    value, gradient, _ = gradient_of(args, mask=torch.zeros(4, dtype=torch.bool))
    assert value == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_only_the_velocity_is_trained_at_any_rank():
    args = [each.reshape(5, 1, 2, 3) if each.ndim == 2 else each for each in make()]
    args = [each.clone().requires_grad_() for each in args]
    value, metrics = F.nft_loss(*args)
    torch.testing.assert_close(value.detach(), gradient_of(make())[0])
    assert torch.autograd.grad(value, args[1:], allow_unused=True, retain_graph=True) == (None,) * 4
    assert torch.autograd.grad(value, args[0])[0].abs().sum() > 0
    assert not any(torch.as_tensor(metric.value).requires_grad for metric in metrics.values())


def test_what_is_refused():
    args = make()
    for name, wrong in (("beta", 0.0), ("advantage_clip", -1.0), ("weight", "t"), ("reduction", "max")):
        with pytest.raises(ConfigError, match=f"`{name}`"):
            F.nft_loss(*args, **{name: wrong})
    names = ("velocity", "old_velocity", "target", "sigma", "advantages")
    for i, name in enumerate(names[1:], 1):
        wrong = list(args)
        wrong[i] = args[i][:3]
        with pytest.raises(ShapeError, match=f"`{name}`"):
            F.nft_loss(*wrong)
    with pytest.raises(ShapeError, match="`weight_rows`"):
        F.nft_loss(*args, weight_rows=torch.ones(3))
    with pytest.raises(ShapeError, match="`mask`"):
        F.nft_loss(*args, mask=torch.ones(5))
