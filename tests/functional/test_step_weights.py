"""Weights of steps: TempFlow's published constant and weights, from the sampler's own kernel."""

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ShapeError

PUBLISHED = [1.575, 1.672, 1.206, 1.003, 0.882, 0.794, 0.718, 0.635, 0.507]
"""2.25 std at the nine trained steps."""


def std_of(sigmas, eta):
    zero = torch.zeros(len(sigmas) - 1, 1)
    _, std = F.transition(zero, zero, sigmas[:-1], sigmas[1:], eta=eta, sigma_max=float(sigmas[1]))
    return std


def test_the_published_constant_is_one_over_the_mean_std_of_one_schedule():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    std = std_of(scheduler.sigmas.float(), eta=0.7)
    trained = torch.arange(10) < 9
    weights = F.step_weights(std, trained)
    assert (weights[0] / std[0]).item() == pytest.approx(2.2522, abs=1e-4)
    assert weights[9] == 0 and weights[trained].mean().item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(weights[:9] * 2.25 / 2.2522, torch.tensor(PUBLISHED), atol=6e-4, rtol=0)
    # Elsewhere the constant is another: in 20 steps, of which each is smaller.
    more = std_of(F.flow_sigmas(20), eta=0.7)
    trained = torch.arange(20) < 19
    assert (F.step_weights(more, trained)[0] / more[0]).item() > 3


def test_paths_have_a_mean_of_their_own_and_deterministic_steps_no_weight():
    std = torch.tensor([[0.2, 0.0, 0.6], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    weights = F.step_weights(std)
    assert weights.dtype == torch.float32 and not weights.requires_grad
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.0, 1.5], [0.0, 0.0, 0.0], [0.5, 1.0, 1.5]]))
    mask = torch.tensor([[True, True, False]] * 3)
    torch.testing.assert_close(
        F.step_weights(std, mask), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2 / 3, 4 / 3, 0.0]])
    )
    assert torch.equal(F.step_weights(std[2]), weights[2])


def test_the_factor_of_guard_has_mean_one():
    sigmas = F.flow_sigmas(10)
    trained = torch.arange(10) < 5
    scale = F.step_weights(1 / (sigmas[:-1] - sigmas[1:]), trained)
    assert scale[:5].mean().item() == pytest.approx(1.0, abs=1e-6)
    ratio = scale[:5] * (sigmas[:-1] - sigmas[1:])[:5]
    torch.testing.assert_close(ratio, ratio[0].expand(5))


def test_masked_values_do_not_matter():
    values = torch.tensor([[1.0, float("inf"), 3.0], [float("nan"), 2.0, 2.0]])
    mask = torch.tensor([[True, False, True], [False, True, True]])
    torch.testing.assert_close(F.step_weights(values, mask), torch.tensor([[0.5, 0.0, 1.5], [0.0, 1.0, 1.0]]))


def test_what_is_refused():
    with pytest.raises(ShapeError, match="`values`"):
        F.step_weights(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="`mask`"):
        F.step_weights(torch.ones(3), torch.ones(2, dtype=torch.bool))
