import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

SIGMAS = F.flow_sigmas(10, 3.0)
SIGMA_MAX = float(SIGMAS[1])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def closed_form(v, x, s, s_next, dynamics, eta, sigma_max):
    """The reverse-time SDE by its score, one number at a time, in float64."""
    delta = s - s_next
    if dynamics == "cps":
        std = s_next * math.sin(eta * math.pi / 2)
        data, noise = x - s * v, x + (1 - s) * v
        return data * (1 - s_next) + noise * math.sqrt(s_next**2 - std**2), std
    if dynamics == "ddim":
        a, a_next = ((1 - each) ** 2 / (each**2 + (1 - each) ** 2) for each in (s, s_next))
        std = eta * s_next * math.sqrt((1 - a / a_next) / (1 - a))
        data, noise = x - s * v, x + (1 - s) * v
        return data * (1 - s_next) + noise * math.sqrt(s_next**2 - std**2), std
    level = sigma_max if s == 1.0 else s
    g = eta if dynamics == "dance" else eta * math.sqrt(s / (1 - level))
    score = -(x + (1 - s) * v) / s  # -noise / sigma
    return x - (v - 0.5 * g**2 * score) * delta, g * math.sqrt(delta)


@pytest.mark.parametrize("dynamics", ["flow", "dance", "cps", "ddim"])
@pytest.mark.parametrize("step", range(9))
def test_against_the_closed_form(dynamics, step):
    x, v = randn(3, 4, 5, 5), randn(3, 4, 5, 5, seed=1)
    mean, std = F.transition(v, x, SIGMAS[step], SIGMAS[step + 1], dynamics=dynamics, sigma_max=SIGMA_MAX)
    expected_mean, expected_std = closed_form(
        v.double().numpy(),
        x.double().numpy(),
        float(SIGMAS[step]),
        float(SIGMAS[step + 1]),
        dynamics,
        0.7,
        SIGMA_MAX,
    )
    np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=0, atol=3e-6)
    np.testing.assert_allclose(std.numpy(), np.full(3, expected_std), rtol=1e-5)


@pytest.mark.parametrize("step, expected", [(0, 0.7000), (2, 0.5317), (4, 0.3877)])
def test_std_of_the_flow_kernel(step, expected):
    # At the first step 1 - sigma is taken at sigmas[1]; a clamp at 0.99 would give 1.3229.
    x = torch.zeros(1, 2)
    _, std = F.transition(x, x, SIGMAS[step], SIGMAS[step + 1], eta=0.7, sigma_max=SIGMA_MAX)
    assert std.item() == pytest.approx(expected, abs=5e-5)


def test_sigma_max_defaults_to_the_next_sigma_at_sigma_one():
    x, v = randn(2, 8), randn(2, 8, seed=1)
    default = F.transition(v, x, 1.0, SIGMAS[1])
    explicit = F.transition(v, x, 1.0, SIGMAS[1], sigma_max=SIGMA_MAX)
    assert torch.equal(default[0], explicit[0]) and torch.equal(default[1], explicit[1])


def test_schedule_that_starts_just_below_one_is_not_singular():
    x = torch.zeros(1, 2)
    exact = F.transition(x, x, 1.0, 0.96)[1]
    for start in (1 - 6e-8, 1 - 1e-6, 1 - 5e-5):
        torch.testing.assert_close(F.transition(x, x, start, 0.96)[1], exact, rtol=1e-3, atol=0)
        torch.testing.assert_close(
            F.transition(x, x, start, 0.96, sigma_max=0.96)[1], exact, rtol=1e-3, atol=0
        )
    sanas = F.transition(x, x, 0.99967, 0.96)[1]
    torch.testing.assert_close(sanas, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dynamics", ["flow", "dance", "cps", "ddim", "ode"])
@pytest.mark.parametrize(
    "settings_", [dict(eta=0.0), dict(eta=0.7, stochastic=torch.zeros(3, dtype=torch.bool))]
)
def test_without_noise_it_is_exactly_the_euler_step(dynamics, settings_):
    x, v = randn(3, 4, 6, 6), randn(3, 4, 6, 6, seed=1)
    for step in range(10):
        s, s_next = SIGMAS[step], SIGMAS[step + 1]
        mean, std = F.transition(v, x, s, s_next, dynamics=dynamics, **settings_)
        assert torch.equal(mean, x + (s_next - s) * v)
        assert torch.equal(std, torch.zeros(3))


def test_euler_step_of_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 10))
    theirs = ours = randn(2, 3, 4, 4)
    for step, time in enumerate(scheduler.timesteps):
        v = randn(2, 3, 4, 4, seed=step + 1)
        theirs = scheduler.step(v, time, theirs).prev_sample
        ours, _ = F.transition(v, ours, scheduler.sigmas[step], scheduler.sigmas[step + 1], eta=0.0)
        assert torch.equal(ours, theirs)


