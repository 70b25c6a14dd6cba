"""The policy gradient, its pull and the losses that are published on the evidence bound: what equals what."""

import math

import gaussian_line as line
import pytest
import torch
from loss_cases import make_case

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.forward import WEIGHTS


def gradient_of(value, log_prob):
    return torch.autograd.grad(value, log_prob, retain_graph=True)[0]


def entry(log_ratio, advantage, **kwargs):
    loss = kwargs.pop("loss")
    log_prob = torch.tensor([log_ratio], requires_grad=True)
    value, metrics = loss(log_prob, torch.zeros(1), torch.tensor([advantage]), **kwargs)
    return value.item(), gradient_of(value, log_prob).item(), metrics


@pytest.mark.parametrize("log_ratio", [-0.7, 0.0, 0.4])
@pytest.mark.parametrize("advantage", [-1.5, 0.0, 0.4])
def test_by_hand(log_ratio, advantage):
    r = math.exp(log_ratio)
    value, gradient, _ = entry(log_ratio, advantage, loss=F.pg_loss)
    assert value == pytest.approx(-advantage * r) and gradient == pytest.approx(-advantage * r)
    value, gradient, _ = entry(log_ratio, advantage, loss=F.pg_loss, ratio=False)
    assert value == pytest.approx(-advantage * log_ratio, abs=1e-7)
    assert gradient == pytest.approx(-advantage)
    for pull in (0.3, 1.0):
        left = advantage - pull * log_ratio
        value, gradient, _ = entry(log_ratio, advantage, loss=F.pg_loss, pull=pull)
        assert value == pytest.approx(-advantage * r + pull * r * log_ratio**2 / 2, abs=1e-6)
        assert gradient == pytest.approx(-r * left, abs=1e-6)
        _, gradient, _ = entry(log_ratio, advantage, loss=F.pg_loss, ratio=False, pull=pull)
        assert gradient == pytest.approx(-left, abs=1e-6)


def test_the_policy_gradient_is_grpo_whose_clip_never_acts():
    """As `pg` is set in benches."""
    case = make_case(moved=0.5, masked=0.3)
    wide = dict(clip_low=0.999999, clip_high=1e9)
    results = []
    for loss, settings in ((F.pg_loss, {}), (F.grpo_loss, wide)):
        log_prob = case.log_prob.detach().requires_grad_()
        value, metrics = loss(log_prob, case.old_log_prob, case.advantages, mask=case.mask, **settings)
        results.append((value.detach(), gradient_of(value, log_prob), metrics))
    (mine, my_slope, my_metrics), (other, other_slope, other_metrics) = results
    assert torch.equal(mine, other) and torch.equal(my_slope, other_slope)
    assert all(torch.equal(my_metrics[name].value, other_metrics[name].value) for name in my_metrics)


def test_the_published_forms_have_these_gradients_off_policy():
    """EPG, and that PAR and the proximal form (PEPG) are a pull of 1."""
    case = make_case(moved=0.5)
    old, a = case.old_log_prob.detach(), case.advantages
    log_prob = case.log_prob.detach().requires_grad_()
    d = (log_prob - old).detach()
    epg = -(d.exp() * a * log_prob).mean()
    torch.testing.assert_close(
        gradient_of(F.pg_loss(log_prob, old, a)[0], log_prob), gradient_of(epg, log_prob)
    )
    for ratio in (True, False):
        factor = d.exp() if ratio else 1.0
        pepg = -(factor * (a - d) * log_prob).mean()
        par = (factor * (a - (log_prob - old)).square() / 2).mean()
        pulled, _ = F.pg_loss(log_prob, old, a, ratio=ratio, pull=1.0)
        for published in (pepg, par):
            torch.testing.assert_close(gradient_of(pulled, log_prob), gradient_of(published, log_prob))


