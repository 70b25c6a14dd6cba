"""Writing: the action is the next token of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from unirl_env.envs.activity import Activity
from unirl_env.envs.conversation import Conversation, checked_tokens
from unirl_env.envs.encodings import encode_prompts, input_limits, padded_inputs, space_of
from unirl_env.envs.roster import Roster
from unirl_env.envs.tools import Tool, ask_tool
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Sample

__all__ = ["Said", "Writing"]

UNLIMITED = 2**62
"""A length that no text comes to."""
BEFORE = 16
"""Tokens of the prompt that a sample shows, among them the mark by which a chat template opens a thought."""


class Said(NamedTuple):
    """What is said at one step.

    Attributes:
        rows: `[n]`, who speaks.
        token: `[n]`, what they say.
        ends: `[n]` bool, whether that ends their turn.
        replies: What the world answers to some of the rows whose turn ends.
    """

    rows: np.ndarray
    token: np.ndarray
    ends: np.ndarray
    replies: Mapping[int, Sequence[int]]


class Writing(Activity):
    """B texts of a language model, token by token.

    Args:
        language_model: Whose tokens.
        num_envs: B.
        max_new_tokens: The most tokens after the prompt.
        max_prompt_tokens: The longest prompt that is accepted.
        room: Places for tokens beyond those two, which the world writes after the text.
        tool: What answers a finished turn.
        max_turns: The tool is not asked after this many turns.
        with_inputs: Observe the inputs beside the tokens, too.
        waits: Whether an episode may stand still by the token WAIT.
        device: Where observed tensors live.
        array_backend: `"numpy"` or `"torch"`.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        num_envs: int,
        max_new_tokens: int,
        max_prompt_tokens: int,
        room: int = 0,
        tool: Tool | None = None,
        max_turns: int = 1,
        with_inputs: bool = True,
        waits: bool,
        device: torch.device,
        array_backend: str,
    ):
        self.language_model, self.tool, self.max_turns = language_model, tool, max_turns
        self.max_new_tokens, self.max_prompt_tokens = max_new_tokens, max_prompt_tokens
        self.max_length = max_prompt_tokens + max_new_tokens + room
        self.waits, self.device, self.array_backend = waits, device, array_backend
        self.limits = input_limits(language_model, max_prompt_tokens)
        self.observed = self.limits if with_inputs else {}
        self.ends = np.zeros(language_model.vocab_size, dtype=bool)
        self.ends[[token for token in language_model.eos_ids if token < len(self.ends)]] = True
        self.mirror = device if array_backend == "torch" and device.type != "cpu" else None
        self.talk = Conversation.empty(num_envs, self.max_length, language_model.pad_id)
        self.encodings: list[Encoded | None] = [None] * num_envs
        self._inputs: dict[str, Tensor] = {}
        self._turns = np.zeros(num_envs, dtype=np.int64)
        self._turn_start = np.zeros(num_envs, dtype=np.int64)
        self._full = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=bool)
        self._truncated = np.zeros(num_envs, dtype=bool)
        self._constant: dict[str, Any] = {}
        self.action_space = spaces.Discrete(len(self.ends))
        self.observation_spaces = self._spaces()

    def text_so_far(self) -> tuple[str, ...]:
        """What has been said in each episode, prompt included."""
        rows = zip(self.talk.tokens, self.talk.length, strict=True)
        return tuple(self.language_model.decode(tokens[:length].tolist()) for tokens, length in rows)

    def turn(self, row: int, *last: int) -> str:
        """The text of the present turn of `row`, as it will be after the tokens `last`."""
        span = slice(self._turn_start[row], self.talk.length[row])
        said = self.talk.tokens[row, span][self.talk.is_action[row, span]].tolist()
        return self.language_model.decode([*said, *last])

    def prepared(
        self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]
    ) -> tuple[list[Encoded], dict[str, Tensor]]:
        """The encoded prompts, and their padded inputs."""
        prompts = [roster.prompts[row] for row in rows]
        encodings = encode_prompts(self.language_model, prompts, self.max_prompt_tokens, self.limits)
        inputs = padded_inputs(encodings, self.observed)
        return encodings, {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def begin(self, rows: np.ndarray, prepared: tuple[list[Encoded], dict[str, Tensor]]) -> None:
        """Start from the prompts, in buffers of their own."""
        encodings, inputs = prepared
        self._hold(self.talk.started(rows, [each.tokens.cpu().numpy() for each in encodings]))
        kept = self.encodings.copy()
        for row, encoded in zip(rows, encodings, strict=True):
            kept[row] = encoded
        self.encodings = kept
        if len(rows) < len(kept):
            at = torch.from_numpy(rows).to(self.device)
            inputs = {k: self._inputs[k].index_copy(0, at, v) for k, v in inputs.items()}
        self._inputs = inputs
        self._turns, self._turn_start = self._turns.copy(), self._turn_start.copy()
        self._turns[rows], self._turn_start[rows] = 0, self.talk.length[rows]
        self._full = self._full.copy()
        self._full[rows] = self.talk.prompt_length[rows] + self.max_new_tokens
        self._terminated, self._truncated = self._terminated.copy(), self._truncated.copy()
        self._terminated[rows] = self._truncated[rows] = False

    def checked(self, actions: Any, active: np.ndarray, roster: Roster) -> Said:
        """What is said, and what the tool answers.

        Raises:
            ShapeError: If the actions are not B integers.
            ContractError: If an action is no token.
        """
        rows, token = checked_tokens(actions, active, len(self.ends), waits=self.waits)
        ends = self.ends[token]
        replies: dict[int, Sequence[int]] = {}
        if self.tool is not None and ends.any():
            replies = self._replies(rows[ends], token[ends], roster)
        return Said(rows, token, ends, replies)

    def advance(self, checked: Said) -> None:
        """Write it down."""
        rows, token, ends, replies = checked
        talk = self.talk.said(rows, token)
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        terminated[rows[ends]] = True
        for row, reply in replies.items():
            terminated[row] = False
            if talk.length[row] + len(reply) >= self._full[row]:
                truncated[row] = True
            else:
                talk = talk.heard(row, reply)
                self._turns[row] += 1
                self._turn_start[row] = talk.length[row]
        truncated |= (talk.length >= self._full) & ~terminated
        self.talk, self._terminated, self._truncated = talk, terminated, truncated

    def follow(self, row: int, tokens: Sequence[int]) -> None:
        """After the end of its text, `row` goes on with what the world writes: `tokens`, no actions."""
        self.talk = self.talk.heard(row, tokens)
        self._terminated, self._full = self._terminated.copy(), self._full.copy()
        self._terminated[row], self._full[row] = False, UNLIMITED

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminated by an end of turn without a reply; truncated at the limit."""
        return self._terminated.copy(), self._truncated.copy()

    def observe(self) -> dict[str, Any]:
        """Tokens, lengths, what was an action, and the inputs; as tensors, the live buffers."""
        talk = self.talk
        if self.array_backend == "torch":
            length = torch.from_numpy(talk.length).to(self.device)
            return {"length": length, **self._constant, **self._inputs}
        return {
            "tokens": talk.tokens.copy(),
            "length": talk.length.copy(),
            "prompt_length": talk.prompt_length.copy(),
            "is_action": talk.is_action.astype(np.int8),
            **{name: tensor.cpu().numpy().copy() for name, tensor in self._inputs.items()},
        }

    def finish(self, rows: np.ndarray) -> list[Sample]:
        """The last turn as text, and all tokens after the prompt."""
        return [
            Sample(
                text=self.turn(row),
                tokens=self.tokens_after_the_prompt(row),
                truncated=bool(self._truncated[row]),
                before=self._before(row),
            )
            for row in rows
        ]

    def _before(self, row: int) -> str:
        """The last words before the present turn of `row`."""
        start = self._turn_start[row]
        return self.language_model.decode(self.talk.tokens[row, max(0, start - BEFORE) : start].tolist())

    def tokens_after_the_prompt(self, row: int) -> Tensor:
        """All that has been said in `row`, by whomever, `[n]` int64."""
        said = self.talk.tokens[row, self.talk.prompt_length[row] : self.talk.length[row]]
        return torch.from_numpy(said.copy())

    def state(self) -> dict[str, Any]:
        """The conversation shares its buffers; see there."""
        return {
            "talk": self.talk,
            "encodings": self.encodings,
            "inputs": self._inputs,
            "turns": self._turns.copy(),
            "turn_start": self._turn_start.copy(),
            "full": self._full,
            "ended": (self._terminated, self._truncated),
        }

    def facts(self) -> dict[str, Any]:
        """The model, and the limits."""
        return {
            **self.language_model.identity(),
            "tokens of a prompt at most": self.max_prompt_tokens,
            "tokens after it at most": self.max_new_tokens,
            "turns at most": self.max_turns,
        }

    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Go on in clean buffers."""
        self._hold(state["talk"].taken(rows))
        self.encodings = [state["encodings"][row] for row in rows]
        at = torch.from_numpy(rows)
        self._inputs = {k: v[at.to(v.device)].to(self.device) for k, v in state["inputs"].items()}
        self._turns, self._turn_start = state["turns"][rows], state["turn_start"][rows]
        self._full = state["full"][rows]
        self._terminated, self._truncated = (flag[rows] for flag in state["ended"])

    def _hold(self, talk: Conversation) -> None:
        """Go on with other buffers."""
        self.talk = talk if self.mirror is None else talk.on(self.mirror)
        tokens, is_action = self.talk.buffers()
        self._constant = {
            "tokens": tokens,
            "is_action": is_action,
            "prompt_length": torch.from_numpy(talk.prompt_length).to(self.device),
        }

    def _replies(self, rows: np.ndarray, last: np.ndarray, roster: Roster) -> dict[int, Sequence[int]]:
        """What the tool says to the turns that end at `rows` with the tokens `last`."""
        replies: dict[int, Sequence[int]] = {}
        for row, token in zip(rows.tolist(), last.tolist(), strict=True):
            if self._turns[row] + 1 < self.max_turns:
                answer = ask_tool(self.tool, self.turn(row, token), roster.prompts[row])
                if answer is not None:
                    replies[row] = list(self.language_model.reply(answer))
        return replies

    def _spaces(self) -> dict[str, spaces.Space]:
        top, length = max(len(self.ends) - 1, self.language_model.pad_id), self.max_length
        return {
            "tokens": spaces.Box(0, top, (length,), np.int64),
            "length": spaces.Box(0, length, (), np.int64),
            "prompt_length": spaces.Box(0, self.max_prompt_tokens, (), np.int64),
            "is_action": spaces.Box(0, 1, (length,), np.int8),
            **{name: space_of(limit) for name, limit in self.observed.items()},
        }
