"""Dynamic programming against closed forms, enumeration of paths, free optimisation and simulation."""

import math
from itertools import pairwise

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.paths import (
    PathPolicy,
    any_policy_optimum,
    gaussian_policy,
    path_grid,
    path_value,
)
from unirl_env.models.gaussian_mixture import (
    GaussianMixture,
    mixture_log_prob,
    mixture_velocity,
    tilted_mixture,
)

MEMORYLESS = math.sqrt(2.0)
TWO = GaussianMixture.of([[-1.0], [1.0]], 0.4, [0.6, 0.4])
ONE = GaussianMixture.of([[0.3]], 0.6)


def policy(mixture, num_steps, *, eta=MEMORYLESS, shift=0.5, grid=None, **options):
    grid = path_grid(8.0, 0.05) if grid is None else grid
    sigmas = F.flow_sigmas(num_steps, shift)
    return PathPolicy.of(lambda x, s: mixture_velocity(x, s, mixture), sigmas, grid=grid, eta=eta, **options)


def numbers(value):
    return [float(number) for number in value[:3]]


@pytest.mark.parametrize("eta", [MEMORYLESS, 0.7])
def test_a_value_is_what_simulation_finds(eta):
    """40 000 walks through `sde_step`, within four standard errors (0.003 to 0.006)."""
    count, num_steps, beta = 40_000, 6, 0.8
    tilted = tilted_mixture(TWO, torch.ones(1), beta).mixture
    reference, mine = policy(TWO, num_steps, eta=eta), policy(tilted, num_steps, eta=eta)
    found = path_value(mine, reference, mine.grid, beta)
    generator = torch.Generator().manual_seed(0)
    x, kl = torch.randn(count, 1, generator=generator), torch.zeros(count)
    for k, (sigma, sigma_next) in enumerate(pairwise(F.flow_sigmas(num_steps, 0.5))):
        options = {"dynamics": "ode" if k == num_steps - 1 else "flow", "eta": eta}
        noise = torch.randn(count, 1, generator=generator)
        step = F.sde_step(mixture_velocity(x, sigma, tilted), x, sigma, sigma_next, noise=noise, **options)
        old, _ = F.transition(mixture_velocity(x, sigma, TWO), x, sigma, sigma_next, **options)
        if k < num_steps - 1:
            kl += F.gaussian_kl(step.mean, old, step.std, reduction="sum")
        x = step.latent
    for exact, samples in ((found.reward, x[:, 0]), (found.kl, kl), (found.objective, x[:, 0] - beta * kl)):
        assert float(exact) == pytest.approx(
            float(samples.mean()), abs=4 * float(samples.std()) / math.sqrt(count)
        )


@pytest.mark.parametrize("eta", [MEMORYLESS, 0.7, 0.3])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_one_gaussian_has_a_closed_form(eta, beta):
    """Means are linear in the state, so the value is: each step moves by slope * std^2 / beta, everywhere."""
    spacing = 0.05 if eta > 0.5 else 0.03
    reference = policy(ONE, 7, eta=eta, grid=path_grid(8.0, spacing))
    slope, constant, reward = 1.0, 0.0, 0.0
    middle = len(reference.grid) // 2
    for mean, std in zip(reference.mean.flip(0), reference.std.flip(0), strict=True):
        at_zero = float(mean[middle])
        constant += slope * at_zero + slope**2 * float(std) ** 2 / (2 * beta)
        reward += slope * at_zero + slope**2 * float(std) ** 2 / beta
        slope *= float(
            (mean[middle + 1] - mean[middle - 1]) / (reference.grid[middle + 1] - reference.grid[middle - 1])
        )
    expected = [constant, reward, (reward - constant) / beta]
    # The means are float32.
    optimum = any_policy_optimum(reference, reference.grid, beta)
    assert numbers(optimum) == pytest.approx(expected, abs=1e-5)
    for future_kl in (True, False):
        best = gaussian_policy(reference, reference.grid, beta, future_kl=future_kl)
        assert numbers(path_value(best, reference, reference.grid, beta)) == pytest.approx(expected, abs=1e-5)


