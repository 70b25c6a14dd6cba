"""Sums over all sequences against a walk through the tree of prefixes, one sequence at a time."""

import math
from itertools import product

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.sequences import (
    all_sequences,
    best_table,
    num_prefixes,
    sequence_log_prob,
    sequence_optimum,
    sequence_value,
)

V, L = 3, 4


def table(seed, vocabulary=V, length=L):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_prefixes(vocabulary, length), vocabulary)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def walk(logits, vocabulary=V, length=L):
    """The probability of every sequence, by its prefixes one after another, in plain Python."""
    order = [prefix for k in range(length) for prefix in product(range(vocabulary), repeat=k)]
    rows = {prefix: torch.softmax(row, 0).tolist() for prefix, row in zip(order, logits, strict=True)}
    return {
        word: math.prod(rows[word[:k]][word[k]] for k in range(length))
        for word in product(range(vocabulary), repeat=length)
    }


def rewards(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(V**L, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("vocabulary", "length"), [(2, 1), (2, 6), (3, 4), (5, 3), (7, 1)])
def test_every_sequence_has_the_probability_of_its_tokens(vocabulary, length):
    logits = table(0, vocabulary, length)
    expected = walk(logits, vocabulary, length)
    words = all_sequences(vocabulary, length)
    assert [tuple(word) for word in words.tolist()] == list(expected)
    found = sequence_log_prob(logits).exp()
    torch.testing.assert_close(found, torch.tensor(list(expected.values()), dtype=torch.float64))
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_value_is_the_sum_over_all_sequences():
    policy, reference, reward, beta = table(0), table(1), rewards(2), 0.3
    chance, old = walk(policy), walk(reference)
    paid = dict(zip(chance, reward.tolist(), strict=True))
    expected = sum(chance[w] * paid[w] for w in chance)
    kl = sum(chance[w] * math.log(chance[w] / old[w]) for w in chance)
    entropy = -sum(chance[w] * math.log(chance[w]) for w in chance)
    found = sequence_value(sequence_log_prob(policy), sequence_log_prob(reference), reward, beta)
    assert [float(number) for number in found] == pytest.approx(
        [expected - beta * kl, expected, kl, entropy], abs=1e-12
    )


@pytest.mark.parametrize("beta", [0.2, 0.5, 5.0])
def test_no_table_beats_the_optimum(beta):
    """Gradient ascent of J in all logits comes up to the closed form, and not beyond."""
    reference, reward = table(1), rewards(2)
    old = sequence_log_prob(reference)
    best, value = sequence_optimum(old, reward, beta)
    assert float(value.objective) == pytest.approx(float(beta * torch.logsumexp(old + reward / beta, 0)))
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        objective = -sequence_value(sequence_log_prob(logits), old, reward, beta).objective
        objective.backward()
        return objective

    optimizer.step(loss)
    assert -float(loss().detach()) == pytest.approx(float(value.objective), abs=1e-7)
    assert -float(loss().detach()) <= float(value.objective) + 1e-12
    torch.testing.assert_close(sequence_log_prob(best_table(reference, reward, beta)), best)


def test_without_a_price_the_best_sequences_are_left():
    reference, reward = sequence_log_prob(table(1)), rewards(2).round(decimals=1)
    best, value = sequence_optimum(reference, reward, 0.0)
    top = reward == reward.max()
    assert float(value.objective) == float(value.reward) == pytest.approx(float(reward.max()))
    assert int(top.sum()) > 1
    torch.testing.assert_close(best.exp()[top], reference[top].softmax(0))
    assert float(best.exp()[~top].sum()) == 0.0
    assert float(value.kl) == pytest.approx(-float(reference[top].logsumexp(0)))


def test_the_fixed_point_of_the_loss_is_stationary_for_it():
    """Its gradient is zero when the visited prefixes are held fixed; J's is not."""
    reference, reward, beta = table(1), rewards(2), 0.2
    fixed = best_table(reference, reward, beta, future_kl=False).requires_grad_()
    old, chance = torch.log_softmax(reference, 1), torch.log_softmax(fixed, 1)
    visited, first = [torch.ones(1, dtype=torch.float64)], 0
    for k in range(L - 1):
        step = chance[first : first + V**k].exp()
        visited.append((visited[-1][:, None] * step).flatten())
        first += V**k
    kl = (torch.cat(visited).detach()[:, None] * chance.exp() * (chance - old)).sum()
    log_prob = sequence_log_prob(fixed)
    expected = (log_prob.exp() * reward).sum()
    of_loss = torch.autograd.grad(expected - beta * kl, fixed, retain_graph=True)[0]
    value = sequence_value(log_prob, sequence_log_prob(reference), reward, beta)
    of_value = torch.autograd.grad(value.objective, fixed)[0]
    assert float(of_loss.abs().max()) < 1e-12
    assert float(of_value.abs().max()) > 1e-3
    _, best = sequence_optimum(sequence_log_prob(reference), reward, beta)
    assert float(value.objective.detach()) < float(best.objective) - 1e-4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sequence_log_prob(torch.zeros(5, 2)), ShapeError, "R = 1 \\+ V"),
        (lambda: sequence_log_prob(torch.zeros(7)), ShapeError, "R = 1 \\+ V"),
        (lambda: sequence_value(torch.zeros(8), torch.zeros(8), torch.zeros(4), 1.0), ShapeError, "same M"),
        (lambda: sequence_value(torch.zeros(8), torch.zeros(8), torch.zeros(8), -1.0), ConfigError, "`beta`"),
        (lambda: best_table(torch.zeros(7, 2), torch.zeros(4), 1.0), ShapeError, "`reward` must be"),
        (lambda: best_table(torch.zeros(7, 2), torch.zeros(8), 0.0), ConfigError, "`beta` must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_the_coefficient_of_the_loss_means():
    """`beta = reference_kl * G / (G - 1)`: the learner's gradient, over all groups of three there can be."""
    size, reference_kl = 3, 0.4
    beta = reference_kl * size / (size - 1)
    logits, reference = table(0, 2, 2).requires_grad_(), table(1, 2, 2)
    reward = torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64)
    words = all_sequences(2, 2)
    rows = torch.stack([torch.zeros(4, dtype=torch.int64), 1 + words[:, 0]], 1)
    new, old = (torch.log_softmax(each, 1)[rows, words].float() for each in (logits, reference))
    log_prob = sequence_log_prob(logits)
    total = torch.zeros(())
    for group in product(range(4), repeat=size):
        chosen = torch.tensor(group)
        advantages = F.group_advantages(reward[chosen].float(), torch.zeros(size).long(), scale="none")
        mine, theirs = new[chosen], old[chosen]
        loss, _ = F.grpo_loss(mine, mine.detach(), advantages, clip_low=0.2)
        loss = loss + reference_kl * F.token_reference_kl(mine, theirs, old_log_prob=mine.detach())
        total = total + log_prob[chosen].sum().exp().detach() * loss
    found = torch.autograd.grad(total, logits, retain_graph=True)[0]
    chance = torch.log_softmax(logits, 1)
    visited = torch.cat([torch.ones(1), chance[0].detach().exp()])[:, None]
    kl = (visited * chance.exp() * (chance - torch.log_softmax(reference, 1))).sum()
    objective = (log_prob.exp() * reward).sum() - beta * kl
    exact = torch.autograd.grad(objective, logits)[0] * (size - 1) / size / words.shape[1]
    torch.testing.assert_close(-found, exact, atol=1e-6, rtol=1e-5)
