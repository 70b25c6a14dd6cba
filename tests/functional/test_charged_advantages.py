"""Returns charged with the KL to come: by loops over their definition, by sums over all that can happen."""

from itertools import product

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

GROUP = torch.tensor([4, 4, 4, 1, 1, 1, 1])
REWARDS = torch.tensor([1.0, 2.0, 4.0, 0.5, 0.5, 2.5, 0.0])
CHARGE = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
REACH = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
SCALES = ("group", "batch", "none", "leave_one_out")


def by_hand(scale, valid=(0, 1, 2, 3, 4, 5, 6), rewards=REWARDS):
    """A and the weight of the step's own KL, episode by episode."""
    advantages, own = torch.zeros(7, 3), torch.zeros(7, 3)
    for i, k in product(valid, range(3)):
        if not REACH[i, k]:
            continue
        mates = [j for j in valid if GROUP[j] == GROUP[i]]
        there = [j for j in mates if REACH[j, k]]
        c = {"group": rewards[mates].std(unbiased=False), "batch": rewards[list(valid)].std(unbiased=False)}
        c, n = float(c.get(scale, 1.0)), len(there)
        gain = (rewards - CHARGE[:, k])[there]
        advantages[i, k] = float(rewards[i] - CHARGE[i, k] - gain.mean()) / c
        own[i, k] = (n - 1) / (n * c)
        if scale == "leave_one_out" and n > 1:
            advantages[i, k] *= n / (n - 1)
            own[i, k] = 1.0
    return advantages, own


@pytest.mark.parametrize("scale", SCALES)
def test_every_step_has_the_baseline_of_those_that_come_to_it(scale):
    found, own = F.charged_advantages(REWARDS, GROUP, CHARGE, REACH, scale=scale)
    expected = by_hand(scale)
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, expected[1], rtol=1e-5, atol=1e-6)
    assert found.dtype == own.dtype == torch.float32 and float(found.abs().max()) > 0.3
    assert found[0, 2] == own[0, 2] == 0, "who comes to a step alone has nobody to be compared with"


@pytest.mark.parametrize("scale", SCALES)
def test_what_failed_is_nobodys_baseline(scale):
    rewards = REWARDS.clone()
    rewards[5] = torch.nan
    found, own = F.charged_advantages(rewards, GROUP, CHARGE, REACH, scale=scale)
    expected = by_hand(scale, (0, 1, 2, 3, 4, 6), rewards.nan_to_num(0.0))
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, expected[1], rtol=1e-5, atol=1e-6)


def test_a_charge_that_is_no_number_is_left_out_as_a_reward_would_be():
    charge = CHARGE.clone()
    charge[4, 0], charge[5, 0] = torch.inf, torch.nan
    found, own = F.charged_advantages(REWARDS, GROUP, charge, REACH)
    assert found.isfinite().all() and (found[4:6, 0] == 0).all() and (own[4:6, 0] == 0).all()
    gain = (REWARDS - CHARGE[:, 0])[[3, 6]]
    c = REWARDS[3:].std(unbiased=False)
    torch.testing.assert_close(found[[3, 6], 0], (gain - gain.mean()) / c)


@pytest.mark.parametrize("scale", SCALES)
def test_without_a_charge_they_are_those_of_groups_and_constant_groups_get_exactly_zero(scale):
    rewards = torch.cat([torch.full((3,), 0.1), REWARDS[3:]])
    whole = torch.ones_like(REACH)
    found, _ = F.charged_advantages(rewards, GROUP, torch.zeros(7, 3), whole, scale=scale)
    if scale == "leave_one_out":
        plain = F.leave_one_out_advantages(rewards, GROUP)
    else:
        plain = F.group_advantages(rewards, GROUP, scale=scale)
    torch.testing.assert_close(found, plain[:, None].expand(7, 3), rtol=1e-6, atol=1e-7)
    assert (found[:3] == 0).all() and not torch.signbit(found[:3]).any()


def test_the_order_of_the_batch_changes_no_bit():
    order = torch.tensor([5, 0, 3, 2, 6, 1, 4])
    for scale in SCALES:
        found, own = F.charged_advantages(REWARDS, GROUP, CHARGE, REACH, scale=scale)
        other, theirs = F.charged_advantages(
            REWARDS[order], 9 - GROUP[order], CHARGE[order], REACH[order], scale=scale
        )
        assert torch.equal(other, found[order]) and torch.equal(theirs, own[order])


