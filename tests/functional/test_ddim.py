"""The kernel `ddim`: diffusers' step, Bayes' posterior, and what many small steps come to."""

import math
from itertools import pairwise

import pytest
import torch

import unirl_env.functional as F

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_is_the_step_of_diffusers(eta, prediction):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, prediction_type=prediction)
    scheduler.set_timesteps(10)
    a = scheduler.alphas_cumprod.double()
    ahead = [*scheduler.timesteps.tolist()[1:], None]
    for time, following in zip(scheduler.timesteps.tolist(), ahead, strict=True):
        sample, output, fresh = (randn(2, 4, 6, 6, seed=seed) for seed in range(3))
        theirs = scheduler.step(output, time, sample, eta=eta, variance_noise=fresh).prev_sample.double()
        now, then = a[time], torch.ones(()).double() if following is None else a[following]
        x_vp, raw = sample.double(), output.double()
        if prediction == "epsilon":
            noise, data = raw, (x_vp - (1 - now).sqrt() * raw) / now.sqrt()
        else:
            noise = now.sqrt() * raw + (1 - now).sqrt() * x_vp
            data = now.sqrt() * x_vp - (1 - now).sqrt() * raw
        wide, wide_next = (each.sqrt() + (1 - each).sqrt() for each in (now, then))
        s, s_next = float((1 - now).sqrt() / wide), float((1 - then).sqrt() / wide_next)
        mean, std = F.transition(
            (noise - data).float(), (x_vp / wide).float(), s, s_next, dynamics="ddim", eta=eta
        )
        ours = (mean + std.view(-1, 1, 1, 1) * fresh) * wide_next
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() <= 2e-6 * scale
        assert (following is None) == bool((std == 0).all())


@pytest.mark.parametrize("s, s_next", [(0.9, 0.8), (0.6, 0.1), (1.0, 0.7), (0.031, 0.03)])
def test_at_eta_one_it_is_the_posterior(s, s_next):
    """Given the data, two noise levels of one path are jointly Gaussian; Bayes says what lies between."""
    data, noise = randn(1, 64).double(), randn(1, 64, seed=1).double()
    x = (1 - s) * data + s * noise
    decay = (1 - s) / (1 - s_next)  # x_s = decay x_s' + what the forward process adds
    added = s**2 - (decay * s_next) ** 2
    var = 1 / (1 / s_next**2 + decay**2 / added)
    expected = var * ((1 - s_next) * data / s_next**2 + decay * x / added)
    mean, std = F.transition((noise - data).float(), x.float(), s, s_next, dynamics="ddim", eta=1.0)
    assert (mean - expected).abs().max() < 2e-6 and std.item() == pytest.approx(math.sqrt(var), rel=2e-4)


@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
def test_data_and_noise_keep_their_coefficients(eta):
    data, noise = randn(3, 8), randn(3, 8, seed=1)
    s, s_next = torch.tensor([1.0, 0.7, 0.2]), torch.tensor([0.8, 0.65, 0.01])
    x = (1 - s)[:, None] * data + s[:, None] * noise
    mean, std = F.transition(noise - data, x, s, s_next, dynamics="ddim", eta=eta)
    old = (s_next**2 - std**2).sqrt()[:, None]
    torch.testing.assert_close(mean, (1 - s_next)[:, None] * data + old * noise, atol=2e-6, rtol=1e-5)


def spread(num_steps, eta, data_std, dynamics="ddim"):
    """The std of what Gaussian data `N(0, data_std^2)` end with under the exact velocity."""
    variance = 1.0
    sigmas = F.flow_sigmas(num_steps)
    for s, s_next in pairwise(sigmas):
        one = torch.ones(1, 1)
        v = ((s - (1 - s) * data_std**2) / ((1 - s) ** 2 * data_std**2 + s**2)) * one
        keep, std = F.transition(v, one, s, s_next, dynamics=dynamics, eta=eta)
        variance = float(keep.double()) ** 2 * variance + float(std.double()) ** 2
    return math.sqrt(variance)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("data_std", [0.2, 1.0])
def test_small_steps_have_the_marginals_of_the_ode(eta, data_std):
    assert spread(2000, eta, data_std) == pytest.approx(data_std, rel=0.01)


def test_small_steps_are_those_of_flow_at_another_eta():
    x, v = randn(1, 32), randn(1, 32, seed=1)
    ddim = F.transition(v, x, 0.6, 0.5999, dynamics="ddim", eta=0.5)
    flow = F.transition(v, x, 0.6, 0.5999, dynamics="flow", eta=0.5 * math.sqrt(2))
    assert ddim[1].item() == pytest.approx(flow[1].item(), rel=1e-3)
    moved, likewise = (ddim[0] - x), (flow[0] - x)
    assert (moved - likewise).abs().max() < 2e-2 * moved.abs().max()
