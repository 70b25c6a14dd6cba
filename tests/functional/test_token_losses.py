"""Weights of tokens, and what holds for all losses of tokens at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_cases import make_tokens

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError

PROPORTIONAL = {
    "grpo": lambda *a, **k: F.grpo_loss(*a, clip_low=0.2, **k),
    "drpo": lambda *a, **k: F.drpo_loss(*a, epsilon=0.3, **k),
    "dppo": F.dppo_loss,
    "dppo_kl": lambda *a, **k: F.dppo_loss(*a, divergence="kl", threshold=0.05, **k),
}
AGGREGATES = [("token_mean", None), ("sequence_mean", None), ("horizon", 10)]


def weighted(loss, case, aggregate, horizon=None, *, over=None):
    """The loss of `case` as a share of the optimizer step over sequences of lengths `over`."""
    weight, denominator = F.token_weights(case.lengths if over is None else over, aggregate, horizon)
    advantages = case.advantages * weight[case.sequence]
    return loss(case.log_prob, case.old_log_prob, advantages, mask=case.mask, denominator=denominator)


def test_weights_by_hand():
    lengths = torch.tensor([4, 0, 2])
    weight, denominator = F.token_weights(lengths)
    assert weight.tolist() == [1, 1, 1] and denominator == 6
    weight, denominator = F.token_weights(lengths, "sequence_mean")
    assert weight.tolist() == [0.25, 1.0, 0.5] and denominator == 2
    weight, denominator = F.token_weights(lengths, "horizon", 8)
    assert weight.tolist() == [1, 1, 1] and denominator == 16
    for aggregate, horizon in AGGREGATES:
        assert F.token_weights(torch.zeros(3).long(), aggregate, horizon)[1] == 1
        weight, denominator = F.token_weights(lengths, aggregate, horizon)
        assert weight.dtype == torch.float32 and isinstance(denominator, float)


@given(seed=st.integers(0, 1000), masked=st.floats(0, 0.5))
@settings(max_examples=20, deadline=None)
def test_weighted_sums_are_the_means_they_are_named_for(seed, masked):
    case = make_tokens(moved=0.3, masked=masked, seed=seed)
    ratio = (case.log_prob - case.old_log_prob).exp()
    terms = -case.advantages * ratio
    rows = [case.mask & (case.sequence == b) for b in range(4)]
    rows = [row for row in rows if row.any()]
    expected = {
        "token_mean": terms[case.mask].mean(),
        "sequence_mean": torch.stack([terms[row].mean() for row in rows]).mean(),
        "horizon": torch.stack([terms[row].sum() / 10 for row in rows]).mean(),
    }
    for aggregate, horizon in AGGREGATES:
        value, metrics = weighted(
            lambda *a, **k: F.dppo_loss(*a, threshold=2.0, **k), case, aggregate, horizon
        )
        torch.testing.assert_close(value, expected[aggregate])
        _, denominator = F.token_weights(case.lengths, aggregate, horizon)
        token_mean = metrics["ratio_mean"].value * denominator / case.lengths.sum()
        torch.testing.assert_close(token_mean, ratio[case.mask].mean())


@pytest.mark.parametrize("aggregate, horizon", AGGREGATES)
@pytest.mark.parametrize("loss", PROPORTIONAL.values(), ids=PROPORTIONAL)
def test_micro_batches_and_shards_add_up(loss, aggregate, horizon):
    case = make_tokens(moved=0.5, masked=0.3)
    whole, _ = weighted(loss, case, aggregate, horizon)
    lengths = case.lengths
    parts = [case.take(torch.isin(case.sequence, torch.tensor(part))) for part in ([3, 1], [0], [2])]
    values = [weighted(loss, part, aggregate, horizon, over=lengths)[0] for part in parts]
    torch.testing.assert_close(sum(values), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", [*PROPORTIONAL, "gspo"])
def test_ratio_one_gives_the_policy_gradient_of_the_logits(loss):
    case = make_tokens()
    logits = case.logits.clone().requires_grad_()
    scored = F.token_step(logits, token=case.token)
    weight, sequences = F.token_weights(case.lengths, "sequence_mean")
    weight = weight[case.sequence]
    if loss == "gspo":
        value, metrics = F.gspo_loss(scored.log_prob, case.old_log_prob, case.advantages, case.sequence)
    else:
        value, metrics = PROPORTIONAL[loss](
            scored.log_prob, case.old_log_prob, case.advantages * weight, denominator=sequences
        )
    (gradient,) = torch.autograd.grad(value, logits)
    # REINFORCE: the score function of a softmax is one hot minus the probabilities.
    score = torch.nn.functional.one_hot(case.token, 7) - case.logits.softmax(-1)
    expected = -(case.advantages * weight / 4)[:, None] * score
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
    assert metrics["ratio_max_deviation"].value <= 1e-6


def test_a_run_from_the_hidden_states_to_the_loss():
    # Draw, score what was drawn, and train: ratio one, and one gradient for all losses.
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(12, 8, generator=g), torch.randn(50, 8, generator=g)
    seeds = [F.episode_seed(0, "prompt", sample) for sample in range(12)]
    cut = dict(temperature=0.8, top_p=0.9)
    old = F.token_step(hidden @ weight.T, uniform=F.keyed_uniform(seeds, 0), **cut)
    advantages = F.group_advantages(torch.rand(12, generator=g), torch.arange(12) // 4)
    states = hidden.clone().requires_grad_()
    new = F.score_tokens(states, weight, old.token, chunk_bytes=20_000, **cut)
    gradients = []
    for loss in PROPORTIONAL.values():
        value, metrics = loss(new.log_prob, old.log_prob, advantages)
        assert metrics["ratio_max_deviation"].value <= 1e-6
        gradients.append(torch.autograd.grad(value, states, retain_graph=True)[0])
    assert gradients[0].abs().max() > 1e-3
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-7, rtol=1e-5)


def test_refuses():
    lengths = torch.tensor([4, 2])
    with pytest.raises(ConfigError, match="`aggregate`"):
        F.token_weights(lengths, "mean")
    for horizon in (None, 0):
        with pytest.raises(ConfigError, match="`horizon`"):
            F.token_weights(lengths, "horizon", horizon)
    for wrong in (lengths.float(), lengths[None], -lengths):
        with pytest.raises(ShapeError, match="`lengths`"):
            F.token_weights(wrong)
