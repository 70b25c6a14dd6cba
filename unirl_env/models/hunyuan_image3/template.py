"""A prompt as tokens: plain text or a chat, and the marks that stand before a picture.

Pieces are turned into tokens one by one, as the checkpoints were trained: a word never reaches over the
border of a piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unirl_env.errors import ConfigError, PromptError
from unirl_env.models.hunyuan_image3.settings import Settings
from unirl_env.models.shared.spelling import Spelling
from unirl_env.types import Prompt

TASKS = {"auto": "", "image": "", "think": "<think>", "recaption": "<recaption>"}
"""What a text is to do, to what stands before it."""
SHOWN = ("<think>", "</think>", "<recaption>", "</recaption>")
"""Special tokens that are part of the text: whoever reads it must see where a thought ends."""
ROLES = {"system": ("", "\n\n"), "user": ("User: ", "\n\n"), "assistant": ("Assistant: ", "\n\n")}
"""What a chat says before and after the turn of a role."""


@dataclass(frozen=True)
class Template:
    """The chat of one checkpoint.

    Attributes:
        tokenizer: The checkpoint's own.
        settings: Its settings.
        task: One of `TASKS`.
        system: System prompt for chats that bring none.
        ratio: Number of the picture's size among the buckets.
    """

    tokenizer: Any
    settings: Settings
    task: str
    system: str | None
    ratio: int

    @property
    def chat(self) -> bool:
        """Whether prompts are turns of a chat rather than plain text."""
        return self.settings.template == "instruct"

    def id(self, mark: str) -> int:
        """The token of a mark.

        Raises:
            ConfigError: If the tokenizer has no such token.
        """
        number = self.tokenizer.convert_tokens_to_ids(mark)
        if number is None or number == self.tokenizer.unk_token_id:
            raise ConfigError(
                f"The tokenizer must know {mark!r}, and does not; try the tokenizer that is published with "
                "the weights of HunyuanImage 3."
            )
        return number

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        own = (self.tokenizer.eos_token_id, *self.settings.ends)
        marks = (self.id("<boi>"),)
        if TASKS[self.task]:
            marks = (self.id("</recaption>"), self.id("</answer>"))
        return tuple(dict.fromkeys((*marks, *(end for end in own if end is not None))))

    @property
    def opens(self) -> tuple[int, ...]:
        """The ends after which a picture begins."""
        return (self.id("</recaption>" if TASKS[self.task] else "<boi>"),)

    def opening(self, ended_by: int | None) -> list[int]:
        """The marks between a text and the picture's time token: begin of image, size and ratio.

        Args:
            ended_by: The token that ended the text, which stands before them; None where there is no text.
        """
        begin, shape = (
            self.id("<boi>"),
            [f"<img_size_{self.settings.base_size}>", f"<img_ratio_{self.ratio}>"],
        )
        if ended_by == begin:
            return [self.id(mark) for mark in shape]
        marks = ["<answer>"] if self.chat else []
        if ended_by is None and TASKS[self.task]:
            marks.insert(0, TASKS[self.task].replace("<", "</"))  # an opened thought is closed, empty
        return [self.id(mark) for mark in (*marks, "<boi>", *shape)]

    def prompt(self, prompt: Prompt) -> list[int]:
        """The tokens up to the beginning of the text.

        Raises:
            PromptError: If the prompt holds what this model cannot read.
        """
        return self._turns(prompt, negative=False) + self._ids(self._answer + TASKS[self.task])

    def drawn(self, prompt: Prompt, *, negative: bool = False) -> list[int]:
        """The tokens up to a picture that follows the prompt at once.

        Args:
            prompt: What to draw.
            negative: Put the prompt's negative in the place of its text; without one, as many tokens that
                mean nothing as the text has, which is how the model was trained to draw anything.
        """
        answer = [self.id("<answer>")] if self.chat else []
        begin = self.id("<boi>")
        before = self._turns(prompt, negative=negative) + self._ids(self._answer)
        return [*before, *answer, begin, *self.opening(begin)]

    def reply(self, text: str) -> list[int]:
        """What stands between an answer and the next one when the world says `text`."""
        if not self.chat:
            return self._typed(text)
        before, after = ROLES["user"]
        opening = [*self._ids(ROLES["assistant"][1]), *self._ids(before)]
        closing = [*self._ids(after), *self._ids(self._answer + TASKS[self.task])]
        return [*opening, *self._typed(text), *closing]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; of special tokens only the marks of thoughts and captions."""
        return self._spelling.text(tokens)

    @cached_property
    def _spelling(self) -> Spelling:
        """All special tokens frame texts or pictures, but for those that are part of a text."""
        added = self.tokenizer.added_tokens_decoder.items()
        return Spelling(
            self.tokenizer,
            frames=(number for number, token in added if token.special and token.content not in SHOWN),
        )

    @property
    def _answer(self) -> str:
        return ROLES["assistant"][0] if self.chat else ""

    def _turns(self, prompt: Prompt, *, negative: bool) -> list[int]:
        """The beginning of the sequence and all turns, each with its borders."""
        turns = self._checked(prompt)
        tokens, role = [self.tokenizer.bos_token_id], None
        for turn in turns:
            before, after = ROLES[turn["role"]] if self.chat else ("", "")
            if turn["role"] != role:
                tokens += self._ids(before)
            ids = self._typed(turn["content"], "assistant" if turn["role"] == "assistant" else "user")
            if negative and turn["role"] != "system":
                own = turn["role"] == "user" and prompt.negative
                ids = self._typed(prompt.negative) if own else [self.id("<cfg>")] * len(ids)
            tokens, role = tokens + ids + self._ids(after), turn["role"]
        return tokens

    def _checked(self, prompt: Prompt) -> list[Mapping[str, Any]]:
        turns = [dict(turn) for turn in prompt.messages] or [{"role": "user", "content": prompt.text}]
        for turn in turns:
            content = turn.get("content")
            if isinstance(content, list | tuple) and all(part.get("type") == "text" for part in content):
                turn["content"] = content = "".join(part["text"] for part in content)
            if turn.get("role") not in ROLES or not isinstance(content, str):
                raise PromptError(
                    f"Turns must be texts of {tuple(ROLES)}, got {turn.get('role')!r} with "
                    f"{type(content).__name__} in {prompt.id[:60]!r}."
                )
        if prompt.images:
            raise PromptError(
                f"Prompts must be text for HunyuanImage3, got {prompt.id[:60]!r} with pictures: it "
                "draws, and does not edit."
            )
        if turns[-1]["role"] != "user":
            raise PromptError(f"A chat must end with the user's turn, {prompt.id[:60]!r} does not.")
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return turns

    def _typed(self, text: str, by: str = "user") -> list[int]:
        """The tokens of what somebody said, in which no mark of another's is a token."""
        return self._spelling.ids(self._spelling.quoted(text, by=by)) if text else []

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []
