"""Exact values and optima of policies that write L tokens out of V, by adding up all V^L sequences.

A policy is a table of logits `[R, V]` with a row for each prefix, `R = 1 + V + ... + V^(L - 1)`: the empty
prefix first, then those of one token, and so on, each length in lexicographic order. Whatever depends on a
whole sequence is `[V^L]`, in lexicographic order, too. The objective is the one that an agent on tokens with
a reference policy climbs,

    J = E[r(sequence)] - beta * KL(policy || reference),

the divergence being that of whole sequences: the expected sum of those at the prefixes. Its maximum over all
policies is reached by the reference times `exp(r / beta)`, normalised, which a table holds exactly.

Conversion to an agent's settings. The learner adds `reference_kl` times a KL that is a mean over the tokens;
its surrogate is a mean over the same tokens. Both are 1 / L of the sums above, so L cancels, and

    beta = reference_kl * scale * G / (G - 1)

as on a line (`unirl_env.functional.paths`). And as there, unless `kl_in="return"`, the gradient of the loss
takes the visited prefixes as given and does not see that a token changes the KL which later tokens will pay:
where it comes to rest is `best_table(..., future_kl=False)`, which is not quite the maximum.

Shapes: R prefixes, V tokens, M = V^L sequences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_floating


class SequenceValue(NamedTuple):
    """What a policy achieves, in units of the reward and in nats.

    Attributes:
        objective: Scalar, J.
        reward: Scalar, the expected reward.
        kl: Scalar, the divergence from the reference.
        entropy: Scalar, of whole sequences.
    """

    objective: Tensor
    reward: Tensor
    kl: Tensor
    entropy: Tensor


def num_prefixes(vocabulary: int, length: int) -> int:
    """R, how many prefixes sequences of `length` tokens have before they are whole."""
    return sum(vocabulary**k for k in range(length))


def all_sequences(vocabulary: int, length: int) -> Tensor:
    """Every sequence, `[M, L]` int64 in lexicographic order."""
    code = torch.arange(vocabulary**length)
    place = vocabulary ** torch.arange(length - 1, -1, -1)
    return code[:, None] // place % vocabulary


def sequence_log_prob(logits: Tensor) -> Tensor:
    """The log-probability of every sequence, `[M]` in the dtype of `logits` `[R, V]`, with gradient.

    Raises:
        ShapeError: R is not the number of prefixes of any length.
    """
    length, vocabulary = _length(logits), logits.shape[1]
    log_probs, found, first = torch.log_softmax(logits, 1), logits.new_zeros(1), 0
    for k in range(length):
        step = log_probs[first : first + vocabulary**k]
        found, first = (found[:, None] + step).flatten(), first + vocabulary**k
    return found


def sequence_value(log_prob: Tensor, reference: Tensor, reward: Tensor, beta: float) -> SequenceValue:
    """The exact value of a policy.

    Args:
        log_prob: `[M]` of every sequence under the policy, with gradient if wanted.
        reference: `[M]`, likewise under the reference.
        reward: `[M]`.
        beta: Price of a nat, at least 0.

    Raises:
        ShapeError: The three are not of the same sequences.
        ConfigError: `beta` is negative.
    """
    if not log_prob.shape == reference.shape == reward.shape or reward.ndim != 1:
        shapes = [list(each.shape) for each in (log_prob, reference, reward)]
        raise ShapeError(f"`log_prob`, `reference` and `reward` must be of the same M, got {shapes}.")
    if not beta >= 0:
        raise ConfigError(f"`beta` must be at least 0, got {beta}; try 0.1.")
    chance = log_prob.exp()
    expected = (chance * reward).sum()
    kl = (chance * (log_prob - reference)).sum()
    return SequenceValue(expected - beta * kl, expected, kl, -(chance * log_prob).sum())


def sequence_optimum(reference: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, SequenceValue]:
    """The maximum of J over all policies: an upper bound for every agent, and where it lies.

    Args:
        reference: `[M]` log-probabilities.
        reward: `[M]`.
        beta: Price of a nat, at least 0. At 0 only the best sequences are left, as the reference weighs them.

    Returns:
        The log-probabilities `[M]` of the best policy, and its value.

    Raises:
        ShapeError: The two are not of the same sequences.
        ConfigError: `beta` is negative.
    """
    if beta > 0:
        best = torch.log_softmax(reference + reward / beta, 0)
    else:
        # Not -inf, of which 0 times it is no number.
        lowest = torch.finfo(reference.dtype).min / 4
        best = torch.log_softmax(torch.where(reward == reward.max(), reference, lowest), 0)
    return best, sequence_value(best, reference, reward, beta)


def best_table(reference: Tensor, reward: Tensor, beta: float, *, future_kl: bool = True) -> Tensor:
    """The best policy as a table, backwards from whole sequences to the empty prefix.

    Args:
        reference: Logits `[R, V]` of the reference.
        reward: `[M]`.
        beta: Price of a nat, positive.
        future_kl: True maximises J. False leaves out of each token's decision what the later ones will pay:
            the fixed point of a loss that adds the KL at the visited prefixes (see the module's text).

    Returns:
        Logits `[R, V]`, normalised.

    Raises:
        ShapeError: The reward is not of the table's sequences.
        ConfigError: `beta` is not positive.
    """
    length, vocabulary = _length(reference), reference.shape[1]
    if reward.shape != (vocabulary**length,):
        raise ShapeError(f"`reward` must be [{vocabulary**length}], got {list(reward.shape)}.")
    if not beta > 0:
        raise ConfigError(f"`beta` must be positive, got {beta}; without a price the optimum has no table.")
    old, ahead, rows = torch.log_softmax(reference, 1), reward, []
    end = len(reference)
    for k in range(length - 1, -1, -1):
        first, ahead = end - vocabulary**k, ahead.view(-1, vocabulary)
        tilted = old[first:end] + ahead / beta
        rows.append(torch.log_softmax(tilted, 1))
        ahead = beta * torch.logsumexp(tilted, 1) if future_kl else (rows[-1].exp() * ahead).sum(1)
        end = first
    return torch.cat(rows[::-1])


def _length(logits: Tensor) -> int:
    """L, of a table."""
    require_floating("logits", logits)
    if logits.ndim == 2 and logits.shape[1] > 1:
        length = math.ceil(math.log(len(logits) * (logits.shape[1] - 1) + 1, logits.shape[1]) - 1e-9)
        if num_prefixes(logits.shape[1], length) == len(logits):
            return length
    raise ShapeError(
        f"A table of logits must be [R, V] with R = 1 + V + ... + V^(L - 1), got {list(logits.shape)}."
    )
