import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import make_case

import unirl_env.functional as F
from unirl_env.errors import ConfigError


def one_entry(log_ratio, advantage, kl, *, threshold=0.1, elements=5, **kwargs):
    """One entry with a mean-reduced divergence of `kl`."""
    std = torch.tensor([0.7])
    old_mean = torch.linspace(-1, 1, elements)[None]
    mean = old_mean + 0.7 * math.sqrt(2 * kl)
    log_prob = torch.tensor([log_ratio], requires_grad=True)
    args = (log_prob, torch.zeros(1), mean, old_mean, std, torch.tensor([advantage]))
    value, metrics = F.flow_dppo_loss(*args, kl_threshold=threshold, **kwargs)
    return value.item(), torch.autograd.grad(value, log_prob)[0].item(), metrics


@pytest.mark.parametrize(
    "log_ratio, advantage, kl, dropped",
    [
        (0.2, 1.0, 0.2, True),  # outside, moving out
        (-0.2, -1.0, 0.2, True),
        (-0.2, 1.0, 0.2, False),  # outside, moving back
        (0.2, -1.0, 0.2, False),
        (0.2, 1.0, 0.05, False),  # inside
        (-0.2, -1.0, 0.05, False),
        (0.0, 1.0, 0.2, False),  # ratio one moves neither way
        (0.2, 0.0, 0.2, False),
    ],
)
def test_mask_by_hand(log_ratio, advantage, kl, dropped):
    value, gradient, metrics = one_entry(log_ratio, advantage, kl)
    expected = 0.0 if dropped else -advantage * math.exp(log_ratio)
    assert value == pytest.approx(expected, abs=1e-6) and gradient == pytest.approx(expected, abs=1e-6)
    assert metrics["masked_fraction"].value == float(dropped)
    assert metrics["kl"].value.item() == pytest.approx(kl, rel=1e-5)
    assert metrics["kl_max"].value.item() == pytest.approx(kl, rel=1e-5)


def test_an_entry_at_the_threshold_is_outside():
    std, old = torch.ones(1), torch.zeros(1, 4)
    mean = torch.full((1, 4), 0.5)  # k = 0.125, exact in float32
    for threshold, expected in ((0.125, 0.0), (0.1250001, -math.exp(0.2))):
        value, _ = F.flow_dppo_loss(
            torch.tensor([0.2]), torch.zeros(1), mean, old, std, torch.ones(1), kl_threshold=threshold
        )
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_dropped_entries_stay_in_the_denominator():
    std, old = torch.ones(1, 2), torch.zeros(1, 2, 3)
    mean = torch.stack([torch.full((1, 3), 2.0), torch.zeros(1, 3)], 1)
    log_prob = torch.tensor([[0.1, 0.1]])
    value, metrics = F.flow_dppo_loss(
        log_prob, torch.zeros(1, 2), mean, old, std, torch.ones(1), kl_threshold=1e-3
    )
    assert value.item() == pytest.approx(-math.exp(0.1) / 2)
    assert metrics["masked_fraction"].value == 0.5


def test_dropped_runaway_leaves_no_nan():
    log_prob = torch.tensor([1e5, 0.0], requires_grad=True)
    mean, old = torch.full((2, 3), 100.0), torch.zeros(2, 3)
    value, _ = F.flow_dppo_loss(
        log_prob, torch.zeros(2), mean, old, torch.ones(2), torch.ones(2), kl_threshold=1e-5
    )
    (gradient,) = torch.autograd.grad(value, log_prob)
    assert value.item() == pytest.approx(-0.5)  # the second entry has ratio one and passes
    assert gradient.tolist() == [0.0, -0.5]


@given(seed=st.integers(0, 1000), moved=st.floats(0, 0.5), threshold=st.floats(1e-4, 0.2))
@settings(max_examples=30, deadline=None)
def test_against_the_definition(seed, moved, threshold):
    case = make_case(moved=moved, seed=seed)
    value, _ = F.flow_dppo_loss(
        case.log_prob,
        case.old_log_prob,
        case.mean,
        case.old_mean,
        case.std,
        case.advantages,
        kl_threshold=threshold,
    )
    total, near = 0.0, False
    for b in range(6):
        for s in range(3):
            shift = (case.mean[b, s].double() - case.old_mean[b, s].double()).square().mean().item()
            k = shift / (2 * case.std[b, s].item() ** 2)
            log_ratio = (case.log_prob[b, s] - case.old_log_prob[b, s]).item()
            a = case.advantages[b, s].item()
            near = near or abs(k - threshold) < 1e-6
            if not (k >= threshold and ((log_ratio > 0 and a > 0) or (log_ratio < 0 and a < 0))):
                total += -a * math.exp(log_ratio)
    if not near:
        assert value.item() == pytest.approx(total / 18, rel=1e-4, abs=1e-5)