def test_a_group_of_equal_rewards_takes_its_unit_from_the_others():
    rewards = torch.cat([torch.full((3,), 0.1), REWARDS[3:]])
    _, own = F.charged_advantages(rewards, GROUP, CHARGE, torch.ones_like(REACH))
    c = float(rewards[3:].std(unbiased=False))
    torch.testing.assert_close(own[0], torch.full((3,), 2 / 3 / c))
    for scale in SCALES:
        found, own = F.charged_advantages(torch.ones(7), GROUP, CHARGE, REACH, scale=scale)
        assert float(own.max()) <= 1.0 and float(found.abs().max()) < 1.0, (
            "no unit at all: that of the reward"
        )


def test_it_may_be_clipped_and_refuses_what_does_not_fit():
    found, _ = F.charged_advantages(REWARDS, GROUP, CHARGE, REACH, clip=0.5)
    assert float(found.abs().max()) == 0.5
    with pytest.raises(ShapeError, match=r"`charge` must be \[7, S\]"):
        F.charged_advantages(REWARDS, GROUP, CHARGE[:3], REACH)
    with pytest.raises(ShapeError, match="`reach` must be a bool"):
        F.charged_advantages(REWARDS, GROUP, CHARGE, REACH.float())
    with pytest.raises(ConfigError, match="`scale`"):
        F.charged_advantages(REWARDS, GROUP, CHARGE, REACH, scale="median")


# Texts of at most two tokens: "0" ends one, "1" goes on. Every group of three that can be drawn is added up.

BETA, SIZE = 0.3, 3
FIRST, SECOND = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])  # the texts "0", "10", "11"
REACHED = torch.tensor([[True, False], [True, True], [True, True]])
PAID = torch.tensor([0.4, 0.0, 1.0], dtype=torch.float64)
REFERENCE = torch.tensor([[0.3, -0.2], [0.8, -0.4]], dtype=torch.float64)
POLICY = torch.tensor([[-0.5, 0.4], [-0.3, 0.9]], dtype=torch.float64)


def tokens(logits):
    """`[3, 2]`, the log-probability of each token of each text; 0 where there is none."""
    log = logits.log_softmax(1)
    return torch.stack([log[0, FIRST], log[1, SECOND] * (FIRST == 1)], 1)


def objective(logits):
    gap = (tokens(logits) - tokens(REFERENCE)).sum(1)
    return (tokens(logits).sum(1).exp() * (PAID - BETA * gap)).sum()


def expected_gradient(scale, charged):
    """Of minus the loss summed over an episode's tokens, over all groups of texts, by their probabilities."""
    logits = POLICY.clone().requires_grad_()
    chance, paid = tokens(POLICY).sum(1).exp(), tokens(POLICY) - tokens(REFERENCE)
    later = torch.stack([paid[:, 1], torch.zeros(3)], 1) * BETA
    total = 0.0
    for drawn in product(range(3), repeat=SIZE):
        drawn = torch.tensor(drawn)
        group, mask = torch.zeros(SIZE, dtype=torch.int64), REACHED[drawn]
        charge = later[drawn] * charged
        advantages, own = F.charged_advantages(PAID[drawn], group, charge, mask, scale=scale)
        new, old = tokens(logits)[drawn][mask], tokens(POLICY)[drawn][mask]
        loss, _ = F.grpo_loss(new, old, advantages[mask], clip_low=0.2, denominator=SIZE)
        pull = F.token_reference_kl(
            new, tokens(REFERENCE)[drawn][mask], old_log_prob=old, weight=own[mask], denominator=SIZE
        )
        total = total - chance[drawn].prod() * (loss + BETA * pull)
    return torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize(("scale", "factor"), [("none", (SIZE - 1) / SIZE), ("leave_one_out", 1.0)])
def test_the_expected_gradient_is_that_of_the_objective_and_without_the_charge_it_is_not(scale, factor):
    logits = POLICY.clone().requires_grad_()
    exact = torch.autograd.grad(objective(logits), logits)[0]
    found, blind = (expected_gradient(scale, charged) for charged in (True, False))
    torch.testing.assert_close(found[0], factor * exact[0], rtol=1e-5, atol=1e-7)
    assert float((blind[0] - factor * exact[0]).abs().max()) > 0.05 * float(exact[0].abs().max())
    # Second tokens are compared where at least two texts have one: n of three.
    p = float(POLICY[0].softmax(0)[1])
    chances = {2: 3 * p**2 * (1 - p), 3: p**3}
    each = {n: (n - 1 if scale == "none" else n) * chance for n, chance in chances.items()}
    torch.testing.assert_close(found[1], sum(each.values()) / (SIZE * p) * exact[1], rtol=1e-5, atol=1e-7)


# The weights of steps.

GRID = [1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089]
"""Ten steps of SD3's own grid, to four digits; the last one, to 0, is not trained."""
