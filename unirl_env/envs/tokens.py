"""The token MDP: the action is the next token, and the reward waits for the finished text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from unirl_env.envs.base import GenerativeVectorEnv
from unirl_env.envs.conversation import WAIT, Conversation, checked_tokens
from unirl_env.envs.encodings import encode_prompts, input_limits, padded_inputs, space_of
from unirl_env.envs.roster import Roster
from unirl_env.envs.tools import Tool, ask_tool
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.language import Encoded, LanguageModel
from unirl_env.types import Sample

__all__ = ["MAX_NEW_TOKENS", "MAX_PROMPT_TOKENS", "WAIT", "TokenVectorEnv"]

MAX_NEW_TOKENS, MAX_PROMPT_TOKENS = 256, 512
"""The limits where none are given."""


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

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        num_envs: int = 1,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
        tool: Tool | None = None,
        max_turns: int = 4,
        with_inputs: bool = True,
        **shared: Any,
    ):
        limits = {
            "max_new_tokens": max_new_tokens,
            "max_prompt_tokens": max_prompt_tokens,
            "max_turns": max_turns,
        }
        for name, value in limits.items():
            if value < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {value}.")
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
        self.max_new_tokens, self.max_prompt_tokens = int(max_new_tokens), int(max_prompt_tokens)
        self.max_turns = int(max_turns)
        self.max_length = self.max_prompt_tokens + self.max_new_tokens
        self._limits = input_limits(language_model, self.max_prompt_tokens)
        self._observed = self._limits if with_inputs else {}
        self._ends = np.zeros(language_model.vocab_size, dtype=bool)
        self._ends[[token for token in language_model.eos_ids if token < len(self._ends)]] = True
        self._waits = self.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        self._mirror = self.device if self.array_backend == "torch" and self.device.type != "cpu" else None
        self._talk = Conversation.empty(num_envs, self.max_length, language_model.pad_id)
        self._encodings: list[Encoded | None] = [None] * num_envs
        self._inputs: dict[str, Tensor] = {}
        self._turns = np.zeros(num_envs, dtype=np.int64)
        self._turn_start = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=bool)
        self._truncated = np.zeros(num_envs, dtype=bool)
        self._constant: dict[str, Any] = {}
        self._make_spaces()

    @property
    def encodings(self) -> tuple[Encoded | None, ...]:
        """Each present episode's prompt as the model reads it; episodes that share a prompt share it."""
        return tuple(self._encodings)

    def render(self) -> tuple[str, ...] | None:
        """What has been said so far, prompt included, as text."""
        if self.render_mode is None or not self.started:
            return None
        rows = zip(self._talk.tokens, self._talk.length, strict=True)
        return tuple(self.language_model.decode(tokens[:length].tolist()) for tokens, length in rows)

    # The mode's part of the contract.

    def _begin(self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]) -> None:
        prompts = [roster.prompts[row] for row in rows]
        encodings = encode_prompts(self.language_model, prompts, self.max_prompt_tokens, self._limits)
        inputs = {k: v.to(self.device) for k, v in padded_inputs(encodings, self._observed).items()}
        self._hold(self._talk.started(rows, [each.tokens.cpu().numpy() for each in encodings]))
        kept = self._encodings.copy()
        for row, encoded in zip(rows, encodings, strict=True):
            kept[row] = encoded
        self._encodings = kept
        if len(rows) < self.num_envs:
            at = torch.from_numpy(rows).to(self.device)
            inputs = {k: self._inputs[k].index_copy(0, at, v) for k, v in inputs.items()}
        self._inputs = inputs
        self._turns, self._turn_start = self._turns.copy(), self._turn_start.copy()
        self._turns[rows], self._turn_start[rows] = 0, self._talk.length[rows]
        self._terminated, self._truncated = self._terminated.copy(), self._truncated.copy()
        self._terminated[rows] = self._truncated[rows] = False

    def _advance(self, actions: Any, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, token = checked_tokens(actions, active, len(self._ends), waits=self._waits)
        ends = self._ends[token]
        closed = rows[ends]
        # The tool comes first: if it fails, nothing has changed.
        replies = self._replies(closed, token[ends]) if self.tool is not None and len(closed) else {}
        talk = self._talk.said(rows, token)
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        terminated[closed] = True
        for row, reply in replies.items():
            terminated[row] = False
            if talk.length[row] + len(reply) >= self._full[row]:
                truncated[row] = True
            else:
                talk = talk.heard(row, reply)
                self._turns[row] += 1
                self._turn_start[row] = talk.length[row]
        truncated |= (talk.length >= self._full) & ~terminated
        self._talk, self._terminated, self._truncated = talk, terminated, truncated
        return terminated.copy(), truncated.copy()

    def _observe(self) -> dict[str, Any]:
        talk = self._talk
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

    def _finish(self, rows: np.ndarray) -> list[Sample]:
        samples, decode = [], self.language_model.decode
        for row in rows:
            said = self._talk.tokens[row, : self._talk.length[row]]
            samples.append(
                Sample(
                    text=decode(said[self._turn_start[row] :].tolist()),
                    tokens=torch.from_numpy(said[self._talk.prompt_length[row] :].copy()),
                    truncated=bool(self._truncated[row]),
                )
            )
        return samples

    def _model_state(self) -> dict[str, Any]:
        return {
            "talk": self._talk,
            "encodings": self._encodings,
            "inputs": self._inputs,
            "turns": self._turns.copy(),
            "turn_start": self._turn_start.copy(),
            "ended": (self._terminated, self._truncated),
        }

    def _select_model_state(self, state: dict[str, Any], rows: np.ndarray) -> None:
        length, inputs = state["talk"].tokens.shape[1], sorted(state["inputs"])
        if length != self.max_length or inputs != sorted(self._observed):
            raise ContractError(
                f"`snapshot` must hold {self.max_length} tokens per episode and the inputs "
                f"{sorted(self._observed)}, got {length} and {inputs}; restore it in an environment "
                "like its own."
            )
        self._hold(state["talk"].taken(rows))
        self._encodings = [state["encodings"][row] for row in rows]
        at = torch.from_numpy(rows)
        self._inputs = {k: v[at.to(v.device)].to(self.device) for k, v in state["inputs"].items()}
        self._turns, self._turn_start = state["turns"][rows], state["turn_start"][rows]
        self._terminated, self._truncated = (flag[rows] for flag in state["ended"])

    # Parts.

    def _hold(self, talk: Conversation) -> None:
        """Go on with other buffers."""
        self._talk = talk if self._mirror is None else talk.on(self._mirror)
        self._full = talk.prompt_length + self.max_new_tokens
        tokens, is_action = self._talk.buffers()
        self._constant = {
            "tokens": tokens,
            "is_action": is_action,
            "prompt_length": torch.from_numpy(talk.prompt_length).to(self.device),
        }

    def _replies(self, rows: np.ndarray, last: np.ndarray) -> dict[int, list[int]]:
        """What the tool says to the turns that end at `rows` with the tokens `last`."""
        replies = {}
        for row, token in zip(rows.tolist(), last.tolist(), strict=True):
            if self._turns[row] + 1 >= self.max_turns:
                continue
            said = self._talk.tokens[row, self._turn_start[row] : self._talk.length[row]].tolist()
            text = self.language_model.decode([*said, token])
            answer = ask_tool(self.tool, text, self._roster.prompts[row])
            if answer is not None:
                replies[row] = list(self.language_model.reply(answer))
        return replies

    def _make_spaces(self) -> None:
        top, length = max(len(self._ends) - 1, self.language_model.pad_id), self.max_length
        self.single_action_space = spaces.Discrete(len(self._ends))
        self.single_observation_space = spaces.Dict(
            {
                "tokens": spaces.Box(0, top, (length,), np.int64),
                "length": spaces.Box(0, length, (), np.int64),
                "prompt_length": spaces.Box(0, self.max_prompt_tokens, (), np.int64),
                "is_action": spaces.Box(0, 1, (length,), np.int8),
                **{name: space_of(limit) for name, limit in self._observed.items()},
            }
        )
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
