"""What a chat template and a tokenizer must be for a network to go on from what they make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from unirl_env.errors import ConfigError, PromptError
from unirl_env.models.shared.spelling import Spelling

logger = logging.getLogger(__name__)

SAID = "(what is said)"
ROLES_OF_TOKENS = ("bos", "eos", "pad", "sep", "cls", "unk", "mask", "decoder_start", "forced_eos")
"""Tokens that a configuration names and that stand for no picture."""


def place_tokens(config: Any) -> tuple[int, ...]:
    """The tokens that stand for pictures, videos and their borders, as the configuration names them."""
    named = {
        name.removesuffix("_token_id"): number
        for name, number in config.to_dict().items()
        if name.endswith("_token_id") and isinstance(number, int)
    }
    return tuple(number for name, number in named.items() if name not in ROLES_OF_TOKENS)


def spelling_of(tokenizer: Any, frames: Iterable[int], config: Any, *, rows: int, chat: bool) -> Spelling:
    """The spelling of a language model.

    Args:
        tokenizer: Its tokenizer, with a chat template if it has one.
        frames: What ends and pads its texts, beside what the tokenizer itself calls so.
        config: Its configuration, which names what stands for pictures.
        rows: How many tokens have an embedding.
        chat: Whether prompts are chats, whose turns have borders.
    """
    names = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    frames, places = (*frames, *names), place_tokens(config)
    bare = Spelling(tokenizer, frames=frames, places=places, rows=rows)
    if not chat:
        return bare
    borders = turn_borders(bare, partial(tokenizer.apply_chat_template, tokenize=False))
    return Spelling(tokenizer, frames=(*frames, *borders), places=places, rows=rows)


def turn_borders(spelling: Spelling, render: Callable[[Sequence[dict[str, str]]], str]) -> list[int]:
    """The special tokens that stand first before a user's turn, and first behind what it says.

    Args:
        spelling: That of the tokenizer.
        render: The chat template, without the beginning of an answer.
    """
    try:
        before, _, behind = render([{"role": "user", "content": SAID}]).partition(SAID)
    except Exception:  # it wants other chats than this one, whose borders then are words like others
        return []
    closing = [number for number in spelling.ids(behind) if number in spelling.special][:1]
    opening: list[int] = []
    for number in spelling.ids(before):
        if number in closing or number in spelling.frames:
            opening = []  # a turn that the template puts before this one ended here
        elif number in spelling.special:
            opening.append(number)
    return [*closing, *opening[:1]]


def rendered(render: Callable[[], str], whose: str, source: str) -> str:
    """What a chat template makes of a chat.

    A template is a program that comes with a model: it may refuse a chat, or fail at it, in any way.

    Args:
        render: Applies it.
        whose: The prompt, for errors.
        source: The model, for errors.

    Raises:
        PromptError: If it does.
    """
    try:
        return render()
    except Exception as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise PromptError(
            f"A chat must be one that the template of {source!r} takes, got prompt {whose[:60]!r}: "
            f"{cause[0].rstrip('.')}; try without a `system` prompt, turns of user and assistant in turn, or "
            "`chat=False`, which continues plain text."
        ) from error


def check_template(tokenizer: Any, pretrained: str, *, chat: bool, thinking: bool | None) -> None:
    """Refuse settings that the tokenizer has no template for.

    Raises:
        ConfigError: Naming the setting.
    """
    template = tokenizer.chat_template
    if chat and template is None:
        raise ConfigError(
            f"`chat` must be False for a tokenizer without chat template, got True with {pretrained!r}; try "
            "`chat=False`, which continues plain text."
        )
    if thinking is not None and not (chat and "enable_thinking" in str(template)):
        raise ConfigError(
            f"`thinking` must be None for a model whose chat template has no such switch, got {thinking} "
            f"with {pretrained!r}; try leaving it out."
        )


def check_rows(model: Any, question: Callable[[], str]) -> None:
    """Refuse what stands around every prompt and the network cannot read or go on from; warn of other tokens.

    Args:
        model: `ChatWords`, with its spelling and its ends.
        question: Renders the shortest chat.

    Raises:
        ConfigError: If every prompt ends by an end token, or holds a token without an embedding.
    """
    spelling, rows, source = model.spelling, model.vocab_size, model.pretrained
    try:
        written = spelling.ids(question()) if model.chat else spelling.begun("?")
    except Exception:  # it wants another chat, which is looked at when it comes
        written = []
    if spelling.ended(written, model.eos_ids):
        raise ConfigError(
            f"The chat template must leave the answer open, got one that ends by "
            f"{spelling.named(written[-1:])[0]!r} in {source!r}; try a template that knows "
            "`add_generation_prompt`, or `chat=False`."
        )
    beyond = spelling.beyond
    if wrong := sorted(set(written) & set(beyond)):
        raise ConfigError(
            f"`pretrained` must have an embedding for each token that stands in every prompt, got none for "
            f"{spelling.named(wrong[:5])} in {source!r}, whose network knows {rows} tokens; try "
            "`resize_token_embeddings(len(tokenizer))` before it is saved, or the tokenizer that it was "
            "published with."
        )
    if beyond:
        logger.warning(
            "%s: %d tokens of the tokenizer have no embedding, and a prompt that holds one is refused: %s.",
            source,
            len(beyond),
            ", ".join([*spelling.named(beyond[:5]), *["..."] * (len(beyond) > 5)]),
        )
