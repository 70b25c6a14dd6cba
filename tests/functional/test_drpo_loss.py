import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import make_case
from torch.distributions import Normal

import unirl_env.functional as F
from unirl_env.errors import ContractError


def token(pi, mu, advantage, epsilon=12.5):
    """Loss, gradient and the weight of the policy gradient for one token."""
    log_prob = torch.tensor([math.log(pi)], requires_grad=True)
    value, metrics = F.drpo_loss(
        log_prob, torch.tensor([math.log(mu)]), torch.tensor([advantage]), epsilon=epsilon
    )
    gradient = torch.autograd.grad(value, log_prob)[0].item()
    return value.item(), gradient, gradient / (-advantage * pi / mu), metrics


@pytest.mark.parametrize(
    "pi, mu, advantage, epsilon, weight",
    [
        (0.2, 0.7, 1.0, 12.5, 1.04),
        (0.7, 0.2, 1.0, 12.5, 0.96),
        (0.02, 0.001, -1.0, 0.2, 1.095),  # a rare token that grew 20-fold; without mu the weight would be 96
        (0.7, 0.2, 1.0, 0.25, -1.0),  # beyond the border: turned back
        (0.7, 0.2, 1.0, 0.5, 0.0),  # at the border
        (0.3, 0.3, 1.0, 0.1, 1.0),
    ],
)
def test_token_weights_by_hand(pi, mu, advantage, epsilon, weight):
    value, _, got, metrics = token(pi, mu, advantage, epsilon)
    ratio = pi / mu
    assert got == pytest.approx(weight, abs=1e-4)
    expected = -advantage * ratio + abs(advantage) * mu * (ratio - 1) ** 2 / (2 * epsilon)
    assert value == pytest.approx(expected, rel=1e-5)
    assert metrics["tv"].value.item() == pytest.approx(abs(pi - mu), abs=1e-6)


@given(
    pi=st.floats(1e-3, 1.0),
    mu=st.floats(1e-3, 1.0),
    advantage=st.sampled_from([-2.0, -0.5, 0.5, 2.0]),
    epsilon=st.floats(0.05, 20.0),
)
@settings(max_examples=60, deadline=None)
def test_token_gradient_in_closed_form(pi, mu, advantage, epsilon):
    _, gradient, _, _ = token(pi, mu, advantage, epsilon)
    sign = math.copysign(1.0, advantage * (pi - mu))
    expected = -advantage * pi / mu * (1 - sign * abs(pi - mu) / epsilon)
    assert gradient == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_published_default_reweighs_by_eight_percent_at_most():
    weights = [token(pi, mu, a)[2] for pi in (1e-3, 0.5, 1.0) for mu in (1e-3, 0.5, 1.0) for a in (1.0, -1.0)]
    assert 0.92 - 1e-4 <= min(weights) and max(weights) <= 1.08 + 1e-4
    assert max(weights) > 1.07 and min(weights) < 0.93


def test_corrective_fraction():
    log_mu = torch.log(torch.tensor([0.2, 0.2, 0.7, 0.3]))
    log_pi = torch.log(torch.tensor([0.7, 0.7, 0.2, 0.3]))
    _, metrics = F.drpo_loss(log_pi, log_mu, torch.tensor([1.0, -1.0, 1.0, 1.0]), epsilon=0.4)
    assert metrics["corrective_fraction"].value == 0.25
    assert metrics["tv"].value.item() == pytest.approx(1.5 / 4)


def test_density_is_no_token():
    with pytest.raises(ContractError, match="drpo_gaussian_loss"):
        F.drpo_loss(torch.zeros(2), torch.tensor([-0.1, 0.4]), torch.ones(2))
    masked = torch.tensor([True, False])
    F.drpo_loss(torch.zeros(2), torch.tensor([-0.1, 0.4]), torch.ones(2), mask=masked)


# --- latents ---


def gaussian(case, log_prob, epsilon):
    return F.drpo_gaussian_loss(
        log_prob,
        case.old_log_prob,
        case.mean,
        case.old_mean,
        case.std,
        case.advantages,
        epsilon=epsilon,
    )


@given(seed=st.integers(0, 1000), moved=st.floats(0, 0.5), epsilon=st.floats(0.05, 2.0))
@settings(max_examples=40, deadline=None)
def test_gaussian_gradient_in_closed_form(seed, moved, epsilon):
    case = make_case(moved=moved, seed=seed)
    log_prob = case.log_prob.detach().requires_grad_()
    value, metrics = gaussian(case, log_prob, epsilon)
    (gradient,) = torch.autograd.grad(value, log_prob)
    distance = (case.mean - case.old_mean).double().norm(dim=-1) / case.std.double()
    tv = torch.erf(distance / (2 * math.sqrt(2)))
    log_ratio = (log_prob - case.old_log_prob).detach().double()
    weight = 1 - torch.sign(case.advantages.double() * log_ratio) * tv / epsilon
    expected = -case.advantages.double() * log_ratio.exp() * weight / 18
    torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=1e-4)
    assert metrics["tv"].value.item() == pytest.approx(tv.mean().item(), abs=1e-4)
    turned_back = (case.advantages * log_ratio > 0) & (tv > epsilon)
    if bool(((tv - epsilon).abs() > 1e-5).all()):
        assert metrics["corrective_fraction"].value.item() == pytest.approx(turned_back.float().mean().item())


