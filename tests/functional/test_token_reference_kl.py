import math

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

ESTIMATORS = ("k1", "k2", "k3")


def value_and_gradient(d, estimator):
    log_prob = torch.tensor([-1.0 + d], requires_grad=True)
    value = F.token_reference_kl(log_prob, torch.tensor([-1.0]), estimator=estimator)
    return value.item(), torch.autograd.grad(value, log_prob)[0].item()


@pytest.mark.parametrize("d", [-2.0, -0.1, 0.0, 0.1, 0.9])
def test_by_hand(d):
    assert value_and_gradient(d, "k1") == pytest.approx((d, 1.0), abs=1e-6)
    assert value_and_gradient(d, "k2") == pytest.approx((d * d / 2, d), abs=1e-6)
    assert value_and_gradient(d, "k3") == pytest.approx((math.exp(-d) - 1 + d, 1 - math.exp(-d)), abs=1e-5)


def test_what_the_estimators_estimate():
    # Exact expectations over a small vocabulary: each token weighs its probability under pi.
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(9, generator=g).requires_grad_()
    log_ref = torch.randn(9, generator=g).log_softmax(-1)
    log_pi = logits.log_softmax(-1)
    pi = log_pi.detach().exp()
    kl = (log_pi.exp() * (log_pi - log_ref)).sum()
    reversed_kl = (log_ref.exp() * (log_ref - log_pi)).sum()
    (kl_gradient,) = torch.autograd.grad(kl, logits, retain_graph=True)
    (reversed_gradient,) = torch.autograd.grad(reversed_kl, logits, retain_graph=True)
    values, gradients = {}, {}
    for estimator in ESTIMATORS:
        value = F.token_reference_kl(log_pi, log_ref, estimator=estimator, weight=pi, denominator=1)
        values[estimator] = value
        (gradients[estimator],) = torch.autograd.grad(value, logits, retain_graph=True)
    torch.testing.assert_close(values["k1"], kl)
    torch.testing.assert_close(values["k3"], kl)
    torch.testing.assert_close(gradients["k1"], torch.zeros(9), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients["k2"], kl_gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients["k3"], reversed_gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masks_weights_and_micro_batches(estimator):
    g = torch.Generator().manual_seed(0)
    log_prob, ref = (-torch.rand(6, 4, generator=g) for _ in range(2))
    mask = torch.rand(6, 4, generator=g) > 0.4
    weight, denominator = F.token_weights(mask.sum(1), "sequence_mean")
    settings = dict(estimator=estimator, denominator=denominator)
    whole = F.token_reference_kl(log_prob, ref, mask=mask, weight=weight, **settings)
    parts = [
        F.token_reference_kl(log_prob[i], ref[i], mask=mask[i], weight=weight[i], **settings)
        for i in torch.arange(6).split(4)
    ]
    torch.testing.assert_close(sum(parts), whole)
    packed = weight[:, None].expand(6, 4)[mask]
    torch.testing.assert_close(
        F.token_reference_kl(log_prob[mask], ref[mask], weight=packed, **settings), whole
    )
    poisoned = log_prob.masked_fill(~mask, math.nan).requires_grad_()
    value = F.token_reference_kl(
        poisoned, ref.masked_fill(~mask, math.inf), mask=mask, weight=weight, **settings
    )
    assert torch.equal(value, whole)
    (gradient,) = torch.autograd.grad(value, poisoned)
    assert bool(gradient.isfinite().all()) and bool((gradient[~mask] == 0).all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_is_zero_at_the_reference_and_finite_far_from_it(estimator):
    assert value_and_gradient(0.0, estimator)[0] == 0
    for d in (-1e4, 1e4):
        value, gradient = value_and_gradient(d, estimator)
        assert math.isfinite(value) and math.isfinite(gradient)


def test_the_reference_is_not_trained():
    ref = torch.zeros(3, requires_grad=True)
    assert not F.token_reference_kl(torch.zeros(3), ref).requires_grad


def test_refuses():
    z = torch.zeros(4)
    with pytest.raises(ConfigError, match="`estimator`"):
        F.token_reference_kl(z, z, estimator="k4")
    for change, word in (
        (dict(ref_log_prob=z[:3]), "ref_log_prob"),
        (dict(mask=torch.ones(4)), "mask"),
        (dict(weight=torch.ones(3)), "weight"),
        (dict(log_prob=z[None, None]), "log_prob"),
        (dict(denominator=0), "denominator"),
    ):
        with pytest.raises(ShapeError, match=f"`{word}`"):
            F.token_reference_kl(**(dict(log_prob=z, ref_log_prob=z) | change))
