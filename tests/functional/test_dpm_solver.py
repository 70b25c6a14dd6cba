"""DPM-Solver++(2M) against the Gaussian oracle, whose ODE is solved in closed form, and against diffusers."""

import math
from itertools import pairwise

import gaussian_line as line
import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ShapeError

Z = torch.tensor([[-2.0], [-0.5], [0.0], [1.0], [3.0]])


def exact(s):
    """The path of the ODE through Z at sigma 1, float64."""
    s = float(s)
    return (1 - s) * line.M + math.sqrt(line.variance(s)) * Z.double()


def solve(sigmas, *, second=True):
    x, previous = exact(sigmas[0]).float(), None
    for s, s_next in pairwise(sigmas):
        v = line.velocity(x, s)
        if second:
            x, previous = F.dpm2m_step(v, x, s, s_next, previous=previous)
        else:
            x, _ = F.transition(v, x, s, s_next, dynamics="ode")
    return (x.double() - exact(sigmas[-1])).abs().max().item()


def even_in_log_snr(steps):
    return torch.linspace(4.0, -4.0, steps + 1, dtype=torch.float64).sigmoid().float()


def falls(errors):
    return [a / b for a, b in pairwise(errors)]


def test_errors_fall_with_the_square_of_the_step():
    errors = [solve(even_in_log_snr(steps)) for steps in (16, 32, 64)]
    assert errors[-1] > 1e-5  # far above the rounding of float32
    assert all(3.4 < ratio < 4.4 for ratio in falls(errors)), errors
    euler = [solve(even_in_log_snr(steps), second=False) for steps in (16, 32, 64)]
    assert all(1.7 < ratio < 2.3 for ratio in falls(euler)), euler


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_errors_on_the_schedule_of_pictures(shift):
    """From pure noise to the data, where lambda is infinite at both ends."""
    steps = (10, 16, 32, 64, 128, 256)
    errors = [solve(F.flow_sigmas(count, shift)) for count in steps]
    euler = [solve(F.flow_sigmas(count, shift), second=False) for count in steps]
    assert all(a < b / 2 for a, b in zip(errors, euler, strict=True)), (errors, euler)
    assert all(ratio > 2.7 for ratio in falls(errors[3:])), errors
    assert all(1.8 < ratio < 2.2 for ratio in falls(euler[3:])), euler


def test_steps_that_are_eulers_to_the_bit():
    g = torch.Generator().manual_seed(0)
    x, v, before = (torch.randn(4, 3, 5, generator=g) for _ in range(3))

    def step(s, s_next, s_before=None):
        s, s_next = torch.full((4,), s), torch.full((4,), s_next)
        previous = None if s_before is None else F.Prediction(before, torch.full((4,), s_before))
        found, present = F.dpm2m_step(v, x, s, s_next, previous=previous)
        euler, _ = F.transition(v, x, s, s_next, dynamics="ode")
        assert bool(found.isfinite().all())
        torch.testing.assert_close(present.final, x - s[:, None, None] * v)
        assert torch.equal(present.sigma, s)
        return torch.equal(found, euler)

    assert step(1.0, 0.9) and step(0.6, 0.5)  # first steps
    assert step(0.9, 0.8, 1.0)  # after pure noise
    assert step(0.25, 0.0, 0.5)  # to the data
    assert step(1.0, 0.9, 0.25) and step(0.5, 0.4, 0.5)  # a new episode in this row
    assert not step(0.8, 0.7, 0.9)
    last, present = F.dpm2m_step(v, x, 0.25, 0.0, previous=F.Prediction(before, torch.full((4,), 0.5)))
    torch.testing.assert_close(last, x - 0.25 * v)
    torch.testing.assert_close(last, present.final)


def test_a_step_by_hand():
    """s 0.75, 0.5, 0.25: steps of ln 3 in lambda, so that the last term is a quarter of the change of x_0."""
    x, v = torch.tensor([[1.0]]), torch.tensor([[0.4]])
    previous = F.Prediction(torch.tensor([[0.5]]), torch.tensor([0.75]))
    found, present = F.dpm2m_step(v, x, 0.5, 0.25, previous=previous)
    assert present.final.item() == pytest.approx(0.8)
    assert found.item() == pytest.approx((1.0 - 0.25 * 0.4) + 0.5 * 0.5 * (0.8 - 0.5))


def test_rows_at_different_sigmas_are_their_own():
    g = torch.Generator().manual_seed(0)
    x, v, before = (torch.randn(5, 2, 4, 4, generator=g) for _ in range(3))
    s = torch.tensor([1.0, 0.9, 0.5, 0.3, 1.0])
    s_next = torch.tensor([0.9, 0.8, 0.25, 0.0, 0.8])
    s_before = torch.tensor([1.0, 1.0, 0.6, 0.5, 0.2])
    found, _ = F.dpm2m_step(v, x, s, s_next, previous=F.Prediction(before, s_before))
    for i in range(5):
        row = slice(i, i + 1)
        previous = F.Prediction(before[row], s_before[row])
        one, _ = F.dpm2m_step(v[row], x[row], float(s[i]), float(s_next[i]), previous=previous)
        torch.testing.assert_close(one, found[row], rtol=1e-6, atol=1e-6)
    wide, _ = F.dpm2m_step(
        v[None], x[None], s[None], s_next[None], previous=F.Prediction(before[None], s_before[None])
    )
    assert torch.equal(wide[0], found)


def test_half_precision_is_widened():
    x, v = torch.randn(2, 8).bfloat16(), torch.randn(2, 8).bfloat16()
    found, present = F.dpm2m_step(v, x, 0.5, 0.25)
    assert found.dtype == present.final.dtype == torch.float32
    assert torch.equal(present.final, x.float() - 0.5 * v.float())


@pytest.mark.parametrize("steps", [4, 10, 16])
@pytest.mark.parametrize("from_noise", [False, True])
def test_equals_diffusers(steps, from_noise):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        flow_shift=3.0,
        prediction_type="flow_prediction",
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    if from_noise:  # its own grid begins at 0.999 or so
        scheduler.sigmas = F.flow_sigmas(steps)
    sigmas = scheduler.sigmas
    x = theirs = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    previous = None
    for i, timestep in enumerate(scheduler.timesteps):

        def bent(x, s):  # any field that is not linear
            return torch.tanh(2 * x) * (1.5 - s) + torch.sin(3 * s + x)

        theirs = scheduler.step(bent(theirs, sigmas[i]), timestep, theirs).prev_sample
        x, previous = F.dpm2m_step(bent(x, sigmas[i]), x, sigmas[i], sigmas[i + 1], previous=previous)
        assert bool(x.isfinite().all())
    torch.testing.assert_close(x, theirs, rtol=1e-4, atol=2e-5)


def test_what_is_refused():
    x = torch.zeros(2, 3)
    good = F.Prediction(x, torch.tensor([0.9, 0.9]))
    with pytest.raises(ShapeError, match=r"`previous\.final`"):
        F.dpm2m_step(x, x, 0.5, 0.4, previous=good._replace(final=x[:, :2]))
    with pytest.raises(ShapeError, match=r"`previous\.sigma`"):
        F.dpm2m_step(x, x, 0.5, 0.4, previous=good._replace(sigma=torch.tensor([0.9])))
    with pytest.raises(ShapeError, match="`sigma`"):
        F.dpm2m_step(x, x, 0.4, 0.5)
    with pytest.raises(ShapeError, match="`velocity`"):
        F.dpm2m_step(x[:, :2], x, 0.5, 0.4)
