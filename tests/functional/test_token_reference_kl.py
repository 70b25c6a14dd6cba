import math

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

ESTIMATORS = ("k1", "k2", "k3")


def value_and_gradient(d, estimator, **settings):
    log_prob = torch.tensor([-1.0 + d], requires_grad=estimator != "k1")
    value = F.token_reference_kl(log_prob, torch.tensor([-1.0]), estimator=estimator, **settings)
    if estimator == "k1":
        return value.item(), None
    return value.item(), torch.autograd.grad(value, log_prob)[0].item()


@pytest.mark.parametrize("d", [-2.0, -0.1, 0.0, 0.1, 0.9])
def test_by_hand(d):
    assert value_and_gradient(d, "k1")[0] == pytest.approx(d, abs=1e-6)
    assert value_and_gradient(d, "k2") == pytest.approx((d * d / 2, d), abs=1e-6)
    assert value_and_gradient(d, "k3") == pytest.approx((math.exp(-d) - 1 + d, 1 - math.exp(-d)), abs=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_weight_is_the_ratio_without_gradient_and_is_cut(estimator):
    value, gradient = value_and_gradient(0.5, estimator)
    for log_ratio, bound, expected in (
        (0.3, 20.0, 0.3),
        (-0.3, 20.0, -0.3),
        (9.0, 2.0, 2.0),
        (-1e9, 2.0, -2.0),
    ):
        old = torch.tensor([-0.5 - log_ratio], requires_grad=True)
        found = value_and_gradient(0.5, estimator, old_log_prob=old, max_log_ratio=bound)
        weight = math.exp(expected)
        assert found == pytest.approx((weight * value, weight * gradient), rel=1e-5)


def test_a_loss_of_k1_is_refused_and_a_measurement_is_not():
    log_prob, ref = torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([-1.5, -1.0])
    with pytest.raises(ConfigError, match=r"`estimator`.*'k2'"):
        F.token_reference_kl(log_prob, ref, estimator="k1")
    assert F.token_reference_kl(log_prob.detach(), ref, estimator="k1").item() == pytest.approx(-0.25)
    with torch.no_grad():
        assert F.token_reference_kl(log_prob, ref, estimator="k1").item() == pytest.approx(-0.25)


@pytest.mark.parametrize("itself", [True, False])
def test_what_the_estimators_estimate(itself):
    # Exact expectations over a small vocabulary: each token weighs its probability under whoever sampled.
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(9, generator=g).requires_grad_()
    log_ref, log_other = (torch.randn(9, generator=g).log_softmax(-1) for _ in range(2))
    log_pi = logits.log_softmax(-1)
    log_old = log_pi.detach() if itself else log_other
    kl = (log_pi.exp() * (log_pi - log_ref)).sum()
    reversed_kl = (log_ref.exp() * (log_ref - log_pi)).sum()
    (kl_gradient,) = torch.autograd.grad(kl, logits, retain_graph=True)
    (reversed_gradient,) = torch.autograd.grad(reversed_kl, logits, retain_graph=True)
    settings = dict(old_log_prob=None if itself else log_old, weight=log_old.exp(), denominator=1)
    values, gradients = {}, {}
    for estimator in ("k2", "k3"):
        values[estimator] = F.token_reference_kl(log_pi, log_ref, estimator=estimator, **settings)
        (gradients[estimator],) = torch.autograd.grad(values[estimator], logits, retain_graph=True)
    values["k1"] = F.token_reference_kl(log_pi.detach(), log_ref, estimator="k1", **settings)
    torch.testing.assert_close(values["k1"], kl.detach())
    torch.testing.assert_close(values["k3"], kl)
    torch.testing.assert_close(gradients["k2"], kl_gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients["k3"], reversed_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masks_weights_and_micro_batches(estimator):
    g = torch.Generator().manual_seed(0)
    log_prob, ref, old = (-torch.rand(6, 4, generator=g) for _ in range(3))
    mask = torch.rand(6, 4, generator=g) > 0.4
    weight, denominator = F.token_weights(mask.sum(1), "sequence_mean")
    settings = dict(estimator=estimator, denominator=denominator)
    whole = F.token_reference_kl(log_prob, ref, old_log_prob=old, mask=mask, weight=weight, **settings)
    parts = [
        F.token_reference_kl(
            log_prob[i], ref[i], old_log_prob=old[i], mask=mask[i], weight=weight[i], **settings
        )
        for i in torch.arange(6).split(4)
    ]
    torch.testing.assert_close(sum(parts), whole)
    packed = weight[:, None].expand(6, 4)[mask]
    kept = dict(old_log_prob=old[mask], weight=packed)
    torch.testing.assert_close(F.token_reference_kl(log_prob[mask], ref[mask], **kept, **settings), whole)
    poisoned = log_prob.masked_fill(~mask, math.nan).requires_grad_(estimator != "k1")
    value = F.token_reference_kl(
        poisoned,
        ref.masked_fill(~mask, math.inf),
        old_log_prob=old.masked_fill(~mask, -math.inf),
        mask=mask,
        weight=weight,
        **settings,
    )
    assert torch.equal(value, whole)
    if estimator == "k1":
        return
    (gradient,) = torch.autograd.grad(value, poisoned)
    assert bool(gradient.isfinite().all()) and bool((gradient[~mask] == 0).all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_is_zero_at_the_reference_and_finite_far_from_it(estimator):
    assert value_and_gradient(0.0, estimator)[0] == 0
    for d in (-1e4, 1e4):
        value, gradient = value_and_gradient(d, estimator)
        assert math.isfinite(value) and (estimator == "k1" or math.isfinite(gradient))


def test_the_reference_is_not_trained():
    ref = torch.zeros(3, requires_grad=True)
    assert not F.token_reference_kl(torch.zeros(3), ref).requires_grad


def test_refuses():
    z = torch.zeros(4)
    with pytest.raises(ConfigError, match="`estimator`"):
        F.token_reference_kl(z, z, estimator="k4")
    for bound in (0.0, -1.0, 41.0, math.nan):
        with pytest.raises(ConfigError, match="`max_log_ratio`"):
            F.token_reference_kl(z, z, max_log_ratio=bound)
    for change, word in (
        (dict(ref_log_prob=z[:3]), "ref_log_prob"),
        (dict(old_log_prob=z[:3]), "old_log_prob"),
        (dict(mask=torch.ones(4)), "mask"),
        (dict(weight=torch.ones(3)), "weight"),
        (dict(log_prob=z[None, None]), "log_prob"),
        (dict(denominator=0), "denominator"),
    ):
        with pytest.raises(ShapeError, match=f"`{word}`"):
            F.token_reference_kl(**(dict(log_prob=z, ref_log_prob=z) | change))
