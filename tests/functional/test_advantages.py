import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

NAN, INF = math.nan, math.inf


def by_group(rewards, group, valid):
    """Indices of the valid members of each group."""
    members = defaultdict(list)
    for i, (r, g, ok) in enumerate(zip(rewards, group, valid, strict=True)):
        if ok and math.isfinite(r):
            members[g].append(i)
    return members


def expected_advantages(rewards, group, valid, scale):
    """The definition, one group at a time, in numpy."""
    members, out = by_group(rewards, group, valid), np.zeros(len(rewards))
    usable = [i for indices in members.values() for i in indices]
    batch_std = np.std([rewards[i] for i in usable]) if usable else 0.0
    for indices in members.values():
        values = np.array([rewards[i] for i in indices])
        if values.max() == values.min():
            continue
        std = {"group": values.std(), "batch": batch_std, "none": 1.0}[scale]
        out[indices] = (values - values.mean()) / max(std, 1e-4)
    return out


def test_by_hand():
    rewards, group = torch.tensor([1.0, 2.0, 3.0, 0.0, 4.0]), torch.tensor([7, 7, 7, -2, -2])
    third = math.sqrt(1.5)
    assert F.group_advantages(rewards, group).tolist() == pytest.approx([-third, 0, third, -1, 1])
    assert F.group_advantages(rewards, group, scale="none").tolist() == pytest.approx([-1, 0, 1, -2, 2])
    root_two = math.sqrt(2.0)  # rewards have mean 2 and variance 2 over the batch
    assert F.group_advantages(rewards, group, scale="batch").tolist() == pytest.approx(
        [-1 / root_two, 0, 1 / root_two, -root_two, root_two]
    )
    assert F.leave_one_out_advantages(rewards, group).tolist() == pytest.approx([-1.5, 0, 1.5, -4, 4])


REWARDS = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0, 1 / 3, 0.1, NAN, INF, -INF]))
EPISODES = st.lists(st.tuples(REWARDS, st.integers(-3, 3), st.booleans()), min_size=1, max_size=24)
SCALES = ["group", "batch", "none"]


@pytest.mark.parametrize("scale", SCALES)
@given(EPISODES)
@settings(max_examples=80, deadline=None)
def test_against_the_definition(scale, episodes):
    rewards, group, valid = (list(column) for column in zip(*episodes, strict=True))
    rewards = np.float32(rewards).tolist()
    advantages = F.group_advantages(
        torch.tensor(rewards), torch.tensor(group), scale=scale, valid=torch.tensor(valid)
    )
    assert advantages.dtype == torch.float32 and advantages.shape == (len(rewards),)
    np.testing.assert_allclose(
        advantages.numpy(), expected_advantages(rewards, group, valid, scale), rtol=1e-4, atol=1e-4
    )
    for indices in by_group(rewards, group, valid).values():
        # Mean zero: up to the rounding of the float32 results, whatever the size of the rewards.
        size = float(advantages[indices].abs().max())
        assert abs(float(advantages[indices].double().sum())) <= 1e-6 * max(1.0, size) * len(indices)
        if len({rewards[i] for i in indices}) == 1:
            assert advantages[indices].tolist() == [0.0] * len(indices)


@given(EPISODES, st.randoms(use_true_random=False), st.sampled_from([*SCALES, "loo", "gdpo"]))
@settings(max_examples=100, deadline=None)
def test_order_and_names_of_groups_do_not_change_a_bit(episodes, random, scale):
    rewards, group, valid = (torch.tensor(column) for column in zip(*episodes, strict=True))
    names = list(range(-3, 4))
    random.shuffle(names)
    renamed = torch.tensor([1000 * names[g + 3] for g in group.tolist()])
    order = torch.tensor(random.sample(range(len(rewards)), len(rewards)))

    def advantages(rewards, group, valid):
        if scale == "loo":
            return F.leave_one_out_advantages(rewards, group, valid)
        if scale == "gdpo":
            return F.gdpo_advantages(torch.stack([rewards, rewards.sin()], 1), group, valid=valid)
        return F.group_advantages(rewards, group, scale=scale, valid=valid)

    straight = advantages(rewards, group, valid)
    assert torch.equal(advantages(rewards[order], renamed[order], valid[order]), straight[order])
    assert bool(straight.isfinite().all())


@pytest.mark.parametrize("size", [8, 12, 16, 24])
def test_groups_of_equal_rationals_get_exactly_zero(size):
    rationals = sorted({a / b for b in range(1, 41) for a in range(b + 1)})
    rewards = torch.tensor(rationals, dtype=torch.float32).repeat_interleave(size)
    group = torch.arange(len(rationals)).repeat_interleave(size)
    # What goes wrong without care: the rounding of the mean, divided by a standard deviation of rounding.
    table = rewards.reshape(-1, size)
    naive = (table - table.mean(1, keepdim=True)) / (table.std(1, correction=0, keepdim=True) + 1e-8)
    assert naive.abs().max() > 0.1
    for scale in SCALES:
        assert torch.equal(F.group_advantages(rewards, group, scale=scale), torch.zeros(len(rewards)))
    assert torch.equal(F.leave_one_out_advantages(rewards, group), torch.zeros(len(rewards)))
    assert torch.equal(
        F.gdpo_advantages(torch.stack([rewards, 1 - rewards], 1), group), torch.zeros(len(rewards))
    )


