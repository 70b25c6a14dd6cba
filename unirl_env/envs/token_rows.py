"""What stands in each episode of a batch: prompt, actions and replies, as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unirl_env.errors import ContractError, ShapeError

WAIT = -1
"""The action of an episode that does nothing at this step, in autoreset mode DISABLED."""


@dataclass(frozen=True)
class TokenRows:
    """B rows of tokens that only ever grow at their ends.

    What lies before `length[i]` in row i never changes, so that a snapshot need not copy the buffers: it
    keeps them together with its own lengths, and whoever goes on from there takes a clean copy.

    Attributes:
        tokens: `[B, L]` int64: the prompt, what followed, and then anything.
        is_action: `[B, L]` bool, where a token was an action.
        length: `[B]` int64; replaced as rows grow, never written to.
        prompt_length: `[B]` int64.
        pad_id: What stands beyond the end of a clean row.
        mirror: The same buffers on another device, for observations there.
    """

    tokens: np.ndarray
    is_action: np.ndarray
    length: np.ndarray
    prompt_length: np.ndarray
    pad_id: int
    mirror: tuple[Tensor, Tensor] | None = None

    @classmethod
    def empty(cls, num_envs: int, max_length: int, pad_id: int) -> TokenRows:
        """Rows in which nothing has been said."""
        return cls(
            tokens=np.full((num_envs, max_length), pad_id, dtype=np.int64),
            is_action=np.zeros((num_envs, max_length), dtype=bool),
            length=np.zeros(num_envs, dtype=np.int64),
            prompt_length=np.zeros(num_envs, dtype=np.int64),
            pad_id=pad_id,
        )

    def started(self, rows: np.ndarray, prompts: Sequence[np.ndarray]) -> TokenRows:
        """New buffers, without a mirror, in which `rows` begin anew with `prompts`; the others stay."""
        tokens, is_action = self.tokens.copy(), self.is_action.copy()
        length, prompt_length = self.length.copy(), self.prompt_length.copy()
        tokens[rows], is_action[rows] = self.pad_id, False
        for row, prompt in zip(rows, prompts, strict=True):
            tokens[row, : len(prompt)] = prompt
            length[row] = prompt_length[row] = len(prompt)
        return TokenRows(tokens, is_action, length, prompt_length, self.pad_id)

    def with_actions(self, rows: np.ndarray, token: np.ndarray) -> TokenRows:
        """One action more in each of `rows`; written into the same buffers."""
        at = self.length[rows]
        self.tokens[rows, at], self.is_action[rows, at] = token, True
        if self.mirror is not None:
            device = self.mirror[0].device
            place = torch.from_numpy(np.stack([rows, at, token])).to(device)
            self.mirror[0][place[0], place[1]] = place[2]
            self.mirror[1][place[0], place[1]] = True
        length = self.length.copy()
        length[rows] = at + 1
        # Written out: `dataclasses.replace` takes as long as the rest of it.
        return TokenRows(self.tokens, self.is_action, length, self.prompt_length, self.pad_id, self.mirror)

    def with_reply(self, row: int, reply: Sequence[int]) -> TokenRows:
        """A reply of the world at the end of `row`; written into the same buffers."""
        at = int(self.length[row])
        span = slice(at, at + len(reply))
        self.tokens[row, span], self.is_action[row, span] = reply, False
        if self.mirror is not None:
            self.mirror[0][row, span] = torch.from_numpy(self.tokens[row, span]).to(self.mirror[0].device)
            self.mirror[1][row, span] = False
        length = self.length.copy()
        length[row] += len(reply)
        return replace(self, length=length)

    def taken(self, rows: np.ndarray) -> TokenRows:
        """Clean buffers, without a mirror, in which row i goes on from row `rows[i]` of this one."""
        tokens, is_action, length = self.tokens[rows], self.is_action[rows], self.length[rows]
        beyond = np.arange(tokens.shape[1]) >= length[:, None]
        tokens[beyond], is_action[beyond] = self.pad_id, False
        prompt_length = self.prompt_length[rows]
        return TokenRows(tokens, is_action, length, prompt_length, self.pad_id)

    def on(self, device: torch.device) -> TokenRows:
        """The same conversation, mirrored on `device`."""
        tokens, is_action = (
            torch.from_numpy(each).to(device, copy=True) for each in (self.tokens, self.is_action)
        )
        return replace(self, mirror=(tokens, is_action))

    def buffers(self) -> tuple[Tensor, Tensor]:
        """`tokens` and `is_action` as the live tensors of an observation."""
        return self.mirror or (torch.from_numpy(self.tokens), torch.from_numpy(self.is_action))


def checked_tokens(
    actions: Any, active: np.ndarray, vocab_size: int, *, waits: bool, first_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The rows among the `active` `[B]` that go on, and the token of each.

    Args:
        actions: `[B]` integers, an array or a tensor; those of rows that are not active mean nothing.
        active: `[B]` bool.
        vocab_size: How many tokens there are.
        waits: Whether a row may WAIT.
        first_id: The first token.

    Raises:
        ShapeError: If the actions are not B integers.
        ContractError: If an action is no token.
    """
    token = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asanyarray(actions)
    if isinstance(token, np.ma.MaskedArray):
        raise ShapeError(
            "`actions` must be token ids, got a masked array; try its `filled` with what is meant."
        )
    if token.shape != active.shape or token.dtype.kind not in "iu":
        raise ShapeError(
            f"`actions` must be token ids, integers [{len(active)}], got {token.dtype} {list(token.shape)}."
        )
    rows = np.flatnonzero(active & (token != WAIT) if waits else active)
    token = token[rows]
    if len(rows) and (token.min() < first_id or token.max() >= first_id + vocab_size):
        wrong = (token < first_id) | (token >= first_id + vocab_size)
        raise ContractError(
            f"`actions` must be token ids in [{first_id}, {first_id + vocab_size}), got "
            f"{token[wrong].tolist()[:8]} in episodes {rows[wrong].tolist()[:8]}; WAIT ({WAIT}) is for "
            "autoreset mode DISABLED."
        )
    return rows, token
