"""The token MDP: the action is the next token, and the reward waits for the finished text."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode

from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import ActivityVectorEnv
from unirl_env.envs.conversation import WAIT
from unirl_env.envs.tools import Tool
from unirl_env.envs.writing import Writing
from unirl_env.errors import ConfigError
from unirl_env.models.words import Encoded, LanguageModel

__all__ = ["MAX_NEW_TOKENS", "MAX_PROMPT_TOKENS", "WAIT", "TokenVectorEnv"]

MAX_NEW_TOKENS, MAX_PROMPT_TOKENS = 256, 512
"""The limits where none are given."""


class TokenVectorEnv(ActivityVectorEnv):
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
            num_envs=self.num_envs,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            tool=tool,
            max_turns=self.max_turns,
            with_inputs=truth("with_inputs", with_inputs),
            waits=self.metadata["autoreset_mode"] is AutoresetMode.DISABLED,
            device=self.device,
            array_backend=self.array_backend,
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
