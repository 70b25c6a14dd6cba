import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

SIGMAS = F.flow_sigmas(10, 3.0)
KERNELS = ["flow", "dance", "cps", "ddim"]
RANKS = [(4, 6, 6), (9, 4), (3, 2, 4, 4)]  # images, packed latents, video


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dynamics", KERNELS)
def test_log_prob_is_the_gaussian_log_density(dynamics):
    x, v, noise = (randn(3, 4, 5, seed=i) for i in range(3))
    step = F.sde_step(v, x, 0.75, 0.6667, dynamics=dynamics, noise=noise)
    density = Normal(step.mean.double(), step.std.double()[:, None, None]).log_prob(step.latent.double())
    torch.testing.assert_close(step.log_prob.double(), density.mean((1, 2)), atol=1e-5, rtol=0)
    total = F.sde_step(v, x, 0.75, 0.6667, dynamics=dynamics, noise=noise, reduction="sum")
    torch.testing.assert_close(total.log_prob.double(), density.sum((1, 2)), atol=2e-4, rtol=0)


@pytest.mark.parametrize("dynamics", KERNELS)
def test_density_integrates_to_one(dynamics):
    # One element: the log-probability is the density over the line, checked without knowing its formula.
    grid = torch.linspace(-8, 8, 8001)[:, None]
    x, v = torch.full_like(grid, 0.3), torch.full_like(grid, -0.8)
    step = F.sde_step(v, x, 0.75, 0.5, dynamics=dynamics, next_latent=grid)
    density = step.log_prob.double().exp()
    line = grid.double()[:, 0]
    assert torch.trapezoid(density, line).item() == pytest.approx(1.0, abs=1e-5)
    assert torch.trapezoid(density * line, line).item() == pytest.approx(step.mean[0].item(), abs=1e-5)


@pytest.mark.parametrize("dynamics", KERNELS)
def test_samples_have_the_mean_and_std_they_are_scored_with(dynamics):
    x, v, noise = torch.full((1, 100_000), 0.3), torch.full((1, 100_000), -0.8), randn(1, 100_000)
    step = F.sde_step(v, x, 0.75, 0.5, dynamics=dynamics, noise=noise)
    assert step.latent.mean().item() == pytest.approx(step.mean[0, 0].item(), abs=4 * step.std.item() / 316)
    assert step.latent.std().item() == pytest.approx(step.std.item(), rel=0.01)


@pytest.mark.parametrize("rest", RANKS)
@pytest.mark.parametrize("dynamics", KERNELS)
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_scoring_what_was_sampled_is_exact(rest, dynamics, storage):
    x, v, noise = (randn(5, *rest, seed=i) for i in range(3))
    x = x.to(storage)
    sampled = F.sde_step(v, x, SIGMAS[2], SIGMAS[3], dynamics=dynamics, noise=noise, storage_dtype=storage)
    assert sampled.latent.dtype == storage
    scored = F.sde_step(
        v, x, SIGMAS[2], SIGMAS[3], dynamics=dynamics, next_latent=sampled.latent, storage_dtype=storage
    )
    for name in F.SDEStep._fields:
        assert torch.equal(getattr(sampled, name), getattr(scored, name)), name


def test_rounding_before_scoring_matters():
    # What the storage round trip is for: scored from the unrounded latent, the ratio would not be one.
    x, v, noise = (randn(2, 400, seed=i) for i in range(3))
    exact = F.sde_step(v, x, 0.75, 0.6667, noise=noise)
    stored = F.sde_step(v, x, 0.75, 0.6667, next_latent=exact.latent.bfloat16())
    assert (exact.log_prob - stored.log_prob).abs().max() > 1e-6
    rounded = F.sde_step(v, x, 0.75, 0.6667, noise=noise, storage_dtype=torch.bfloat16)
    assert torch.equal(rounded.log_prob, stored.log_prob)


def test_storage_defaults_to_the_dtype_of_the_latent():
    x, v, noise = (randn(2, 8, seed=i) for i in range(3))
    assert F.sde_step(v, x.bfloat16(), 0.75, 0.5, noise=noise).latent.dtype == torch.bfloat16
    assert F.sde_step(v.bfloat16(), x, 0.75, 0.5, noise=noise).latent.dtype == torch.float32
    # A given latent keeps the dtype it was stored in.
    kept = F.sde_step(v, x, 0.75, 0.5, next_latent=noise.bfloat16())
    assert kept.latent.dtype == torch.bfloat16


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 4),
    steps=st.integers(1, 4),
    rest=st.sampled_from(RANKS),
    dynamics=st.sampled_from([*KERNELS, "ode"]),
    cut=st.integers(1, 4),
)
def test_sampling_step_by_step_and_scoring_all_steps_at_once(batch, steps, rest, dynamics, cut):
    x, states, actions, velocities, log_probs = randn(batch, *rest), [], [], [], []
    for i in range(steps):
        v, noise = randn(batch, *rest, seed=10 + i), randn(batch, *rest, seed=20 + i)
        step = F.sde_step(
            v, x, SIGMAS[i], SIGMAS[i + 1], dynamics=dynamics, noise=noise, sigma_max=float(SIGMAS[1])
        )
        states, actions = [*states, x], [*actions, step.latent]
        velocities, log_probs = [*velocities, v], [*log_probs, step.log_prob]
        x = step.latent
    sampled = torch.stack(log_probs, 1)
    scored = [
        F.sde_step(
            torch.stack(velocities, 1)[rows],
            torch.stack(states, 1)[rows],
            SIGMAS[:steps].expand(batch, steps)[rows],
            SIGMAS[1 : steps + 1].expand(batch, steps)[rows],
            dynamics=dynamics,
            next_latent=torch.stack(actions, 1)[rows],
            sigma_max=float(SIGMAS[1]),
        ).log_prob
        for rows in torch.arange(batch).split(cut)
    ]
    torch.testing.assert_close(torch.cat(scored), sampled, atol=1e-6, rtol=0)


