import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ContractError


def one_token(old, new, advantage, **settings_):
    log_prob = torch.tensor([math.log(new)], requires_grad=True)
    value, metrics = F.dppo_loss(
        log_prob, torch.tensor([math.log(old)]), torch.tensor([advantage]), **settings_
    )
    return value.item(), torch.autograd.grad(value, log_prob)[0].item(), metrics


def binary_kl(old, new):
    """In double precision, from log-probabilities."""
    log_rest, new_log_rest = (
        math.log1p(-math.exp(x)) if x < -math.log(2) else math.log(-math.expm1(x)) for x in (old, new)
    )
    return math.exp(old) * (old - new) + math.exp(log_rest) * (log_rest - new_log_rest)


@pytest.mark.parametrize(
    "old, new, advantage, divergence, dropped",
    [
        (0.5, 0.7, 1.0, "tv", True),  # 0.2 > 0.15, moving out
        (0.5, 0.3, -1.0, "tv", True),
        (0.5, 0.3, 1.0, "tv", False),  # moving back
        (0.5, 0.7, -1.0, "tv", False),
        (0.5, 0.6, 1.0, "tv", False),  # inside
        (0.001, 0.1, 1.0, "tv", False),  # a ratio of 100, and a shift of 0.1
        (0.99, 0.75, -1.0, "tv", True),  # a ratio of 0.76, and a shift of 0.24
        (0.5, 0.9, 0.0, "tv", False),
        (0.99, 0.75, -1.0, "kl", True),  # 0.243
        (0.99, 0.75, 1.0, "kl", False),
        (0.5, 0.7, 1.0, "kl", False),  # 0.087
        (0.5, 0.8, 1.0, "kl", True),  # 0.223
    ],
)
def test_mask_by_hand(old, new, advantage, divergence, dropped):
    value, gradient, metrics = one_token(old, new, advantage, divergence=divergence)
    expected = 0.0 if dropped else -advantage * new / old
    assert value == pytest.approx(expected, rel=1e-5) and gradient == pytest.approx(expected, rel=1e-5)
    assert metrics["masked_fraction"].value == float(dropped)
    apart = abs(new - old) if divergence == "tv" else binary_kl(math.log(old), math.log(new))
    assert metrics[divergence].value.item() == pytest.approx(apart, rel=1e-4)
    assert metrics[f"{divergence}_max"].value == metrics[divergence].value


def test_divergence_by_the_published_formula():
    assert binary_kl(math.log(0.99), math.log(0.75)) == pytest.approx(
        0.99 * math.log(0.99 / 0.75) + 0.01 * math.log(0.01 / 0.25)
    )


def test_a_token_at_the_threshold_is_inside():
    old, new = torch.log(torch.tensor([0.5])), torch.log(torch.tensor([0.75]))
    _, metrics = F.dppo_loss(new, old, torch.ones(1))
    apart = metrics["tv"].value.item()
    assert F.dppo_loss(new, old, torch.ones(1), threshold=apart)[1]["masked_fraction"].value == 0
    assert F.dppo_loss(new, old, torch.ones(1), threshold=apart - 1e-6)[1]["masked_fraction"].value == 1


@given(old=st.floats(-30, -(2**-20), width=32), new=st.floats(-30, -(2**-20), width=32))
@settings(max_examples=300, deadline=None)
def test_divergences_in_single_precision_are_those_in_double(old, new):
    log_prob, old_log_prob = torch.tensor([new]), torch.tensor([old])
    _, tv = F.dppo_loss(log_prob, old_log_prob, torch.ones(1))
    shift = abs(math.exp(new) - math.exp(old))
    assert tv["tv"].value.item() == pytest.approx(shift, rel=1e-5, abs=1e-30)
    _, kl = F.dppo_loss(log_prob, old_log_prob, torch.ones(1), divergence="kl")
    assert kl["kl"].value.item() == pytest.approx(binary_kl(old, new), rel=1e-4, abs=1e-6 * shift)


@pytest.mark.parametrize("near", [-1e-3, -0.1, -0.5, -1.0, -5.0])
def test_small_moves_have_the_curvature_of_the_divergence(near):
    # KL = (pi - mu)^2 / (2 mu (1 - mu)) for small moves: no noise of cancellation drowns it.
    old = torch.tensor([near])
    new = old * (1 + 2**-7)
    mu, shift = math.exp(near), math.exp(new.item()) - math.exp(near)
    _, metrics = F.dppo_loss(new, old, torch.ones(1), divergence="kl")
    expected = shift**2 / (2 * mu * -math.expm1(near))
    assert metrics["kl"].value.item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("divergence", ["tv", "kl"])
@pytest.mark.parametrize("old, new", [(0.0, 0.0), (0.0, -1e-7), (-1e-7, 0.0), (-1e-3, 0.0), (0.0, -40.0)])
def test_certain_tokens_give_finite_divergences(divergence, old, new):
    # A likely token's log-probability is exactly 0 in float32, although others are left.
    value, metrics = F.dppo_loss(
        torch.tensor([new]), torch.tensor([old]), -torch.ones(1), divergence=divergence
    )
    assert value.isfinite() and all(metric.isfinite() for metric in (m.value for m in metrics.values()))
    assert metrics["masked_fraction"].value == float(new == -40.0)
    if old == new:
        assert metrics[divergence].value == 0


def test_dropped_tokens_stay_in_the_denominator():
    old = torch.log(torch.tensor([[0.5, 0.5]]))
    new = torch.log(torch.tensor([[0.9, 0.6]]))
    value, metrics = F.dppo_loss(new, old, torch.ones(1, 2))
    assert value.item() == pytest.approx(-1.2 / 2)
    assert metrics["masked_fraction"].value == 0.5 and metrics["tv_max"].value.item() == pytest.approx(0.4)


def test_settings_are_checked():
    z = torch.zeros(2)
    with pytest.raises(ConfigError, match="`threshold`"):
        F.dppo_loss(z, z, z, threshold=0.0)
    with pytest.raises(ConfigError, match="`divergence`"):
        F.dppo_loss(z, z, z, divergence="js")
    with pytest.raises(ContractError, match="`old_log_prob`"):
        F.dppo_loss(z, z + 1, z)
