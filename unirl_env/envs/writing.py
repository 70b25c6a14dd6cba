"""Writing: the action is the next token of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import Activity
from unirl_env.envs.encodings import encode_prompts, input_limits, space_of
from unirl_env.envs.groups import Groups
from unirl_env.envs.token_rows import TokenRows, checked_tokens
from unirl_env.envs.tools import Tool, ask_tool
from unirl_env.envs.vector_env import GenerativeVectorEnv
from unirl_env.errors import ConfigError
from unirl_env.models.words import Encoded, Words, padded_inputs
from unirl_env.types import Sample

UNLIMITED = 2**62
"""A length that no text comes to."""
BEFORE = 16
"""Tokens of the prompt that a sample shows, among them the mark by which a chat template opens a thought."""

MAX_NEW_TOKENS, MAX_PROMPT_TOKENS = 256, 512
"""The limits where none are given."""


class NextTokens(NamedTuple):
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
        language_model: Words,
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
        self.written = TokenRows.empty(num_envs, self.max_length, language_model.pad_id)
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
        rows = zip(self.written.tokens, self.written.length, strict=True)
        return tuple(self.language_model.decode(tokens[:length].tolist()) for tokens, length in rows)

    def turn(self, row: int, *last: int) -> str:
        """The text of the present turn of `row`, as it will be after the tokens `last`."""
        span = slice(self._turn_start[row], self.written.length[row])
        said = self.written.tokens[row, span][self.written.is_action[row, span]].tolist()
        return self.language_model.decode([*said, *last])

    def prepared(
        self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]
    ) -> tuple[list[Encoded], dict[str, Tensor]]:
        """The encoded prompts, and their padded inputs."""
        prompts = [groups.prompts[row] for row in rows]
        encodings = encode_prompts(self.language_model, prompts, self.max_prompt_tokens, self.limits)
        inputs = padded_inputs(encodings, self.observed)
        return encodings, {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def begin(self, rows: np.ndarray, prepared: tuple[list[Encoded], dict[str, Tensor]]) -> None:
        """Start from the prompts, in buffers of their own."""
        encodings, inputs = prepared
        self._hold(self.written.started(rows, [each.tokens.cpu().numpy() for each in encodings]))
        kept = self.encodings.copy()
        for row, encoded in zip(rows, encodings, strict=True):
            kept[row] = encoded
        self.encodings = kept
        if len(rows) < len(kept):
            at = torch.from_numpy(rows).to(self.device)
            inputs = {k: self._inputs[k].index_copy(0, at, v) for k, v in inputs.items()}
        self._inputs = inputs
        self._turns, self._turn_start = self._turns.copy(), self._turn_start.copy()
        self._turns[rows], self._turn_start[rows] = 0, self.written.length[rows]
        self._full = self._full.copy()
        self._full[rows] = self.written.prompt_length[rows] + self.max_new_tokens
        self._terminated, self._truncated = self._terminated.copy(), self._truncated.copy()
        self._terminated[rows] = self._truncated[rows] = False

    def checked(self, actions: Any, active: np.ndarray, groups: Groups) -> NextTokens:
        """What is said, and what the tool answers.

        Raises:
            ShapeError: If the actions are not B integers.
            ContractError: If an action is no token.
        """
        rows, token = checked_tokens(actions, active, len(self.ends), waits=self.waits)
        ends = self.ends[token]
        replies: dict[int, Sequence[int]] = {}
        if self.tool is not None and ends.any():
            replies = self._replies(rows[ends], token[ends], groups)
        return NextTokens(rows, token, ends, replies)

    def advance(self, checked: NextTokens) -> None:
        """Write it down."""
        rows, token, ends, replies = checked
        written = self.written.with_actions(rows, token)
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        terminated[rows[ends]] = True
        for row, reply in replies.items():
            terminated[row] = False
            if written.length[row] + len(reply) >= self._full[row]:
                truncated[row] = True
            else:
                written = written.with_reply(row, reply)
                self._turns[row] += 1
                self._turn_start[row] = written.length[row]
        truncated |= (written.length >= self._full) & ~terminated
        self.written, self._terminated, self._truncated = written, terminated, truncated

    def follow(self, row: int, tokens: Sequence[int]) -> None:
        """After the end of its text, `row` goes on with what the world writes: `tokens`, no actions."""
        self.written = self.written.with_reply(row, tokens)
        self._terminated, self._full = self._terminated.copy(), self._full.copy()
        self._terminated[row], self._full[row] = False, UNLIMITED

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminated by an end of turn without a reply; truncated at the limit."""
        return self._terminated.copy(), self._truncated.copy()

    def observe(self) -> dict[str, Any]:
        """Tokens, lengths, what was an action, and the inputs; as tensors, the live buffers."""
        written = self.written
        if self.array_backend == "torch":
            length = torch.from_numpy(written.length).to(self.device)
            return {"length": length, **self._constant, **self._inputs}
        return {
            "tokens": written.tokens.copy(),
            "length": written.length.copy(),
            "prompt_length": written.prompt_length.copy(),
            "is_action": written.is_action.astype(np.int8),
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
        return self.language_model.decode(self.written.tokens[row, max(0, start - BEFORE) : start].tolist())

    def tokens_after_the_prompt(self, row: int) -> Tensor:
        """All that has been said in `row`, by whomever, `[n]` int64."""
        said = self.written.tokens[row, self.written.prompt_length[row] : self.written.length[row]]
        return torch.from_numpy(said.copy())

    def state(self) -> dict[str, Any]:
        """The conversation shares its buffers; see there."""
        return {
            "written": self.written,
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
        self._hold(state["written"].taken(rows))
        self.encodings = [state["encodings"][row] for row in rows]
        at = torch.from_numpy(rows)
        self._inputs = {k: v[at.to(v.device)].to(self.device) for k, v in state["inputs"].items()}
        self._turns, self._turn_start = state["turns"][rows], state["turn_start"][rows]
        self._full = state["full"][rows]
        self._terminated, self._truncated = (flag[rows] for flag in state["ended"])

    def _hold(self, written: TokenRows) -> None:
        """Go on with other buffers."""
        self.written = written if self.mirror is None else written.on(self.mirror)
        tokens, is_action = self.written.buffers()
        self._constant = {
            "tokens": tokens,
            "is_action": is_action,
            "prompt_length": torch.from_numpy(written.prompt_length).to(self.device),
        }

    def _replies(self, rows: np.ndarray, last: np.ndarray, groups: Groups) -> dict[int, Sequence[int]]:
        """What the tool says to the turns that end at `rows` with the tokens `last`."""
        replies: dict[int, Sequence[int]] = {}
        for row, token in zip(rows.tolist(), last.tolist(), strict=True):
            if self.tool is not None and self._turns[row] + 1 < self.max_turns:
                answer = ask_tool(self.tool, self.turn(row, token), groups.prompts[row])
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


class TokenVectorEnv(GenerativeVectorEnv):
    """Texts of an autoregressive language model, token by token, as a batch of episodes.

    Description:
        An episode begins with an encoded prompt (a chat, with pictures for a vision-language model). Each
        action *is* the next token, so the transition is deterministic: the draw belongs to the policy
        (`unirl_env.functional.token_step`). The environment holds what is frozen: tokenizer, chat template,
        picture processor, prompts, tool.

        With a tool, the end of a turn need not be the end of the episode: the tool is asked with the turn's
        text, and what it answers follows in the conversation, as context that is not an action.

    Action Space:
        `Discrete(vocab_size)`: the next token. In autoreset mode DISABLED, `WAIT` (-1) lets an episode stand
        still for a step, for callers that replay texts of unequal length; wrappers count it as a step.

    Observation Space:
        | key | shape | meaning |
        |---|---|---|
        | `tokens` | `[L]` | prompt and continuation; beyond `length` there is `pad_id` |
        | `length` | `()` | how many of them have been said |
        | `prompt_length` | `()` | how many of them are the prompt |
        | `is_action` | `[L]` | 1 where a token was an action, 0 in the prompt and in replies |
        | inputs | the model's | what goes in beside the tokens, e.g. `pixel_values`, padded with zeros |

        L is `max_prompt_tokens + max_new_tokens`. With the torch backend, `tokens` and `is_action` are the
        environment's own buffers, which grow as it is stepped: the first `length` entries of an observation
        stay what they are, what lies beyond changes. A reset makes new buffers.

    Rewards:
        0 at every step. `RewardWrapper` pays the score of the text at the last one.

    Episode End:
        Terminates with an end-of-turn token, unless the tool answers. Truncates when `max_new_tokens` tokens
        follow the prompt (replies count), or when a reply would leave no room for another token; an
        end-of-turn token exactly at the limit terminates.

    Arguments:
        language_model: The model family's adapter; its network is not loaded.
        max_new_tokens: The most tokens after the prompt.
        max_prompt_tokens: The longest prompt that is accepted.
        tool: `tool(text of the turn, prompt) -> answer`, or None where there is nothing to answer, which
            ends the episode.
        max_turns: The tool is not asked after this many turns.
        with_inputs: Observe the inputs beside the tokens, too. Padded, they take `num_envs` times their
            limit of memory: a caller that reads `encodings` can do without.

        And those of `GenerativeVectorEnv`; `same_noise` changes nothing, as all episodes of a group begin
        alike.

    Version History:
        v0: The first one.
    """

    arguments = ENVIRONMENTS["language_model"]

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}
    laws = ("tokens",)

    def __init__(
        self,
        language_model: Words,
        *,
        num_envs: int = 1,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
        tool: Tool | None = None,
        max_turns: int = 4,
        with_inputs: bool = True,
        **shared: Any,
    ):
        self.max_new_tokens = max_new_tokens = whole("max_new_tokens", max_new_tokens, 1)
        self.max_prompt_tokens = max_prompt_tokens = whole("max_prompt_tokens", max_prompt_tokens, 1)
        self.max_turns = whole("max_turns", max_turns, 1)
        if max_prompt_tokens + max_new_tokens > language_model.max_context:
            raise ConfigError(
                "`max_prompt_tokens` + `max_new_tokens` must be at most the model's context of "
                f"{language_model.max_context} tokens, got {max_prompt_tokens} + {max_new_tokens}; "
                f"try max_new_tokens={max(1, language_model.max_context - max_prompt_tokens)}."
            )
        if tool is not None and not callable(tool):
            raise ConfigError(f"`tool` must be callable as (text, prompt), got {type(tool).__name__}.")
        super().__init__(num_envs=num_envs, **shared)
        self.language_model, self.tool = language_model, tool
        self._writing = Writing(
            language_model,
            **self._shared,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            tool=tool,
            max_turns=self.max_turns,
            with_inputs=truth("with_inputs", with_inputs),
            waits=self.metadata["autoreset_mode"] is AutoresetMode.DISABLED,
        )
        self.max_length = self._writing.max_length
        self._play(self._writing)

    @property
    def encodings(self) -> tuple[Encoded | None, ...]:
        """Each present episode's prompt as the model reads it; episodes that share a prompt share it."""
        return tuple(self._writing.encodings)

    def render(self) -> tuple[str, ...] | None:
        """What has been said so far, prompt included, as text."""
        return None if self.render_mode is None or not self.started else self._writing.text_so_far()
