"""GRPO-Guard: its centred ratio under the old policy, and what its gradient is free of."""

import math
from dataclasses import replace

import pytest
import torch
from loss_cases import make_case

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ContractError, ShapeError


def guard(case, log_prob, **kwargs):
    settings = dict(clip_low=0.02, clip_high=0.03) | kwargs
    return F.guard_loss(
        log_prob, case.old_log_prob, case.mean, case.old_mean, case.std, case.advantages, **settings
    )


def test_against_the_definition():
    case = make_case(moved=0.1)
    scale = 0.5 + torch.rand(6, 3)
    value, metrics = guard(case, case.log_prob, scale=scale)
    total = clipped = apart = 0.0
    centred = []
    for b in range(6):
        for s in range(3):
            std, a = case.std[b, s].item(), case.advantages[b, s].item()
            k = (case.mean[b, s] - case.old_mean[b, s]).double().square().mean().item() / (2 * std**2)
            q = math.exp(std * ((case.log_prob - case.old_log_prob)[b, s].item() + k))
            bound = min(max(q, 0.98), 1.03)
            total += scale[b, s].item() * max(-a * q, -a * bound)
            clipped += (a > 0 and q > 1.03) or (a < 0 and q < 0.98)
            centred.append(q)
            apart += k
    assert 0 < clipped < 18
    assert value.item() == pytest.approx(total / 18, rel=1e-4)
    assert metrics["clip_fraction"].value.item() == pytest.approx(clipped / 18)
    assert metrics["kl"].value.item() == pytest.approx(apart / 18, rel=1e-4)
    assert metrics["centred_ratio_mean"].value.item() == pytest.approx(sum(centred) / 18, rel=1e-5)
    far = max(abs(q - 1) for q in centred)
    assert metrics["centred_ratio_max_deviation"].value.item() == pytest.approx(far, rel=1e-3)


def test_samples_of_the_old_policy_are_centred_without_std():
    """ln q has mean 0 and variance |b|^2 / D^2 at every std; ln r the mean -k and the variance 2 k / D."""
    count, elements = 40_000, 16
    g = torch.Generator().manual_seed(0)
    for std in (0.1, 0.7):
        b = 0.2 * torch.randn(elements, generator=g)
        noise = torch.randn(count, elements, generator=g)
        mean, level = b.expand(count, elements), torch.full((count,), std)

        def log_prob(mean, std=std, noise=noise):
            return -((std * noise - mean) / std).square().mean(1) / 2

        args = (log_prob(mean), log_prob(0 * mean), mean, 0 * mean, level)
        k = (b.square().mean() / (2 * std**2)).item()
        # One at a time, through the loss: A = -1 is never clipped above, and the value is the mean of q.
        value, metrics = F.guard_loss(*args, -torch.ones(count), clip_low=0.99, clip_high=9.0)
        variance = b.square().mean().item() / elements
        error = 4 * math.sqrt(variance / count)
        assert value.item() == pytest.approx(math.exp(variance / 2), abs=error)
        assert metrics["centred_ratio_mean"].value.item() == pytest.approx(value.item(), rel=1e-6)
        square, _ = F.guard_loss(
            torch.cat([args[0]] * 2),
            torch.cat([args[1]] * 2),
            *(torch.cat([each] * 2) for each in args[2:]),
            torch.cat([-torch.ones(count), torch.zeros(count)]),
            clip_low=0.99,
        )
        assert square.item() == pytest.approx(value.item() / 2, rel=1e-5)
        log_q = level * (args[0] - args[1] + k)
        assert log_q.mean().item() == pytest.approx(0.0, abs=error)
        assert log_q.var().item() == pytest.approx(variance, rel=0.03)
        assert metrics["approx_kl"].value.item() == pytest.approx(
            k, abs=4 * math.sqrt(2 * k / elements / count)
        )
        plain = args[0] - args[1]
        assert plain.var().item() == pytest.approx(2 * k / elements, rel=0.03)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_at_ratio_one_the_gradient_is_free_of_std_and_of_the_length_of_a_step(eta):
    """Rows at different steps in one batch: A e (1 + g^2 (1 - s) / 2s) / D for each."""
    g = torch.Generator().manual_seed(0)
    s, s_next = torch.tensor([0.9, 0.8, 0.5, 0.1]), torch.tensor([0.8, 0.5, 0.4, 0.05])
    x, v, noise = (torch.randn(4, 10, generator=g) for _ in range(3))
    a = torch.tensor([1.0, -2.0, 0.5, 3.0])
    old = F.sde_step(v, x, s, s_next, eta=eta, noise=noise)
    velocity = v.clone().requires_grad_()
    new = F.sde_step(velocity, x, s, s_next, eta=eta, next_latent=old.latent)
    loss, metrics = F.guard_loss(
        new.log_prob,
        old.log_prob,
        new.mean,
        old.mean,
        new.std,
        a,
        clip_low=1e-4,
        scale=1 / (s - s_next),
    )
    (gradient,) = torch.autograd.grad(loss, velocity)
    square = eta**2 * s / (1 - s)
    expected = (a * (1 + square * (1 - s) / (2 * s)))[:, None] * noise / 10
    torch.testing.assert_close(gradient, expected / 4, rtol=2e-3, atol=1e-5)
    assert metrics["centred_ratio_max_deviation"].value == 0