def test_one_step_is_an_integral():
    """T = 1: the log of a mean, for a reward that is not linear."""
    grid = path_grid(16.0, 0.05)
    reference = policy(TWO, 1, grid=grid, stochastic_steps=[0])
    reward, beta = torch.sin(2 * grid) + 0.1 * grid, 0.6
    optimum = any_policy_optimum(reference, reward, beta)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.softmax(-(z**2) / 2, 0)
    for i in (260, 320, 360):
        x = reference.mean[0, i] + reference.std[0] * z
        mean = (weight * torch.exp((torch.sin(2 * x) + 0.1 * x) / beta)).sum()
        assert float(optimum.start[i]) == pytest.approx(float(beta * mean.log()), abs=1e-9)


def test_two_steps_are_the_sum_over_all_paths():
    """T = 2, both stochastic: over all policies the maximum is beta log E[exp(r / beta)], path by path."""
    grid = path_grid(6.0, 0.15)
    reference = policy(TWO, 2, grid=grid, stochastic_steps=[0, 1])
    reward, beta = torch.sin(2 * grid) + 0.1 * grid, 0.6
    optimum = any_policy_optimum(reference, reward, beta)
    steps = []
    for mean, std in zip(reference.mean, reference.std, strict=True):
        density = torch.exp(-(((grid - mean[:, None]) / std) ** 2) / 2)
        steps.append(density / density.sum(1, keepdim=True))
    paths = steps[0][:, :, None] * steps[1][None]
    tilted = paths * torch.exp(reward / beta)
    expected = beta * tilted.sum((1, 2)).log()
    torch.testing.assert_close(optimum.start, expected, atol=1e-9, rtol=1e-9)
    start = torch.exp(-(grid**2) / 2) / torch.exp(-(grid**2) / 2).sum()
    chosen = tilted / tilted.sum((1, 2), keepdim=True)
    assert float(optimum.reward) == pytest.approx(
        float((start[:, None, None] * chosen * reward).sum()), abs=1e-9
    )
    kl = (chosen * (torch.exp(reward / beta) / tilted.sum((1, 2))[:, None, None]).log()).sum((1, 2))
    assert float(optimum.kl) == pytest.approx(float(start @ kl), abs=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_no_free_means_beat_the_gaussian_optimum(num_steps):
    """Gradient ascent of J in the mean of every state comes up to the dynamic programme, and not beyond."""
    grid = path_grid(5.0, 0.1)
    steps = list(range(num_steps))
    reference = policy(TWO, num_steps, grid=grid, stochastic_steps=steps)
    reward, beta = torch.sin(2 * grid) + 0.1 * grid, 0.8
    best = float(path_value(gaussian_policy(reference, reward, beta), reference, reward, beta).objective)
    mean = reference.mean.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([mean], max_iter=100, history_size=20, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -path_value(PathPolicy(grid, mean, reference.std), reference, reward, beta).objective
        value.backward()
        return value

    optimizer.step(loss)
    climbed = -float(loss().detach())
    before = float(path_value(reference, reference, reward, beta).objective)
    assert climbed - before > 0.01
    assert climbed == pytest.approx(best, abs=1e-5)
    assert best <= float(any_policy_optimum(reference, reward, beta).objective)


def test_the_fixed_point_of_the_loss_is_stationary_for_it():
    """Its gradient is zero when the visited states and their weights are held fixed; J's is not."""
    grid = path_grid(6.0, 0.03)
    reference = policy(TWO, 6, grid=grid)
    beta = 0.5
    fixed = gaussian_policy(reference, grid, beta, future_kl=False)
    mean = fixed.mean.clone().requires_grad_()
    moved = PathPolicy(grid, mean, reference.std)
    reward = path_value(moved, reference, grid, beta).reward
    visited, kl = torch.softmax(-(grid**2) / 2, 0), 0.0
    for m, old, std in zip(mean[:-1], reference.mean[:-1], reference.std[:-1], strict=True):
        kl = kl + visited @ ((m - old) / std).square() / 2
        visited = visited @ torch.softmax(-(((grid - m.detach()[:, None]) / std) ** 2) / 2, dim=1)
    of_loss = torch.autograd.grad(reward - beta * kl, mean, retain_graph=True)[0][:-1]
    of_value = torch.autograd.grad(path_value(moved, reference, grid, beta).objective, mean)[0][:-1]
    # Parabolas between grid points leave an error of the order of spacing^2.
    assert float(of_loss.abs().sum()) < 2e-3
    assert float(of_value.abs().sum()) > 0.1
    optimum = path_value(gaussian_policy(reference, grid, beta), reference, grid, beta)
    assert float(path_value(fixed, reference, grid, beta).objective) < float(optimum.objective) - 1e-3


def test_memoryless_noise_leads_to_the_tilted_mixture():
    """With eta = sqrt(2) the best path ends in the tilt, up to an error that falls like 1 / T."""
    beta = 1.0
    tilt = tilted_mixture(TWO, torch.ones(1), beta)
    apart, distance, gaussian = [], [], []
    for num_steps in (10, 20, 40):
        grid = path_grid(6.0, {10: 0.08, 20: 0.05, 40: 0.025}[num_steps])
        reference = policy(TWO, num_steps, grid=grid)
        reward = grid.clone().requires_grad_()
        optimum = any_policy_optimum(reference, reward, beta)
        end = torch.autograd.grad(optimum.objective, reward)[0]
        assert float(end.sum()) == pytest.approx(1.0, abs=1e-6)
        assert float(end @ grid) == pytest.approx(float(optimum.reward.detach()), abs=1e-6)
        wanted = mixture_log_prob(grid[:, None], tilt.mixture.to(torch.float64)).softmax(0)
        apart.append(abs(float(optimum.objective.detach() - tilt.objective)))
        distance.append(float((end - wanted).abs().sum()) / 2)
        best = path_value(gaussian_policy(reference, grid, beta), reference, grid, beta)
        gaussian.append(float(optimum.objective.detach() - best.objective))
    for errors in (apart, distance, gaussian):
        assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2], errors
    assert apart[-1] < 0.004
    assert distance[-1] < 0.02
    # Extrapolated to T = infinity.
    assert 2 * distance[-1] - distance[-2] == pytest.approx(0.0, abs=0.003)


def test_the_tilted_velocity_is_the_best_policy_only_when_memoryless():
    beta = 1.0
    tilted = tilted_mixture(TWO, torch.ones(1), beta).mixture
    lost = {}
    for eta in (MEMORYLESS, 0.7):
        grid = path_grid(7.0, 0.05 if eta > 1 else 0.025)
        reference, mine = policy(TWO, 20, eta=eta, grid=grid), policy(tilted, 20, eta=eta, grid=grid)
        best = path_value(gaussian_policy(reference, grid, beta), reference, grid, beta).objective
        lost[eta] = float(best - path_value(mine, reference, grid, beta).objective)
    assert 0 < lost[MEMORYLESS] < 0.02
    assert lost[0.7] > 0.1


def test_how_much_the_optimum_depends_on_the_first_latent():
    """With eta = sqrt(2) one step leaves a share of 1 / T of it; else its trace falls like T^(-eta^2 / 2)."""
    start = torch.softmax(-path_grid(8.0, 0.05).square() / 2, 0)

    def spread(eta, num_steps):
        value = any_policy_optimum(policy(TWO, num_steps, eta=eta), path_grid(8.0, 0.05), 1.0).start
        return float((start @ value.square() - (start @ value).square()).clamp_min(0).sqrt())

    assert spread(MEMORYLESS, 10) < 0.01
    assert spread(0.7, 10) > 0.2

    def trace(eta, num_steps):
        grid = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        mean = policy(GaussianMixture.of([[0.0]], 1.0), num_steps, eta=eta, shift=1.0, grid=grid).mean
        return float(((mean[:, 1] - mean[:, 0]) / 2).abs().prod())

    for eta in (0.5, 0.7, 1.0):
        assert trace(eta, 1600) / trace(eta, 400) == pytest.approx(4 ** (-(eta**2) / 2), rel=0.02)


def test_small_steps_lead_nowhere_far():
    """What is left out of a step on a fine grid weighs nothing, against sums over the whole grid."""
    grid, beta = path_grid(6.0, 0.02), 0.4
    tilted = tilted_mixture(TWO, torch.ones(1), 1.0).mixture
    reference, mine = policy(TWO, 24, grid=grid), policy(tilted, 24, grid=grid)
    assert 0.03 < float(reference.std[-2]) < 0.06
    paid = torch.sin(2 * grid) + 0.1 * grid
    whole = {"reward": paid, "kl": torch.zeros_like(grid), "value": paid}
    steps = list(zip(mine.mean, reference.mean, mine.std, strict=True))
    for k, (mean, old, std) in enumerate(reversed(steps)):
        if k == 0:  # deterministic: between two points of the grid, linearly
            for name, at in (("reward", mean), ("kl", mean), ("value", old)):
                place = ((at - grid[0]) / 0.02).clamp(0, len(grid) - 1.001)
                left, part = place.floor().long(), place - place.floor()
                whole[name] = whole[name][left] * (1 - part) + whole[name][left + 1] * part
            continue
        chances, before = (torch.softmax(-(((grid - m[:, None]) / std) ** 2) / 2, 1) for m in (mean, old))
        whole["reward"] = chances @ whole["reward"]
        whole["kl"] = chances @ whole["kl"] + ((mean - old) / std) ** 2 / 2
        whole["value"] = beta * torch.log(before @ torch.exp(whole["value"] / beta))
    start = torch.softmax(-(grid**2) / 2, 0)
    found = path_value(mine, reference, paid, beta)
    assert float(found.reward) == pytest.approx(float(start @ whole["reward"]), abs=1e-10)
    assert float(found.kl) == pytest.approx(float(start @ whole["kl"]), abs=1e-10)
    optimum = any_policy_optimum(reference, paid, beta)
    assert float(optimum.objective) == pytest.approx(float(start @ whole["value"]), abs=1e-10)


def test_a_finer_grid_changes_nothing():
    found = []
    for spacing, limit in ((0.05, 8.0), (0.02, 12.0)):
        reference = policy(TWO, 8, grid=path_grid(limit, spacing))
        best = gaussian_policy(reference, reference.grid, 1.0)
        found.append(
            numbers(any_policy_optimum(reference, reference.grid, 1.0))
            + numbers(path_value(best, reference, reference.grid, 1.0))
        )
    assert found[0] == pytest.approx(found[1], abs=2e-4)
    assert found[0][:4] == pytest.approx(found[1][:4], abs=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: any_policy_optimum(r, r.grid[1:], 1.0), ShapeError, "`reward` must be"),
        (lambda r: any_policy_optimum(r, r.grid, 0.0), ConfigError, "`beta` must be positive"),
        (lambda r: gaussian_policy(r, r.grid, -1.0), ConfigError, "`beta` must be positive"),
        (lambda r: path_value(policy(TWO, 3), r, r.grid, 1.0), ShapeError, "one grid"),
        (lambda r: path_value(policy(TWO, 4, eta=1.0), r, r.grid, 1.0), ShapeError, "same stds"),
        (
            lambda r: any_policy_optimum(policy(TWO, 4, eta=0.02), r.grid, 1.0),
            ShapeError,
            "at least as fine as the smallest std",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(policy(TWO, 4))