def test_the_mean_pull_has_the_gradient_of_the_kl_from_the_old_policy():
    """Over all actions of a small policy, weighted by the old one's probabilities."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=g).requires_grad_()
    old, new = torch.randn(7, generator=g).log_softmax(0), logits.log_softmax(0)
    loss, _ = F.pg_loss(new, old, torch.zeros(7), pull=0.7, weight_rows=old.exp(), denominator=1)
    kl = (new.exp() * (new - old)).sum()
    torch.testing.assert_close(gradient_of(loss, logits), 0.7 * gradient_of(kl, logits), rtol=1e-4, atol=1e-6)


def test_a_pull_has_its_fixed_point_where_log_ratios_are_advantages_over_it():
    a, pull = torch.tensor([-0.3, 0.0, 0.8]), 2.0
    log_prob = (a / pull - 1.0).requires_grad_()
    slope = gradient_of(F.pg_loss(log_prob, torch.full((3,), -1.0), a, pull=pull)[0], log_prob)
    torch.testing.assert_close(slope, torch.zeros(3), atol=1e-7, rtol=0)
    # Descent ends there from both sides.
    d = torch.tensor([-2.0, 2.0, 0.0])
    for _ in range(400):
        d = d.detach().requires_grad_()
        d = d - 0.5 * gradient_of(F.pg_loss(d, torch.zeros(3), a, pull=pull)[0], d)
    torch.testing.assert_close(d, a / pull, atol=1e-3, rtol=0)


def losses_of_minus_u(velocity, old_velocity, target, sigma, advantages, weight):
    """Every loss on the evidence bound, as the table of the sources has them."""

    def log_prob(v):
        return -F.surrogate(v, target, sigma, weight=weight)

    new, old = log_prob(velocity), log_prob(old_velocity)
    return {
        "epg": F.pg_loss(new, old, advantages)[0],
        "epg without ratio": F.pg_loss(new, old, advantages, ratio=False)[0],
        "par": F.pg_loss(new, old, advantages, pull=1.0)[0],
        "awm": F.grpo_loss(new, old, advantages, clip_low=0.999999, clip_high=1.0)[0],
        "v-grpo": F.grpo_loss(new, old, advantages, clip_low=1e-3)[0],
        "nft": F.nft_loss(velocity, old_velocity, target, sigma, advantages, beta=0.3, weight=weight)[0],
    }


@pytest.mark.parametrize("weight", WEIGHTS)
def test_all_have_one_gradient_at_the_old_policy(weight):
    g = torch.Generator().manual_seed(0)
    v, u = torch.randn(6, 4, 5, generator=g).requires_grad_(), torch.randn(6, 4, 5, generator=g)
    s, a = 0.05 + 0.9 * torch.rand(6, generator=g), torch.randn(6, generator=g)
    of_u = gradient_of(F.surrogate(v, u, s, weight=weight).sum(), v)
    expected = a[:, None, None] * of_u / 6
    for name, loss in losses_of_minus_u(v, v.detach().clone(), u, s, a, weight).items():
        found = gradient_of(loss, v)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_awm_by_its_own_formula():
    g = torch.Generator().manual_seed(0)
    v, u = torch.randn(3, 8, generator=g).requires_grad_(), torch.randn(3, 8, generator=g)
    s, a = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, -2.0, 0.5])
    loss = losses_of_minus_u(v, v.detach(), u, s, a, "ghuber")["awm"]
    d = (v - u).detach()
    square = d.square().mean(1, keepdim=True)
    expected = a[:, None] * s[:, None] * (square + 1e-10) ** -0.75 * 2 * d / 8
    torch.testing.assert_close(gradient_of(loss, v), expected / 3)


def fixed_point(x, s, a, pull, away):
    """Where the policy gradient of -U and a pull to `reference` cancel, given x_s = x; and the reference."""
    x0, u, p = (each.float() for each in line.posterior(x, s))
    rows, sigma = len(x0), torch.full((len(x0),), s)
    reference = line.velocity(x, s) + away
    advantages = a * (x0[:, 0] - line.M)

    def slope(v):
        at = torch.full((), v, requires_grad=True)
        velocity = at.expand(rows, 1)
        f = -F.surrogate(velocity, u, sigma)
        loss, _ = F.pg_loss(f, f.detach(), p * advantages, denominator=1)
        kl = F.velocity_kl(velocity, torch.full((rows, 1), reference), sigma)
        return gradient_of(loss + pull * (p * kl).sum(), at).item()

    low, high = slope(reference), slope(reference + 1)
    return reference - low / (high - low), high - low, advantages, x0, u, p, reference


@pytest.mark.parametrize("x", [-0.5, 0.3, 1.2])
def test_advantage_weighted_matching_has_its_closed_optimum(x):
    s, a, pull = 0.6, 0.4, 0.8
    q = line.variance(s)
    best, curvature, advantages, _, u, p, reference = fixed_point(x, s, a, pull, away=0.0)
    mean_advantage = a * (1 - s) * line.K**2 * (x - (1 - s) * line.M) / q
    expected = -a * line.K**2 * (s / q) / (pull + mean_advantage)
    assert best - reference == pytest.approx(expected, rel=1e-3)
    assert curvature > 0  # it exists, since the anchor outweighs the mean advantage
    # The general form, with a reference that is not perfect.
    best, *_, reference = fixed_point(x, s, a, pull, away=0.5)
    weighted = ((p * advantages * u[:, 0]).sum() + pull * reference) / ((p * advantages).sum() + pull)
    assert best == pytest.approx(weighted.item(), rel=1e-3)


def test_without_enough_anchor_there_is_no_optimum():
    assert fixed_point(-2.0, 0.3, 0.4, 0.05, away=0.0)[1] < 0


def test_a_constant_advantage_leaves_a_perfect_model_fixed():
    for s in (0.2, 0.7):
        x0, e, p = line.joint()
        sigma = torch.full((len(x0),), s)
        x, u = F.noised(x0, e, sigma)
        # Slope and offset of a velocity linear in x.
        theta = torch.zeros(2, requires_grad=True)
        velocity = line.velocity(x, s) + theta[0] * x + theta[1]
        f = -F.surrogate(velocity, u, sigma)
        loss, _ = F.pg_loss(f, f.detach(), p.float() * 1.7, denominator=1)
        assert gradient_of(loss, theta).abs().max() < 2e-5
        off = -F.surrogate(velocity + 0.1, u, sigma)
        loss, _ = F.pg_loss(off, off.detach(), p.float() * 1.7, denominator=1)
        assert gradient_of(loss, theta)[1].item() == pytest.approx(1.7 * 2 * 0.1, rel=1e-3)


def test_equal_samples_of_a_group_cancel_if_they_share_their_noise():
    """V-GRPO: the ratio is of the mean over draws, and advantages of a group sum to 0."""
    g = torch.Generator().manual_seed(0)
    final = torch.randn(1, 6, generator=g).expand(4, 6)
    advantages = torch.tensor([1.5, -0.5, -0.75, -0.25])
    network = torch.nn.Linear(6, 6)

    def gradient(noise, sigma):
        x, u = F.noised(final[:, None].expand(4, 3, 6), noise, sigma)
        miss = F.surrogate(network(x), u, sigma, weight="adaptive").mean(1)
        loss, metrics = F.grpo_loss(-miss, -miss.detach(), advantages, clip_low=1e-3)
        assert metrics["ratio_max_deviation"].value == 0
        return torch.autograd.grad(loss, network.weight)[0].abs().max().item()

    noise, sigma = torch.randn(4, 3, 6, generator=g), torch.rand(4, 3, generator=g)
    assert gradient(noise[:1].expand(4, 3, 6), sigma[:1].expand(4, 3)) < 1e-7
    assert gradient(noise, sigma[:1].expand(4, 3)) > 1e-3


def test_masks_denominators_and_weights_of_a_pull():
    case = make_case(batch=7, moved=0.4, masked=0.4)
    weights = torch.rand(7, 3)

    def of(case, weights, **kwargs):
        log_prob = case.log_prob.detach().requires_grad_()
        value, metrics = F.pg_loss(
            log_prob,
            case.old_log_prob,
            case.advantages,
            pull=0.5,
            weight_rows=weights,
            mask=case.mask,
            **kwargs,
        )
        return value.detach(), gradient_of(value, log_prob), metrics

    whole, gradient, metrics = of(case, weights)
    total = int(case.mask.sum())
    parts = [of(case.rows(rows), weights[rows], denominator=total) for rows in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), gradient)
    merged = F.merge_metrics([part[2] for part in parts])
    for name in metrics:
        torch.testing.assert_close(merged[name].value, metrics[name].value)
    assert torch.equal(gradient[~case.mask], torch.zeros(int((~case.mask).sum())))
    poisoned = case.old_log_prob.where(case.mask, math.nan)
    value, _ = F.pg_loss(
        case.log_prob.where(case.mask, math.nan),
        poisoned,
        case.advantages.where(case.mask, math.inf),
        pull=0.5,
        weight_rows=weights.where(case.mask, math.nan),
        mask=case.mask,
    )
    assert torch.equal(value, whole)
    with pytest.raises(ShapeError, match="`weight_rows`"):
        of(case, weights[:, :2])
    for pull in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="`pull` must be a number of at least 0"):
            F.pg_loss(case.log_prob, case.old_log_prob, case.advantages, pull=pull)


@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, 100.0, 1e4])
def test_runaway_entries_stay_finite_and_are_led_back_by_a_pull(log_ratio):
    value, gradient, _ = entry(log_ratio, 0.5, loss=F.pg_loss, pull=1.0)
    assert math.isfinite(value) and math.isfinite(gradient)
    assert gradient * log_ratio > 0  # descent leads to 0.5