def test_the_gradient_flows_through_both_parts_of_the_ratio():
    """It moves the mean along the noise that the old policy drew, wherever the mean is now."""
    case = make_case(moved=0.5)
    mean = case.mean.clone().requires_grad_()
    moved = replace(case, mean=mean)
    value, _ = guard(moved, moved.log_prob, clip_low=0.999, clip_high=1e6)
    (gradient,) = torch.autograd.grad(value, mean)
    noise = (case.action - case.old_mean) / case.std[..., None]
    drift = (case.mean - case.old_mean).double()
    q = (noise * drift).mean(-1, keepdim=True).exp()
    expected = -case.advantages[..., None] * q * noise / 8 / 18
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-3, atol=1e-6)


def test_tempflow_weights_are_guards_gradient_times_the_length_of_the_step():
    case = make_case()
    delta = 0.05 + torch.rand(6, 3)

    def gradient(loss_of):
        mean = case.old_mean.clone().requires_grad_()
        moved = replace(case, mean=mean)
        return torch.autograd.grad(loss_of(moved)[0], mean)[0]

    weights = F.step_weights(case.std)
    factor = (weights / case.std)[..., None]  # 1 / mean(std) of each path
    tempflow = gradient(
        lambda c: F.grpo_loss(c.log_prob, c.old_log_prob, weights * c.advantages, clip_low=1e-4)
    )
    plain = gradient(lambda c: guard(c, c.log_prob))
    scaled = gradient(lambda c: guard(c, c.log_prob, scale=1 / delta))
    torch.testing.assert_close(tempflow, factor * plain)
    torch.testing.assert_close(tempflow, factor * delta[..., None] * scaled, rtol=1e-4, atol=1e-7)


def test_micro_batches_masks_and_poison():
    case = make_case(batch=7, moved=0.1, masked=0.4)
    scale = 0.5 + torch.rand(7, 3)

    def of(case, scale, **kwargs):
        mean = case.mean.detach().clone().requires_grad_()
        moved = replace(case, mean=mean)
        value, metrics = guard(moved, moved.log_prob, scale=scale, mask=case.mask, **kwargs)
        return value.detach(), torch.autograd.grad(value, mean)[0], metrics

    whole, gradient, metrics = of(case, scale)
    total = int(case.mask.sum())
    parts = [of(case.rows(rows), scale[rows], denominator=total) for rows in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), gradient)
    merged = F.merge_metrics([part[2] for part in parts])
    assert merged.keys() == metrics.keys()
    for name in metrics:
        torch.testing.assert_close(merged[name].value, metrics[name].value)
    wide = case.mask[..., None]
    mean = case.mean.where(wide, math.nan).requires_grad_()
    value, _ = F.guard_loss(
        case.log_prob.where(case.mask, math.inf),
        case.old_log_prob.where(case.mask, math.nan),
        mean,
        case.old_mean.where(wide, math.inf),
        case.std.where(case.mask, 0.0),
        case.advantages.where(case.mask, math.nan),
        clip_low=0.02,
        clip_high=0.03,
        scale=scale.where(case.mask, math.inf),
        mask=case.mask,
    )
    torch.testing.assert_close(value.detach(), whole)
    leaked = torch.autograd.grad(value, mean)[0]
    assert torch.equal(leaked[~case.mask], torch.zeros_like(leaked[~case.mask]))


def test_what_is_refused():
    case = make_case()
    with pytest.raises(ShapeError, match="`scale`"):
        guard(case, case.log_prob, scale=torch.ones(6))
    with pytest.raises(ConfigError, match="`clip_low`"):
        guard(case, case.log_prob, clip_low=0.0)
    with pytest.raises(ContractError, match="`std`"):
        guard(replace(case, std=0 * case.std), case.log_prob)
    for change in (
        dict(mean=case.mean[:, :2]),
        dict(old_mean=case.old_mean[..., :4]),
        dict(std=case.std[:, 0]),
    ):
        with pytest.raises(ShapeError):
            guard(replace(case, **change), make_case().log_prob)
