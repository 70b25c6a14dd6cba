import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_cases import make_tokens

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ContractError, ShapeError


def gspo(case, log_prob=None, **kwargs):
    log_prob = case.log_prob if log_prob is None else log_prob
    return F.gspo_loss(log_prob, case.old_log_prob, case.advantages, case.sequence, **kwargs)


def gradient_of(case, **kwargs):
    log_prob = case.log_prob.detach().requires_grad_()
    value, metrics = gspo(case, log_prob, **kwargs)
    return value.detach(), torch.autograd.grad(value, log_prob)[0], metrics


def test_by_hand():
    # Two sequences, of two tokens and of one; the first one's ratio is exp(0.2), clipped at 1.1.
    log_prob = torch.tensor([0.1, 0.5, 0.3], requires_grad=True)
    arguments = (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([4, -7, 4]))
    value, metrics = F.gspo_loss(log_prob, *arguments, clip_low=0.1, clip_high=0.1)
    assert value.item() == pytest.approx((-1.1 + math.exp(0.5)) / 2)
    gradient = torch.autograd.grad(value, log_prob)[0]
    torch.testing.assert_close(gradient, torch.tensor([0.0, math.exp(0.5) / 2, 0.0]))
    assert metrics["clip_fraction"].value == 0.5
    assert metrics["ratio_mean"].value.item() == pytest.approx((math.exp(0.2) + math.exp(0.5)) / 2)
    assert metrics["approx_kl"].value.item() == pytest.approx(-(0.2 + 0.5) / 2)
    value, _ = F.gspo_loss(log_prob, *arguments, clip_low=0.1, clip_high=0.5)
    gradient = torch.autograd.grad(value, log_prob)[0]
    expected = torch.tensor([-math.exp(0.2) / 4, math.exp(0.5) / 2, -math.exp(0.2) / 4])
    torch.testing.assert_close(gradient, expected)


@given(seed=st.integers(0, 1000), moved=st.floats(0, 0.5), masked=st.floats(0, 0.6))
@settings(max_examples=30, deadline=None)
def test_against_the_definition(seed, moved, masked):
    case = make_tokens(moved=moved, masked=masked, seed=seed)
    total, count = 0.0, 0
    for name in range(4):
        rows = case.mask & (case.sequence == name)
        if rows.any():
            s = math.exp((case.log_prob - case.old_log_prob)[rows].double().mean())
            a = case.advantages[rows][0].item()
            total += max(-a * s, -a * min(max(s, 0.9), 1.2))
            count += 1
    value, _ = gspo(case, clip_low=0.1, clip_high=0.2, mask=case.mask)
    assert value.item() == pytest.approx(total / max(1, count), rel=1e-4, abs=1e-5)


def test_order_and_names_of_sequences_do_not_matter():
    case = make_tokens(moved=0.3, masked=0.3)
    value, gradient, _ = gradient_of(case, mask=case.mask)
    order = torch.randperm(len(case.token), generator=torch.Generator().manual_seed(1))
    other = replace(case, sequence=10**12 - 3 * case.sequence).take(order)
    again, other_gradient, _ = gradient_of(other, mask=other.mask)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(other_gradient, gradient[order])


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[3, 0], [1, 2]], [[2, 1, 0], [3]]])
def test_whole_sequences_in_micro_batches_add_up(parts):
    case = make_tokens(moved=0.3, masked=0.4)
    settings_ = dict(clip_low=0.1, clip_high=0.1)
    whole, gradient, metrics = gradient_of(case, mask=case.mask, **settings_)
    sequences = int((case.lengths > 0).sum())
    total, merged = 0.0, []
    for part in parts:
        rows = torch.isin(case.sequence, torch.tensor(part))
        one = case.take(rows)
        value, part_gradient, part_metrics = gradient_of(
            one, mask=one.mask, denominator=sequences, **settings_
        )
        torch.testing.assert_close(part_gradient, gradient[rows], atol=1e-7, rtol=1e-5)
        total, merged = total + value, [*merged, part_metrics]
    torch.testing.assert_close(total, whole, atol=1e-6, rtol=1e-5)
    for name, value in F.merge_metrics(merged).items():
        torch.testing.assert_close(value.value, metrics[name].value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nothing_leaks_from_masked_tokens(poison):
    case = make_tokens(moved=0.3, masked=0.5)
    clean, clean_gradient, clean_metrics = gradient_of(case, mask=case.mask)
    poisoned = replace(
        case,
        old_log_prob=case.old_log_prob.where(case.mask, poison),
        advantages=case.advantages.where(case.mask, poison),
    )
    log_prob = case.log_prob.where(case.mask, poison).detach().requires_grad_()
    value, metrics = gspo(poisoned, log_prob, mask=case.mask)
    assert torch.equal(value, clean) and metrics == clean_metrics
    assert torch.equal(torch.autograd.grad(value, log_prob)[0], clean_gradient)


def test_a_sequence_without_trained_tokens_counts_nowhere():
    case = make_tokens(moved=0.3)
    mask = case.sequence != 2
    kept = case.take(mask)
    torch.testing.assert_close(gspo(case, mask=mask)[0], gspo(kept)[0])
    value, metrics = gspo(case, mask=torch.zeros_like(mask))
    assert value == 0 and all(metric == 0 for metric in (m.value for m in metrics.values()))


def test_runaway_ratios_stay_finite():
    for shift in (-1e4, 1e4):
        case = make_tokens()
        value, _, metrics = gradient_of(replace(case, old_log_prob=case.old_log_prob + shift))
        assert value.isfinite() and all(metric.isfinite() for metric in (m.value for m in metrics.values()))


def test_refuses():
    case = make_tokens()
    with pytest.raises(ContractError, match="`advantages`"):
        gspo(replace(case, advantages=torch.arange(17.0)))
    with pytest.raises(ShapeError, match="`sequence`"):
        gspo(replace(case, sequence=case.sequence.int()))
    with pytest.raises(ShapeError, match="`sequence`"):
        gspo(replace(case, sequence=case.sequence[:-1]))
    with pytest.raises(ShapeError, match="`log_prob`"):
        gspo(case, case.log_prob[:, None])
    with pytest.raises(ShapeError, match="`mask`"):
        gspo(case, mask=case.mask[:-1])
    with pytest.raises(ShapeError, match="`denominator`"):
        gspo(case, denominator=0)
    with pytest.raises(ConfigError, match="clip_low"):
        gspo(case, clip_low=0.0)