def test_constant_group_next_to_a_varied_one_stays_zero():
    rewards = torch.tensor([1 / 3] * 12 + [0.0, 1.0])
    group = torch.tensor([0] * 12 + [1] * 2)
    for scale in SCALES:
        advantages = F.group_advantages(rewards, group, scale=scale)
        assert torch.equal(advantages[:12], torch.zeros(12)) and advantages[12:].abs().min() > 0.4
    assert torch.equal(F.gdpo_advantages(rewards[:, None], group)[:12], torch.zeros(12))


def test_constant_group_in_double_precision():
    # Twelve thirds do not add up to four.
    for value in (1 / 3, 0.1, 1e15 / 7):
        rewards, group = torch.full((12,), value, dtype=torch.float64), torch.zeros(12, dtype=torch.long)
        for scale in SCALES:
            assert torch.equal(F.group_advantages(rewards, group, scale=scale), torch.zeros(12))


def test_order_of_addition_does_not_show():
    # Added in the order of the batch, the small numbers would be lost or not.
    rewards = torch.tensor([1e16, 1.0, -1e16, 3.0, -1e16, 5.0, 1e16], dtype=torch.float64)
    group, order = torch.zeros(7, dtype=torch.long), torch.tensor([0, 2, 1, 3, 6, 4, 5])
    straight = F.group_advantages(rewards, group, scale="none")
    assert torch.equal(F.group_advantages(rewards[order], group, scale="none"), straight[order])


@given(st.floats(2**-7, 1.0, width=32), st.integers(2, 24))
@settings(max_examples=50, deadline=None)
def test_rounding_is_never_amplified(value, size):
    # One member is one float32 step away from its siblings.
    rewards = torch.full((size,), value)
    rewards[0] = torch.nextafter(rewards[0], torch.tensor(INF))
    assert F.group_advantages(rewards, torch.zeros(size, dtype=torch.long)).abs().max() < 2e-3


@given(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=16))
@settings(max_examples=50, deadline=None)
def test_shift_and_scale_of_the_rewards_do_not_matter(values):
    rewards, group = torch.tensor(values), torch.zeros(len(values), dtype=torch.long)
    assume(float(rewards.std(correction=0)) > 1e-3)
    base = F.group_advantages(rewards, group)
    torch.testing.assert_close(F.group_advantages(8 * rewards + 32, group), base, atol=2e-3, rtol=1e-3)
    assert base.square().mean().item() == pytest.approx(1.0, rel=1e-5)


def test_large_offset_keeps_mean_zero():
    rewards = 1e6 + torch.tensor([0.0, 1.0, 2.0, 3.0, 7.0])
    advantages = F.group_advantages(rewards, torch.zeros(5, dtype=torch.long))
    expected = F.group_advantages(rewards - 1e6, torch.zeros(5, dtype=torch.long))
    assert torch.equal(advantages, expected)


def test_failed_scores_leave_their_siblings_statistics_alone():
    rewards = torch.tensor([1.0, NAN, 3.0, INF, -5.0, 1.0, 3.0])
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    valid = torch.tensor([True, True, True, True, False, True, True])
    for scale in SCALES:
        advantages = F.group_advantages(rewards, group, scale=scale, valid=valid)
        assert advantages[[1, 3, 4]].tolist() == [0, 0, 0]
        assert torch.equal(advantages[[0, 2]], advantages[[5, 6]])
        assert advantages[0] < 0 < advantages[2]


def test_one_valid_member_is_no_group():
    rewards, group = torch.tensor([1.0, NAN, NAN, 5.0, NAN, NAN]), torch.tensor([0, 0, 0, 1, 2, 2])
    for scale in SCALES:
        assert torch.equal(F.group_advantages(rewards, group, scale=scale), torch.zeros(6))
    assert torch.equal(F.leave_one_out_advantages(rewards, group), torch.zeros(6))
    assert torch.equal(F.gdpo_advantages(rewards[:, None], group), torch.zeros(6))


