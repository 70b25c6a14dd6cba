"""The words of chat models of transformers: a tokenizer, its chat template, and how texts are spelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from unirl_env.arguments.values import truth
from unirl_env.errors import ConfigError, PromptError
from unirl_env.models.shared.borders import longest_text
from unirl_env.models.shared.exports import OfTransformers
from unirl_env.models.shared.loading import Source, as_dtype
from unirl_env.models.shared.output_layer import require_no_cap
from unirl_env.models.shared.spelling import Spelling
from unirl_env.models.shared.templates import check_rows, check_template, rendered, spelling_of
from unirl_env.models.words import Encoded, Words
from unirl_env.types import Prompt

ANSWER = "(the answer so far)"
"""Stands for what the model said when a chat template is asked what comes after."""


class ChatWords(OfTransformers, Words):
    """A tokenizer with its chat template, as every model of transformers has them.

    Args:
        pretrained: A hub id or a directory.
        dtype: Of weights and activations.
        device: Where the network is loaded.
        revision: Branch, tag or commit of the hub repository.
        system: System prompt for chats that bring none.
        chat: Whether prompts are chats, in which marks that somebody typed are text; False continues their
            plain text, in which marks that the tokenizer knows are tokens.
        thinking: Switches the thinking of models whose template knows `enable_thinking`; None leaves it to
            the template.
        trust_remote_code: Let transformers run code that comes with the model.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the model cannot do what a setting asks for.
    """

    KIND = "a causal language model"
    ALTERNATIVE = "unirl/TinyQwen3-Math-v0"

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        system: str | None = None,
        chat: bool = True,
        thinking: bool | None = None,
        trust_remote_code: bool = False,
    ):
        self.pretrained, self.revision = str(pretrained), revision
        self.dtype, self.device = as_dtype("dtype", dtype), torch.device(device)
        self.system, self.chat = system, truth("chat", chat)
        self.thinking = thinking if thinking is None else truth("thinking", thinking)
        options = {"trust_remote_code": truth("trust_remote_code", trust_remote_code), "revision": revision}
        self.source = Source(self.pretrained, self.KIND, self.ALTERNATIVE, options)
        config = self.config
        text = config.get_text_config()
        wrong = "an encoder and a decoder" if config.is_encoder_decoder else ""
        if wrong := wrong or ("no model of texts" if not hasattr(text, "vocab_size") else ""):
            cause = f"{type(config).__name__} is {wrong}"
            raise self.source.not_found(cause)
        require_no_cap(text, self.pretrained)
        self.vocab_size, self.max_context = text.vocab_size, longest_text(text)
        self.eos_ids = self._find_ends(text)
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad is None or pad >= self.vocab_size else pad
        check_template(self.tokenizer, self.pretrained, chat=chat, thinking=thinking)
        check_rows(self, lambda: self._render(self._turns(Prompt("?"))))

    def encode(self, prompt: Prompt) -> Encoded:
        """`tokens` `[L]` of the chat by the model's template, or of the plain text.

        Raises:
            PromptError: If the prompt holds what this model cannot read, or ends by an end token.
        """
        if not self.chat:
            if prompt.messages or prompt.images:
                raise PromptError(
                    f"Prompts must be plain text for a model with `chat=False`, got {prompt.id[:60]!r} with "
                    "chat turns or pictures; try `chat=True`."
                )
            ids = self.spelling.begun(self.spelling.quoted(prompt.text, by="script"))
        else:
            turns = self.spelling.quoted_turns(self._turns(prompt))
            ids = self.spelling.ids(rendered(lambda: self._render(turns), prompt.id, self.pretrained))
        self.check_open(ids, prompt)
        return Encoded(torch.tensor(ids, dtype=torch.int64))

    def check_open(self, ids: Sequence[int], prompt: Prompt) -> None:
        """Refuse the tokens of a prompt behind which there is nothing more to say.

        Raises:
            PromptError: If they end by an end token.
        """
        if self.spelling.ended(ids, self.eos_ids):
            raise PromptError(
                f"A prompt must be open, so that the model can go on, got one that ends by "
                f"{self.spelling.named(ids[-1:])[0]!r} for prompt {prompt.id[:60]!r}; try without it."
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`: all marks but those that end, pad or begin a text or a turn."""
        return self.spelling.text(tokens)

    def reply(self, text: str) -> list[int]:
        """The template's turn of a tool, or of the user where it knows no tools; plain text without chat."""
        if not self.chat:
            return self.spelling.ids(self.spelling.quoted(text, by="tool"))
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
        said = {"role": self._reply_role, "content": self.spelling.quoted(text, by="tool")}
        chat = rendered(lambda: self._render([*turns, said]), text, self.pretrained)
        return after_answer(chat, self.spelling, self.eos_ids)

    @cached_property
    def spelling(self) -> Spelling:
        """How texts are read and written; see `LanguageModel.decode` for what is left out of them."""
        frames = (*self.eos_ids, self.pad_id)
        return spelling_of(self.tokenizer, frames, self.config, rows=self.vocab_size, chat=self.chat)

    @cached_property
    def _reply_role(self) -> str:
        """`tool` if the chat template says what a tool says, else `user`."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
        try:
            known = "(the reply)" in self._render([*turns, {"role": "tool", "content": "(the reply)"}])
        except Exception:  # a template may refuse or fail in any way
            known = False
        return "tool" if known else "user"

    def _turns(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The chat of a prompt, contents as plain text."""
        turns = [dict(turn) for turn in prompt.messages] or [{"role": "user", "content": prompt.text}]
        for turn in turns:
            content = turn.get("content")
            if not isinstance(content, str) and content is not None:
                if any(part.get("type") != "text" for part in content):
                    raise self._no_pictures(prompt)
                turn["content"] = "".join(part["text"] for part in content)
        if prompt.images:
            raise self._no_pictures(prompt)
        if self.system is not None and turns[0].get("role") != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return turns

    def _no_pictures(self, prompt: Prompt) -> PromptError:
        return PromptError(
            f"Prompts must be text for {type(self).__name__}, got {prompt.id[:60]!r} with pictures; try a "
            "vision-language model (`unirl/QwenVL-VQA-v0`)."
        )

    def _render(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The chat as text, up to the beginning of the next answer."""
        options = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, **options
        )

    def _find_ends(self, config: Any) -> tuple[int, ...]:
        """Ids that end an answer: the generation settings' and the tokenizer's, each once."""
        from transformers import GenerationConfig

        try:
            said = GenerationConfig.from_pretrained(self.pretrained, revision=self.revision).eos_token_id
        except OSError:  # not every checkpoint has one; its config then says
            said = config.eos_token_id
        ends = [*(said if isinstance(said, list | tuple) else [said]), self.tokenizer.eos_token_id]
        found = tuple(dict.fromkeys(end for end in ends if end is not None and end < self.vocab_size))
        if not found:
            raise ConfigError(
                f"`pretrained` must name a token that ends a text, got none of the {self.vocab_size} that "
                f"the network of {self.pretrained!r} knows; try setting `eos_token_id` in its "
                "generation_config.json."
            )
        return found


def after_answer(chat: str, spelling: Spelling, ends: Sequence[int]) -> list[int]:
    """The tokens of a rendered chat behind `ANSWER`.

    Args:
        chat: As the template renders it, with `ANSWER` for what the model said.
        spelling: Of the model.
        ends: What ends an answer. That token was an action; what is returned begins behind it.
    """
    after = chat.partition(ANSWER)[2]
    for end in spelling.named(ends):
        after = after.removeprefix(end)
    return spelling.ids(after)