def test_divergence_uses_the_given_std_and_not_one_made_from_sigma():
    # The first step of T = 10, shift 3: with a std of 1.3229 instead of 0.7 the divergence is 3.57 times too
    # small.
    sigmas = F.flow_sigmas(10)
    x, v = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 8)
    at = dict(sigma=sigmas[0], sigma_next=sigmas[1], sigma_max=float(sigmas[1]))
    old = F.sde_step(v, x, noise=torch.ones_like(x), **at)
    new = F.sde_step(v + 0.1, x, next_latent=old.latent, **at)
    _, metrics = F.flow_dppo_loss(
        new.log_prob, old.log_prob, new.mean, old.mean, new.std, torch.ones(2), kl_threshold=1.0
    )
    expected = (0.1 * (1 - 0.9643)) ** 2 / (2 * 0.7**2)
    assert metrics["kl"].value.item() == pytest.approx(expected, rel=1e-3)
    assert metrics["kl"].value.item() / (expected * 0.7**2 / 1.3229**2) == pytest.approx(3.57, rel=2e-3)


@pytest.mark.parametrize("nats", [0.01, 0.66, 0.92, 4.0])
def test_the_divergence_grows_where_the_advantage_and_the_log_ratio_less_k_agree(nats):
    """A small step of each entry's own gradient, against the exact divergence before and after it."""
    count, elements, std = 20_000, 16, 0.7
    g = torch.Generator().manual_seed(0)
    old_mean = torch.randn(count, elements, generator=g, dtype=torch.float64)
    away = torch.randn(count, elements, generator=g, dtype=torch.float64)
    mean = old_mean + std * math.sqrt(2 * nats) * away / away.norm(dim=1, keepdim=True)
    action = old_mean + std * torch.randn(count, elements, generator=g, dtype=torch.float64)
    advantages = torch.randn(count, generator=g, dtype=torch.float64)

    def log_prob(mean):
        return -((action - mean) / std).square().mean(1) / 2

    def divergence(mean):
        return ((mean - old_mean) / std).square().mean(1) / 2

    moved = mean.clone().requires_grad_()
    (uphill,) = torch.autograd.grad((advantages * log_prob(moved)).sum(), moved)
    grows = divergence(mean + 1e-6 * uphill) > divergence(mean)
    log_ratio, k = log_prob(mean) - log_prob(old_mean), divergence(mean)
    assert float((grows == (advantages * (log_ratio - k) > 0)).double().mean()) > 0.9999
    # What the mask asks for agrees in most entries only.
    x = math.sqrt(nats / 2)
    differ = 0.5 * (math.erf(2 * x / math.sqrt(2)) - math.erf(x / math.sqrt(2)))
    found = float((grows != (advantages * log_ratio > 0)).double().mean())
    assert found == pytest.approx(differ, abs=4 * math.sqrt(differ / count))
    assert differ < 0.1614
    args = (log_ratio, torch.zeros(count), mean, old_mean, torch.full((count,), std), advantages)
    for direction, leads_out in (("published", advantages * log_ratio > 0), ("exact", grows)):
        scored = log_ratio.float().requires_grad_()
        value, metrics = F.flow_dppo_loss(
            scored,
            *(each.float() for each in args[1:]),
            kl_threshold=nats / elements / 2,
            direction=direction,
        )
        # Entry by entry, but for a few that rounding decides.
        passes = torch.autograd.grad(value, scored)[0] != 0
        assert float((passes == ~leads_out).double().mean()) > 0.9995
        share = float(leads_out.double().mean())
        assert metrics["masked_fraction"].value.item() == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    "log_ratio, advantage, published, exact",
    [
        (0.3, 1.0, True, True),  # k is 0.2
        (0.1, 1.0, True, False),  # the ratio is above 1, but the gradient leads back
        (0.1, -1.0, False, True),  # and here it leads out
        (-0.1, 1.0, False, False),
        (-0.1, -1.0, True, True),
        (0.3, -1.0, False, False),
        (0.0, -1.0, False, True),
    ],
)
def test_both_directions_by_hand(log_ratio, advantage, published, exact):
    for direction, dropped in (("published", published), ("exact", exact)):
        value, _, metrics = one_entry(log_ratio, advantage, 0.2, direction=direction)
        assert value == pytest.approx(0.0 if dropped else -advantage * math.exp(log_ratio), abs=1e-6)
        assert metrics["masked_fraction"].value == float(dropped)
    for direction in ("published", "exact"):
        assert one_entry(log_ratio, advantage, 0.05, direction=direction)[0] != 0  # inside, all pass


def test_the_direction_is_checked():
    with pytest.raises(ConfigError, match="`direction`"):
        one_entry(0.1, 1.0, 0.2, direction="ratio")