def test_empty_batch():
    assert F.group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert F.gdpo_advantages(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_clip():
    rewards, group = torch.tensor([0.0] * 15 + [1.0]), torch.zeros(16, dtype=torch.long)
    assert F.group_advantages(rewards, group).max().item() == pytest.approx(math.sqrt(15))
    assert F.group_advantages(rewards, group, clip=2.0).max().item() == 2.0
    with pytest.raises(ConfigError, match="clip"):
        F.group_advantages(rewards, group, clip=0.0)


def test_no_gradient_and_no_change_of_the_input():
    rewards = torch.tensor([0.0, NAN, 1.0], requires_grad=True)
    advantages = F.group_advantages(rewards, torch.zeros(3, dtype=torch.long))
    assert not advantages.requires_grad
    assert rewards[1].isnan()


def test_leave_one_out_is_the_mean_of_the_others():
    rewards = torch.tensor([0.3, 0.9, 0.1, 0.6])
    group = torch.zeros(4, dtype=torch.long)
    expected = [float(rewards[i] - (rewards.sum() - rewards[i]) / 3) for i in range(4)]
    assert F.leave_one_out_advantages(rewards, group).tolist() == pytest.approx(expected, abs=1e-6)


# --- several rewards ---


def test_gdpo_of_one_reward_is_the_group_advantage_over_the_batch_std():
    rewards, group = torch.tensor([1.0, 2.0, 3.0, 0.0, 4.0]), torch.tensor([0, 0, 0, 1, 1])
    advantages = F.gdpo_advantages(rewards[:, None], group)
    torch.testing.assert_close(advantages, F.group_advantages(rewards, group))
    assert torch.equal(advantages, F.gdpo_advantages({"only": rewards}, group))


def test_gdpo_tells_groups_apart_that_a_sum_does_not():
    # One reward varies in group 0 and both in group 1: after adding first, both groups look alike.
    rewards = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    group = torch.tensor([0, 0, 1, 1])
    assert F.group_advantages(rewards.sum(1), group).tolist() == pytest.approx([-1, 1, -1, 1])
    # Before the batch: +-1 and +-2; their standard deviation is sqrt(2.5).
    expected = [-1 / math.sqrt(2.5), 1 / math.sqrt(2.5), -2 / math.sqrt(2.5), 2 / math.sqrt(2.5)]
    assert F.gdpo_advantages(rewards, group).tolist() == pytest.approx(expected)


def test_gdpo_does_not_let_the_largest_scale_decide():
    correct, length = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 100.0, 200.0, 300.0])
    group = torch.zeros(4, dtype=torch.long)
    assert F.group_advantages(correct + length, group)[3] > 0
    rewards = {"correct": correct, "length": length}
    assert F.gdpo_advantages(rewards, group, weights={"length": 0.5, "correct": 1.0})[3] < 0
    assert torch.equal(
        F.gdpo_advantages(rewards, group, weights=[1.0, 0.5]),
        F.gdpo_advantages(torch.stack([correct, length], 1), group, weights=[1.0, 0.5]),
    )


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_gdpo_against_the_definition(width, groups, size, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(groups * size, width, generator=generator)
    group = torch.arange(groups).repeat(size)
    weights = (torch.rand(width, generator=generator) + 0.1).tolist()
    total = sum(
        w * expected_advantages(column.tolist(), group.tolist(), [True] * len(group), "group")
        for w, column in zip(weights, rewards.double().unbind(1), strict=True)
    )
    expected = (total - total.mean()) / max(total.std(), 1e-4)
    advantages = F.gdpo_advantages(rewards, group, weights)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-4)
    sums = torch.zeros(groups, dtype=torch.float64).index_add(0, group, advantages.double())
    assert sums.abs().max() < 1e-5 * size


def test_gdpo_leaves_out_a_sample_with_one_failed_reward():
    rewards = torch.tensor([[0.0, 1.0], [1.0, NAN], [1.0, 0.0], [0.5, 0.2]])
    group = torch.zeros(4, dtype=torch.long)
    advantages = F.gdpo_advantages(rewards, group)
    assert advantages[1] == 0
    kept = torch.tensor([0, 2, 3])
    torch.testing.assert_close(advantages[kept], F.gdpo_advantages(rewards[kept], group[kept]))


@pytest.mark.parametrize(
    "rewards, weights, error, word",
    [
        (torch.zeros(4), None, ShapeError, "rewards"),
        (torch.zeros(4, 2), [1.0], ConfigError, "weights"),
        (torch.zeros(4, 2), {"a": 1.0}, ConfigError, "weights"),
        ({}, None, ShapeError, "rewards"),
        ({"a": torch.zeros(4), "b": torch.zeros(3)}, None, ShapeError, "rewards"),
        ({"a": torch.zeros(4)}, {"b": 1.0}, ConfigError, "weights"),
    ],
)
def test_gdpo_refuses(rewards, weights, error, word):
    with pytest.raises(error, match=word):
        F.gdpo_advantages(rewards, torch.zeros(4, dtype=torch.long), weights)


@pytest.mark.parametrize(
    "changes, error, word",
    [
        (dict(rewards=torch.zeros(2, 2)), ShapeError, "rewards"),
        (dict(rewards=torch.zeros(4).long()), ShapeError, "rewards"),
        (dict(group=torch.zeros(3).long()), ShapeError, "group"),
        (dict(group=torch.zeros(4)), ShapeError, "group"),
        (dict(group=[0, 0, 1, 1]), ShapeError, "group"),
        (dict(valid=torch.ones(4)), ShapeError, "valid"),
        (dict(valid=torch.ones(3, dtype=torch.bool)), ShapeError, "valid"),
        (dict(scale="std"), ConfigError, "scale"),
    ],
)
def test_refuses(changes, error, word):
    arguments = dict(rewards=torch.zeros(4), group=torch.zeros(4).long()) | changes
    with pytest.raises(error, match=f"`{word}`"):
        F.group_advantages(**arguments)
