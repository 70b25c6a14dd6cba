"""Sequences of tokens under an old and a new policy over a small vocabulary, packed one after another."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """N packed tokens; `logits` `[N, V]` are the new policy's, the old one's drew the tokens."""

    logits: Tensor
    token: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    sequence: Tensor
    mask: Tensor

    @property
    def log_prob(self) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, self.token[:, None])[:, 0]

    @property
    def lengths(self) -> Tensor:
        """`[B]` trained tokens of each sequence."""
        return torch.zeros(int(self.sequence.max()) + 1).long().index_add(0, self.sequence, self.mask.long())

    def take(self, index) -> "Tokens":
        return Tokens(**{name: value[index] for name, value in vars(self).items()})


def make_tokens(lengths=(5, 1, 8, 3), vocabulary=7, *, moved=0.0, masked=0.0, seed=0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    old = torch.randn(count, vocabulary, generator=g)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    case = Tokens(
        logits=old,
        token=torch.multinomial(old.softmax(-1), 1, generator=g)[:, 0],
        old_log_prob=torch.zeros(count),
        advantages=torch.randn(len(lengths), generator=g)[sequence],
        sequence=sequence,
        mask=torch.rand(count, generator=g) >= masked,
    )
    new = old + moved * torch.randn(count, vocabulary, generator=g)
    return replace(case, old_log_prob=case.log_prob, logits=new)
