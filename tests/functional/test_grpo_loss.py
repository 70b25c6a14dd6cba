import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unirl_env.functional as F


def loss_and_gradient(ratio, advantage, **settings_):
    log_prob = torch.tensor([math.log(ratio)], requires_grad=True)
    value, metrics = F.grpo_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), **settings_)
    (gradient,) = torch.autograd.grad(value, log_prob)
    return value.item(), gradient.item(), metrics


@pytest.mark.parametrize(
    "ratio, advantage, value, gradient",
    [
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # clipped at 1 + 0.2
        (0.5, 2.0, -1.0, -1.0),  # a good action that became rarer is always pulled back
        (0.9, -2.0, 1.8, 1.8),
        (0.5, -2.0, 1.6, 0.0),  # clipped at 1 - 0.2
        (1.5, -2.0, 3.0, 3.0),  # a bad action that became likelier is always pushed down
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_by_hand(ratio, advantage, value, gradient):
    got, got_gradient, metrics = loss_and_gradient(ratio, advantage, clip_low=0.2)
    assert got == pytest.approx(value, rel=1e-6)
    assert got_gradient == pytest.approx(gradient, rel=1e-6)
    assert metrics["clip_fraction"].value.item() == float(gradient == 0 and advantage != 0)


@given(
    log_ratio=st.floats(-2, 2, width=32),
    advantage=st.floats(-3, 3, width=32),
    low=st.floats(0.01, 0.9),
    high=st.none() | st.floats(0.01, 2.0),
)
@settings(max_examples=100, deadline=None)
def test_is_the_maximum_of_the_two_surrogates(log_ratio, advantage, low, high):
    log_prob = torch.tensor([log_ratio], dtype=torch.float64)
    value, _ = F.grpo_loss(
        log_prob.float(), torch.zeros(1), torch.tensor([advantage]), clip_low=low, clip_high=high
    )
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - low), 1 + (low if high is None else high))
    assert value.item() == pytest.approx(max(-advantage * ratio, -advantage * clipped), rel=1e-4, abs=1e-5)


def test_clip_higher():
    assert loss_and_gradient(1.25, 1.0, clip_low=0.2, clip_high=0.28)[1] != 0
    assert loss_and_gradient(1.25, 1.0, clip_low=0.2)[1] == 0
    assert loss_and_gradient(1.30, 1.0, clip_low=0.2, clip_high=0.28)[1] == 0


def test_dual_clip_bounds_a_runaway_negative():
    settings_ = dict(clip_low=0.2, dual_clip=3.0)
    assert loss_and_gradient(2.0, -1.0, **settings_)[:2] == pytest.approx((2.0, 2.0))
    value, gradient, metrics = loss_and_gradient(50.0, -1.0, **settings_)
    assert (value, gradient) == pytest.approx((3.0, 0.0))
    assert metrics["clip_fraction"].value == 1
    assert loss_and_gradient(50.0, 1.0, **settings_)[:2] == pytest.approx((-1.2, 0.0))


def test_ranges_of_latents_are_resolved_in_float32():
    # At 1e-5 the border lies a hundred float32 steps from one.
    for inside, outside in ((0.9e-5, 1.1e-5), (-0.9e-5, -1.1e-5)):
        sign = math.copysign(1.0, inside)
        assert loss_and_gradient(math.exp(inside), sign, clip_low=1e-5)[1] != 0
        assert loss_and_gradient(math.exp(outside), sign, clip_low=1e-5)[1] == 0


def test_gradient_at_ratio_one_is_not_halved_by_the_tie_of_the_surrogates():
    for advantage in (1.0, -1.0):
        assert loss_and_gradient(1.0, advantage, clip_low=1e-6)[1] == -advantage


def test_metrics_by_hand():
    log_prob = torch.log(torch.tensor([[1.5, 1.0], [0.5, 0.9]]))
    mask = torch.tensor([[True, True], [True, False]])
    _, metrics = F.grpo_loss(log_prob, torch.zeros(2, 2), torch.tensor([1.0, 1.0]), clip_low=0.2, mask=mask)
    assert metrics["ratio_mean"].value.item() == pytest.approx(1.0)
    assert metrics["ratio_max_deviation"].value.item() == pytest.approx(0.5)
    assert metrics["approx_kl"].value.item() == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 3)
    assert metrics["clip_fraction"].value.item() == pytest.approx(1 / 3)


def test_fixed_horizon_is_a_denominator():
    # Dr. GRPO: the sum over tokens over a constant, so that long answers are not diluted.
    advantages, mask = torch.tensor([1.0, -1.0]), torch.arange(4) < torch.tensor([[4], [1]])
    z = torch.zeros(2, 4)
    value, _ = F.grpo_loss(z, z, advantages, clip_low=0.2, mask=mask, denominator=2 * 4)
    assert value.item() == pytest.approx((-4 + 1) / 8)