def test_stochastic_is_told_per_row():
    x, v = randn(4, 6), randn(4, 6, seed=1)
    rows = torch.tensor([True, False, True, False])
    mean, std = F.transition(v, x, 0.75, 0.5, stochastic=rows)
    noisy, euler = F.transition(v, x, 0.75, 0.5), F.transition(v, x, 0.75, 0.5, dynamics="ode")
    assert torch.equal(mean, torch.where(rows[:, None], noisy[0], euler[0]))
    assert torch.equal(std, torch.where(rows, noisy[1], 0.0))


def test_last_step():
    x, v = randn(1, 5), randn(1, 5, seed=1)
    flow = F.transition(v, x, 0.25, 0.0)
    assert flow[1].item() == pytest.approx(0.7 * math.sqrt(0.25 / 0.75) * math.sqrt(0.25), rel=1e-6)
    cps = F.transition(v, x, 0.25, 0.0, dynamics="cps")
    assert cps[1].item() == 0.0
    assert torch.equal(cps[0], x - 0.25 * v)  # the predicted data


def test_one_step_schedule_is_finite():
    x, v = randn(2, 5), randn(2, 5, seed=1)
    for dynamics in ("flow", "dance", "cps", "ddim", "ode"):
        mean, std = F.transition(v, x, 1.0, 0.0, dynamics=dynamics)
        assert bool(mean.isfinite().all()) and bool(std.isfinite().all())


def test_padded_rows_without_a_step_stand_still():
    x, v = randn(2, 5), randn(2, 5, seed=1)
    for dynamics in ("flow", "dance", "cps", "ddim", "ode"):
        mean, std = F.transition(v, x, torch.tensor([0.5, 0.0]), torch.tensor([0.25, 0.0]), dynamics=dynamics)
        assert torch.equal(mean[1], x[1]) and std[1] == 0.0


@settings(max_examples=40, deadline=None)
@given(
    lead=st.sampled_from([(3,), (2, 4), (1, 1)]),
    rest=st.sampled_from([(5,), (7, 3), (4, 4, 4), (2, 3, 4, 4)]),
    dynamics=st.sampled_from(["flow", "dance", "cps", "ddim", "ode"]),
    data=st.data(),
)
def test_every_rank_agrees_row_by_row(lead, rest, dynamics, data):
    x, v = randn(*lead, *rest), randn(*lead, *rest, seed=1)
    count = math.prod(lead)
    steps = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)))
    s, s_next = SIGMAS[steps].reshape(lead), SIGMAS[steps + 1].reshape(lead)
    mean, std = F.transition(v, x, s, s_next, dynamics=dynamics, sigma_max=SIGMA_MAX)
    assert mean.shape == x.shape and std.shape == lead
    rows = zip(x.flatten(0, len(lead) - 1), v.flatten(0, len(lead) - 1), steps.tolist(), strict=True)
    for i, (x_i, v_i, step) in enumerate(rows):
        mean_i, std_i = F.transition(
            v_i[None], x_i[None], SIGMAS[step], SIGMAS[step + 1], dynamics=dynamics, sigma_max=SIGMA_MAX
        )
        assert torch.equal(mean.flatten(0, len(lead) - 1)[i], mean_i[0])
        assert torch.equal(std.flatten()[i], std_i[0])


def test_packed_latents_whose_batch_equals_the_steps_take_their_own_sigma():
    # [B, S, L, D] with B = S is where a kernel shaped for images takes another row's sigma without an error.
    x, v = randn(3, 3, 5, 2), randn(3, 3, 5, 2, seed=1)
    s, s_next = SIGMAS[None, 1:4].expand(3, 3), SIGMAS[None, 2:5].expand(3, 3)
    _, std = F.transition(v, x, s, s_next)
    for step in range(3):
        expected = F.transition(v[:, step], x[:, step], SIGMAS[step + 1], SIGMAS[step + 2])[1]
        assert torch.equal(std[:, step], expected)


def test_half_precision_inputs_are_widened_first():
    x, v = randn(2, 64).bfloat16(), randn(2, 64, seed=1).bfloat16()
    mean, std = F.transition(v, x, 0.75, 0.6667)
    wide, _ = F.transition(v.float(), x.float(), 0.75, 0.6667)
    assert mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean, wide)


def test_gradient_reaches_the_velocity_alone_by_its_coefficient():
    x, v = randn(1, 6), randn(1, 6, seed=1).requires_grad_()
    mean, std = F.transition(v, x, 0.75, 0.5)
    (gradient,) = torch.autograd.grad(mean.sum(), v)
    half = 0.7**2 / (2 * 0.25)
    torch.testing.assert_close(gradient, torch.full((1, 6), -(1 + half * 0.25) * 0.25))
    assert not std.requires_grad


