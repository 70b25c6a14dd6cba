import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    lead=st.sampled_from([(3,), (2, 3)]),
    rest=st.sampled_from([(5,), (7, 3), (4, 4, 4), (2, 3, 4, 4)]),
    scale=st.floats(1e-3, 3.0),
)
def test_kl_against_torch_distributions(lead, rest, scale):
    mean, old = randn(*lead, *rest).double(), randn(*lead, *rest, seed=1).double()
    std = scale * (0.5 + torch.rand(lead, generator=torch.Generator().manual_seed(2)))
    wide = std.double().reshape(*lead, *(1 for _ in rest))
    expected = kl_divergence(Normal(mean, wide), Normal(old, wide)).flatten(len(lead))
    torch.testing.assert_close(F.gaussian_kl(mean, old, std), expected.mean(-1).float(), rtol=1e-4, atol=0)
    total = F.gaussian_kl(mean, old, std, reduction="sum")
    torch.testing.assert_close(total, expected.sum(-1).float(), rtol=1e-4, atol=0)


def test_total_variation_against_integration():
    line = torch.linspace(-10, 10, 40_001, dtype=torch.float64)
    for shift in (0.1, 0.7, 2.0):
        p, q = (Normal(m, 0.8).log_prob(line).exp() for m in (0.0, shift))
        expected = 0.5 * torch.trapezoid((p - q).abs(), line).item()
        tv = F.gaussian_tv(torch.tensor([[shift]]), torch.zeros(1, 1), torch.tensor([0.8]))
        assert tv.item() == pytest.approx(expected, abs=1e-6)


def test_total_variation_by_nats():
    # The numbers of the docstrings: sqrt(2 K) is the distance of the means in standard deviations.
    for nats, expected in ((0.01, 0.06), (0.66, 0.43), (4.0, 0.84)):
        for elements in (1, 100):
            mean = torch.full((1, elements), math.sqrt(2 * nats / elements))
            tv = F.gaussian_tv(mean, torch.zeros_like(mean), torch.ones(1))
            assert tv.item() == pytest.approx(expected, abs=0.005)


def test_half_precision_means_are_widened_before_they_are_subtracted():
    # The difference of two near bfloat16 numbers is exact, that of two far ones is not.
    mean, old = randn(2, 4096).bfloat16(), randn(2, 4096, seed=1).bfloat16()
    std = torch.tensor([0.4, 0.7])
    assert torch.equal(F.gaussian_kl(mean, old, std), F.gaussian_kl(mean.float(), old.float(), std))


def test_small_divergences_are_accurate_in_float32():
    # 1e-6 per element, below Flow-DPPO's usual threshold.
    old, std = randn(1, 65_536), torch.tensor([0.5])
    mean = old + 0.5 * math.sqrt(2e-6) * torch.sign(randn(1, 65_536, seed=1))
    assert F.gaussian_kl(mean, old, std).item() == pytest.approx(1e-6, rel=1e-3)


def test_points():
    mean = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    old = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert F.gaussian_kl(mean, old, torch.zeros(2)).tolist() == [0.0, math.inf]
    assert F.gaussian_tv(mean, old, torch.zeros(2)).tolist() == [0.0, 1.0]


def test_gradient_in_closed_form_and_finite_at_points():
    mean, old, std = randn(2, 5).requires_grad_(), randn(2, 5, seed=1), torch.tensor([0.5, 0.0])
    (gradient,) = torch.autograd.grad(F.gaussian_kl(mean, old, std)[0], mean)
    torch.testing.assert_close(gradient[0], ((mean - old)[0] / 0.25 / 5).detach())
    (gradient,) = torch.autograd.grad(F.gaussian_kl(mean, old, std).sum(), mean)
    assert bool(gradient.isfinite().all())
    assert not F.gaussian_tv(mean, old, std).requires_grad


def test_nats():
    assert F.mean_to_nats(1e-5, 16 * 64 * 64) == pytest.approx(0.655, abs=1e-3)
    assert F.nats_to_mean(F.mean_to_nats(3e-4, 77), 77) == pytest.approx(3e-4)
    mean, old, std = randn(1, 77), randn(1, 77, seed=1), torch.ones(1)
    joint = F.gaussian_kl(mean, old, std, reduction="sum").item()
    assert F.nats_to_mean(joint, 77) == pytest.approx(F.gaussian_kl(mean, old, std).item(), rel=1e-5)
    for convert in (F.nats_to_mean, F.mean_to_nats):
        with pytest.raises(ConfigError, match="num_elements"):
            convert(1.0, 0)


@pytest.mark.parametrize(
    "mean, old, std, word",
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2), "old_mean"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3), "std"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), "std"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor(1.0), "std"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), torch.ones(2), "mean"),
    ],
)
def test_refuses(mean, old, std, word):
    with pytest.raises(ShapeError, match=f"`{word}`"):
        F.gaussian_kl(mean, old, std)
