"""What the KL in a loss pulls towards, on texts of two tokens and two choices: everything is enumerated.

A policy is three pairs of logits: of the first token, and of the second after either. Every expectation is a
sum over the four texts, with the probabilities of the policy that sampled as weights.
"""

import math

import pytest
import torch

import unirl_env.functional as F

BETA = 0.2
FIRST, SECOND = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
REWARD = torch.tensor([0.5, 0.5, 0.0, 1.0])
REFERENCE = torch.tensor([[0.95, 0.05], [0.5, 0.5], [0.5, 0.5]]).log()


def tokens(logits):
    """`[4, 2]`: the log-probability of each token of each text."""
    log_prob = logits.log_softmax(-1)
    return torch.stack([log_prob[0, FIRST], log_prob[1 + FIRST, SECOND]], 1)


def chances(logits):
    """`[4]` of the texts."""
    return tokens(logits).detach().sum(1).exp()


def regularised_return(logits):
    """The reward less BETA times the divergence of whole texts: what one would have."""
    gap = (tokens(logits) - tokens(REFERENCE)).sum(1)
    return float((chances(logits) * (REWARD - BETA * gap)).sum())


def divergence(logits, visited):
    """The sum over contexts of KL(policy, reference), each as often as the policy `visited` comes to it."""
    p, ref = logits.double().log_softmax(-1), REFERENCE.double().log_softmax(-1)
    often = torch.cat([torch.ones(1), visited[0].softmax(-1).detach()]).double()
    return (often * (p.exp() * (p - ref)).sum(-1)).sum()


def pull(logits, old, estimator="k2", weighted=True):
    """The expected value of the term and of its gradient, on texts that `old` wrote."""
    logits = logits.clone().requires_grad_()
    value = F.token_reference_kl(
        tokens(logits),
        tokens(REFERENCE),
        old_log_prob=tokens(old) if weighted else None,
        estimator=estimator,
        weight=chances(old),
        denominator=1,
    )
    return value.item(), torch.autograd.grad(value, logits)[0]


def slope(function, logits, step=1e-4):
    """The gradient by central differences."""
    found = torch.zeros_like(logits, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in logits.shape)).tolist():
        move = torch.zeros_like(logits, dtype=torch.float64)
        move[tuple(index)] = step
        found[tuple(index)] = (function(logits.double() + move) - function(logits.double() - move)) / (
            2 * step
        )
    return found.float()


def climb(estimator, steps=240, per_rollout=4, lr=4.0):
    """GRPO without a clip on all texts at once, several optimizer steps for each policy that sampled."""
    logits, trail = REFERENCE.clone(), []
    for number in range(steps):
        if number % per_rollout == 0:
            old = logits
        _, kl_gradient = pull(logits, old, estimator)
        moved = logits.clone().requires_grad_()
        advantages = chances(old) * (REWARD - (chances(old) * REWARD).sum())
        loss, _ = F.grpo_loss(
            tokens(moved), tokens(old), advantages, clip_low=0.999, clip_high=1e6, denominator=1
        )
        logits = logits - lr * (torch.autograd.grad(loss, moved)[0] + BETA * kl_gradient)
        trail.append(regularised_return(logits))
    return logits, trail


POLICIES = [
    torch.tensor(numbers).reshape(3, 2)
    for numbers in ((0.0, 0, 0, 0, 0, 0), (1.0, -1, 0, 2, 1, 0), (-1.5, 1.5, 0.3, -0.3, -2, 2))
]


@pytest.mark.parametrize("old", POLICIES)
@pytest.mark.parametrize("new", POLICIES)
def test_whoever_sampled_k2_has_the_gradient_of_the_divergence_at_the_visited_contexts(new, old):
    exact = slope(lambda logits: divergence(logits, old), new)
    torch.testing.assert_close(pull(new, old)[1], exact, atol=2e-6, rtol=1e-4)
    if not torch.equal(new, old):
        assert float((pull(new, old, weighted=False)[1] - exact).norm() / exact.norm()) > 0.1


@pytest.mark.parametrize("old", POLICIES)
def test_k3_estimates_the_divergence_and_pulls_as_the_reversed_one(old):
    new = POLICIES[1]
    value, gradient = pull(new, old, "k3")
    assert value == pytest.approx(float(divergence(new, old)), rel=1e-5)

    def reversed_divergence(logits):
        p, ref = logits.log_softmax(-1), REFERENCE.double().log_softmax(-1)
        often = torch.cat([torch.ones(1), old[0].softmax(-1)]).double()
        return (often * (ref.exp() * (ref - p)).sum(-1)).sum()

    torch.testing.assert_close(gradient, slope(reversed_divergence, new), atol=2e-6, rtol=1e-4)
    with torch.no_grad():
        measured = F.token_reference_kl(
            tokens(new),
            tokens(REFERENCE),
            old_log_prob=tokens(old),
            estimator="k1",
            weight=chances(old),
            denominator=1,
        )
    assert float(measured) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("old", POLICIES[:2])
def test_after_the_first_step_the_weight_keeps_the_direction(old):
    """Even towards the policy's own contexts, which the term leaves at those that the old policy visited."""
    old = old.clone().requires_grad_()
    (uphill,) = torch.autograd.grad((tokens(old).sum(1).exp() * REWARD).sum(), old)
    old, new = old.detach(), old.detach() + 2.0 * uphill / uphill.norm()
    exact = slope(lambda logits: divergence(logits, new), new).flatten()
    cosines = [
        float(torch.cosine_similarity(pull(new, old, weighted=weighted)[1].flatten(), exact, dim=0))
        for weighted in (True, False)
    ]
    assert cosines[0] >= 0.99 and cosines[1] < 0.88


def test_where_the_loss_leads_and_what_it_misses():
    """k2 ends where each token is best given what follows in reward; k3 elsewhere; the best is above both."""
    second = REFERENCE[1:].softmax(-1) * (REWARD.view(2, 2) / BETA).exp()
    second = second / second.sum(-1, keepdim=True)
    ahead = (second * REWARD.view(2, 2)).sum(-1)
    first = REFERENCE[0].softmax(-1) * (ahead / BETA).exp()
    fixed_point = torch.cat([(first / first.sum())[None], second]).log()
    best = float(BETA * torch.logsumexp(tokens(REFERENCE).sum(1) + REWARD / BETA, 0))

    by_k2, trail = climb("k2")
    torch.testing.assert_close(by_k2.softmax(-1), fixed_point.softmax(-1), atol=5e-3, rtol=0)
    assert trail[-1] == pytest.approx(regularised_return(fixed_point), abs=1e-3)
    assert trail[-1] == pytest.approx(0.536, abs=1e-3)
    _, by_k3 = climb("k3")
    assert by_k3[-1] == pytest.approx(0.484, abs=2e-3)
    # What is left: a token's choice does not see the KL that its successors will pay.
    assert best == pytest.approx(0.5457, abs=1e-4)
    assert math.isclose(regularised_return(REFERENCE), 0.5, abs_tol=1e-6)