def exact_velocity(x, s, mean, var):
    """The marginal velocity of x_t = (1 - s) x_0 + s noise for one-dimensional Gaussian data."""
    total = (1 - s) ** 2 * var + s**2
    residual = (x - (1 - s) * mean) / total
    data = mean + (1 - s) * var * residual
    noise = s * residual
    return noise - data


@pytest.mark.parametrize("start", [0.9, 1.0])
@pytest.mark.parametrize("dynamics, eta", [("ode", 0.0), ("flow", 0.7), ("flow", 0.3), ("dance", 0.7)])
def test_has_the_marginals_of_a_gaussian_in_small_steps_but_for_the_first(dynamics, eta, start):
    data_mean, data_var, paths, steps = 1.5, 0.36, 40_000, 250
    sigmas = start * F.flow_sigmas(steps, 1.0)
    generator = torch.Generator().manual_seed(7)

    def marginal(s):
        return (1 - s) * data_mean, (1 - s) ** 2 * data_var + s**2

    mean, var = marginal(sigmas[0])
    x = mean + var.sqrt() * torch.randn(1, paths, generator=generator)
    for step in range(steps):
        s, s_next = sigmas[step], sigmas[step + 1]
        velocity = exact_velocity(x, s, data_mean, data_var)
        mean, std = F.transition(velocity, x, s, s_next, dynamics=dynamics, eta=eta)
        x = mean + std[:, None] * torch.randn(1, paths, generator=generator)
        # From pure noise the flow kernel's first steps overshoot at any step size (g^2 D stays at eta^2); the
        # excess has died away at the data.
        if step + 1 in ((50, 125, 200, 250) if start < 1 else (250,)):
            true_mean, true_var = marginal(s_next)
            # Four standard errors, and one percent for the finite steps.
            assert abs(x.mean() - true_mean) < 4 * (true_var / paths) ** 0.5 + 0.01 * data_mean
            assert abs(x.var() / true_var - 1) < 4 * (2 / paths) ** 0.5 + 0.01


def test_cps_keeps_the_coefficients_of_data_and_noise():
    data, noise, fresh = (randn(1, 1000, seed=i) for i in range(3))
    s, s_next, eta = 0.8, 0.6, 0.5
    x, v = (1 - s) * data + s * noise, noise - data
    mean, std = F.transition(v, x, s, s_next, dynamics="cps", eta=eta)
    old = math.sqrt(s_next**2 - std.item() ** 2)
    torch.testing.assert_close(mean, (1 - s_next) * data + old * noise, atol=1e-6, rtol=1e-5)
    residual = mean + std * fresh - (1 - s_next) * data
    assert residual.var().item() == pytest.approx(s_next**2, rel=0.15)


@pytest.mark.parametrize(
    "settings_, word",
    [
        (dict(dynamics="brownian"), "dynamics"),
        (dict(dynamics="ddim", eta=1.2), "eta"),
        (dict(eta=-0.1), "eta"),
        (dict(eta=1e-6), "eta"),
        (dict(eta=math.nan), "eta"),
        (dict(dynamics="cps", eta=1.2), "eta"),
        (dict(sigma_max=1.0), "sigma_max"),
        (dict(sigma_max=0.0), "sigma_max"),
    ],
)
def test_refuses_settings(settings_, word):
    x = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=f"`{word}`"):
        F.transition(x, x, 0.75, 0.5, **settings_)


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(velocity=torch.zeros(2, 4)), "velocity"),
        (dict(velocity=torch.zeros(2, 3, dtype=torch.int64)), "velocity"),
        (dict(latent=[[0.0]]), "latent"),
        (dict(sigma=torch.full((3,), 0.75)), "sigma"),
        (dict(sigma=torch.full((2, 3), 0.75)), "latent"),
        (dict(sigma=0.5, sigma_next=0.75), "sigma"),
        (dict(sigma=1.5), "sigma"),
        (dict(sigma_next=-0.1), "sigma"),
        (dict(sigma=math.nan), "sigma"),
        (dict(stochastic=torch.ones(2)), "stochastic"),
        (dict(stochastic=torch.ones(3, dtype=torch.bool)), "stochastic"),
        (dict(stochastic=True), "stochastic"),
    ],
)
def test_refuses_shapes(changes, word):
    arguments = (
        dict(velocity=torch.zeros(2, 3), latent=torch.zeros(2, 3), sigma=0.75, sigma_next=0.5) | changes
    )
    with pytest.raises(ShapeError, match=f"`{word}`"):
        F.transition(**arguments)
