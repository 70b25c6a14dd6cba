import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import unirl_env.functional as F
from unirl_env.errors import ContractError, ShapeError


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rest", [(4, 6, 6), (9, 4), (3, 2, 4, 4)])
def test_value_and_gradient(rest):
    mean, ref = randn(2, 3, *rest).requires_grad_(), randn(2, 3, *rest, seed=1).requires_grad_()
    std = torch.rand(2, 3, generator=torch.Generator().manual_seed(2)) + 0.3
    wide = std.reshape(2, 3, *(1 for _ in rest))
    expected = kl_divergence(Normal(mean, wide), Normal(ref, wide)).mean()
    value = F.reference_kl(mean, ref, std)
    torch.testing.assert_close(value, expected)
    gradient, ref_gradient = torch.autograd.grad(value, (mean, ref), allow_unused=True)
    torch.testing.assert_close(gradient, ((mean - ref) / wide**2 / mean.numel()).detach())
    assert ref_gradient is None
    total = F.reference_kl(mean, ref, std, reduction="sum")
    torch.testing.assert_close(total, value * math.prod(rest))


def test_masked_entries_and_micro_batches():
    mean, ref, std = randn(6, 3, 5), randn(6, 3, 5, seed=1), torch.full((6, 3), 0.5)
    mask = randn(6, 3, seed=2) > 0
    whole = F.reference_kl(mean, ref, std, mask)
    torch.testing.assert_close(whole, F.reference_kl(mean[mask], ref[mask], std[mask]))
    parts = [F.reference_kl(mean[i], ref[i], std[i], mask[i], mask.sum()) for i in torch.arange(6).split(4)]
    torch.testing.assert_close(sum(parts), whole)
    poisoned = mean.masked_fill(~mask[..., None], math.nan).requires_grad_()
    value = F.reference_kl(poisoned, ref, std.masked_fill(~mask, 0.0), mask)
    torch.testing.assert_close(value, whole)
    (gradient,) = torch.autograd.grad(value, poisoned)
    assert bool(gradient.isfinite().all()) and bool((gradient[~mask] == 0).all())


def test_is_zero_at_the_reference():
    mean = randn(2, 3, 5).requires_grad_()
    value = F.reference_kl(mean, mean.detach(), torch.ones(2, 3))
    assert value == 0
    assert torch.equal(torch.autograd.grad(value, mean)[0], torch.zeros(2, 3, 5))


def test_at_a_visited_state_the_actions_own_ratio_does_not_enter():
    """Two steps on a line, whose states under the old policy `N(0.9 x, 0.8^2)` are normal.

    The term's gradient is that of the exact objective at those states, with no weight. The ratio of the
    step's own action has mean 1 at each state and would only add noise; a root of it, which is what
    mean-reduced log-probs give, has not. (The new policy's states take the joint ratio of the steps before.)
    """
    std, spread = 0.8, [1.0, math.sqrt(0.9**2 + 0.8**2)]
    grid = torch.linspace(-9, 9, 1801, dtype=torch.float64)

    def objective(by):
        often = sum(torch.softmax(-((grid / s) ** 2) / 2, 0) for s in spread) / 2
        return float(often @ ((by * torch.tanh(grid)).square() / (2 * std**2)))

    quantiles = Normal(0.0, 1.0).icdf((torch.arange(4000) + 0.5) / 4000)
    states = torch.stack([quantiles * s for s in spread], 1)[..., None]
    by = torch.tensor(0.3, requires_grad=True)
    value = F.reference_kl(0.9 * states + by * torch.tanh(states), 0.9 * states, torch.full((4000, 2), std))
    (gradient,) = torch.autograd.grad(value, by)
    assert value.item() == pytest.approx(objective(0.3), rel=1e-3)
    assert gradient.item() == pytest.approx((objective(0.301) - objective(0.299)) / 0.002, rel=1e-3)

    for state in (-1.0, 2.0):
        old, new = Normal(0.9 * state, std), Normal(0.9 * state + 0.3 * math.tanh(state), std)
        chance = torch.softmax(old.log_prob(grid), 0)
        log_ratio = new.log_prob(grid) - old.log_prob(grid)
        assert float(chance @ log_ratio.exp()) == pytest.approx(1.0, abs=1e-6)
        assert float(chance @ (log_ratio / 4).exp()) < 0.995


def test_refuses():
    mean = randn(2, 3, 5)
    with pytest.raises(ContractError, match="`std`"):
        F.reference_kl(mean, mean, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="`mask`"):
        F.reference_kl(mean, mean, torch.ones(2, 3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ShapeError, match="`old_mean`"):
        F.reference_kl(mean, mean[..., :2], torch.ones(2, 3))