def test_gaussian_weight_is_the_token_weight_of_the_likelihood_ratio_cell():
    # The derivation: the cell {pi >= mu} or its complement, whichever holds the sample, changes its
    # probability by sign(r - 1) TV. Integrated numerically in one dimension.
    line, std, shift = torch.linspace(-12, 12, 240_001, dtype=torch.float64), 0.6, 0.5
    new, old = Normal(shift, std), Normal(0.0, std)
    log_ratio = new.log_prob(line) - old.log_prob(line)
    for sample in (-0.8, 0.1, 0.4, 1.5):
        r = (new.log_prob(torch.tensor(sample)) - old.log_prob(torch.tensor(sample))).item()
        cell = (log_ratio >= 0) == (r >= 0)
        p, q = (torch.trapezoid(d.log_prob(line).exp() * cell, line).item() for d in (new, old))
        advantage, epsilon = 1.5, 0.4
        log_prob = new.log_prob(torch.tensor([sample])).float().requires_grad_()
        value, _ = F.drpo_gaussian_loss(
            log_prob,
            old.log_prob(torch.tensor([sample])).float(),
            torch.full((1, 1), shift),
            torch.zeros(1, 1),
            torch.tensor([std]),
            torch.tensor([advantage]),
            epsilon=epsilon,
        )
        weight = torch.autograd.grad(value, log_prob)[0].item() / (-advantage * math.exp(r))
        assert weight == pytest.approx(1 - math.copysign(1, advantage) * (p - q) / epsilon, abs=1e-3)


def test_gaussian_weights_are_bounded():
    case = make_case(moved=50.0)
    log_prob = (case.old_log_prob + 0.1 * torch.sign(case.log_prob - case.old_log_prob)).detach()
    log_prob.requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian(case, log_prob, 0.5)[0], log_prob)
    ratio = (log_prob - case.old_log_prob).detach().exp()
    weights = gradient / (-case.advantages * ratio / 18)
    assert weights.min() >= -1 - 1e-4 and weights.max() <= 3 + 1e-4


@pytest.mark.parametrize("epsilon, nats", [(0.1, 0.03), (0.25, 0.2), (0.43, 0.66), (0.5, 0.9), (0.75, 2.6)])
@pytest.mark.parametrize("elements", [1, 64, 65_536])
def test_border_lies_at_the_same_joint_divergence_for_every_size(epsilon, nats, elements):
    exact = 4 * torch.erfinv(torch.tensor(epsilon, dtype=torch.float64)).item() ** 2
    assert exact == pytest.approx(nats, rel=0.06)
    for factor, sign in ((0.95, 1), (1.05, -1)):
        mean = torch.full((1, elements), math.sqrt(2 * factor * exact / elements))
        log_prob = torch.tensor([1e-4], requires_grad=True)
        value, _ = F.drpo_gaussian_loss(
            log_prob,
            torch.zeros(1),
            mean,
            torch.zeros_like(mean),
            torch.ones(1),
            torch.ones(1),
            epsilon=epsilon,
        )
        weight = -torch.autograd.grad(value, log_prob)[0].item()
        assert weight * sign > 0 and abs(weight) < 0.1


# --- trust regions at work ---


def train(loss, steps=60, step_size=0.16):
    """Climb one batch again and again; returns the joint divergence in nats that the policy ends at."""
    case = make_case(batch=512, steps=1, elements=16, seed=1)
    case = replace(case, std=torch.full_like(case.std, 0.2))
    noise = torch.randn(512, 1, 16, generator=torch.Generator().manual_seed(2))
    rewards = noise[:, 0, 0]
    case = replace(
        case,
        action=case.old_mean + 0.2 * noise,
        advantages=F.group_advantages(rewards, torch.zeros(512, dtype=torch.long))[:, None],
    )
    case = replace(case, old_log_prob=case.log_prob)
    theta = torch.zeros(16, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(replace(case, mean=case.old_mean + theta)), theta)
        theta = (theta - step_size * gradient).detach().requires_grad_()
    assert theta[0] > 0  # the rewarded direction
    origin, std = torch.zeros(1, 16), torch.tensor([0.2])
    return F.gaussian_kl(theta[None].detach(), origin, std, reduction="sum").item()


def test_trust_regions_hold_where_the_plain_gradient_runs_away():
    def plain(case):
        ratio = (case.log_prob - case.old_log_prob).exp()
        return -(case.advantages * ratio).mean()

    def arguments(case):
        return case.log_prob, case.old_log_prob, case.mean, case.old_mean, case.std, case.advantages

    threshold = F.nats_to_mean(0.66, 16)
    free = train(plain)
    masked = train(lambda case: F.flow_dppo_loss(*arguments(case), kl_threshold=threshold)[0])
    smooth = train(lambda case: F.drpo_gaussian_loss(*arguments(case), epsilon=0.43)[0])
    assert free > 4.0, (free, masked, smooth)
    assert 0.1 < masked < 1.0, (free, masked, smooth)
    assert 0.1 < smooth < 0.66, (free, masked, smooth)