def test_deterministic_rows():
    x, v, noise = (randn(3, 7, seed=i) for i in range(3))
    rows = torch.tensor([True, False, True])
    step = F.sde_step(v, x, 0.75, 0.5, noise=noise, stochastic=rows)
    euler = x - 0.25 * v
    assert torch.equal(step.latent[1], euler[1])
    assert step.std[1] == 0 and step.log_prob[1] == 0
    full = F.sde_step(v, x, 0.75, 0.5, noise=noise)
    assert torch.equal(step.log_prob[rows], full.log_prob[rows])


@pytest.mark.parametrize(
    "settings_", [dict(eta=0.0), dict(dynamics="ode"), dict(dynamics="cps", sigma_next=0.0)]
)
def test_deterministic_step_needs_no_noise(settings_):
    x, v = randn(2, 7), randn(2, 7, seed=1)
    arguments = dict(sigma=0.75, sigma_next=0.5) | settings_
    step = F.sde_step(v, x, **arguments)
    assert torch.equal(step.latent, x - (0.75 - arguments["sigma_next"]) * v)
    assert torch.equal(step.log_prob, torch.zeros(2)) and torch.equal(step.std, torch.zeros(2))


def test_deterministic_step_has_no_gradient_and_no_nan():
    x, v = randn(2, 7), randn(2, 7, seed=1).requires_grad_()
    step = F.sde_step(v, x, 0.75, 0.5, next_latent=x * 100, stochastic=torch.tensor([True, False]))
    (gradient,) = torch.autograd.grad(step.log_prob.sum(), v)
    assert bool(gradient.isfinite().all())
    assert gradient[0].abs().sum() > 0 and torch.equal(gradient[1], torch.zeros(7))


def test_gradient_of_the_log_prob_in_closed_form():
    x, v, target = randn(2, 7), randn(2, 7, seed=1).requires_grad_(), randn(2, 7, seed=2).requires_grad_()
    step = F.sde_step(v, x, 0.75, 0.5, next_latent=target)
    gradient_v, gradient_target = torch.autograd.grad(step.log_prob.sum(), (v, target), allow_unused=True)
    push = (1 + 0.7**2 / (2 * 0.25) * 0.25) * 0.25
    expected = (target - step.mean) / step.std[:, None] ** 2 / 7 * -push
    torch.testing.assert_close(gradient_v, expected.detach(), atol=1e-6, rtol=1e-5)
    assert gradient_target is None  # the next latent is data


def test_sampled_log_prob_does_not_chase_its_own_sample():
    # With the reparameterised sample inside, the gradient would vanish: x' - mean does not depend on v.
    x, v = randn(2, 7), randn(2, 7, seed=1).requires_grad_()
    step = F.sde_step(v, x, 0.75, 0.5, noise=randn(2, 7, seed=2))
    (gradient,) = torch.autograd.grad(step.log_prob.sum(), v)
    assert gradient.abs().min() > 0


def test_mean_reduction_does_not_depend_on_the_size_of_the_picture():
    x, v, noise = (randn(1, 4, 4, seed=i) for i in range(3))
    small = F.sde_step(v, x, 0.75, 0.5, noise=noise)
    large = F.sde_step(*(t.repeat(1, 8, 8) for t in (v, x)), 0.75, 0.5, noise=noise.repeat(1, 8, 8))
    torch.testing.assert_close(small.log_prob, large.log_prob, atol=1e-6, rtol=0)


def test_default_kernel_and_names():
    x, v, noise = (randn(2, 7, seed=i) for i in range(3))
    latent, log_prob, mean, std = F.sde_step(v, x, 0.75, 0.5, noise=noise)
    explicit = F.sde_step(v, x, 0.75, 0.5, dynamics="flow", eta=0.7, noise=noise)
    assert torch.equal(latent, explicit.latent)
    assert log_prob.shape == std.shape == (2,) and mean.shape == (2, 7)
    assert std[0].item() == pytest.approx(0.7 * math.sqrt(3) * math.sqrt(0.25))


def test_refuses_to_sample_without_noise():
    x = randn(2, 7)
    with pytest.raises(ShapeError, match="`noise`"):
        F.sde_step(x, x, 0.75, 0.5)


def test_refuses_noise_and_next_latent_together():
    x = randn(2, 7)
    with pytest.raises(ConfigError, match="`next_latent` and `noise`"):
        F.sde_step(x, x, 0.75, 0.5, next_latent=x, noise=x)


@pytest.mark.parametrize(
    "changes, error, word",
    [
        (dict(next_latent=torch.zeros(2, 6)), ShapeError, "next_latent"),
        (dict(noise=torch.zeros(1, 7)), ShapeError, "noise"),
        (dict(noise=torch.zeros(2, 7, dtype=torch.int64)), ShapeError, "noise"),
        (dict(noise=torch.zeros(2, 7), reduction="max"), ConfigError, "reduction"),
    ],
)
def test_refuses(changes, error, word):
    x = randn(2, 7)
    with pytest.raises(error, match=f"`{word}`"):
        F.sde_step(x, x, 0.75, 0.5, **changes)
