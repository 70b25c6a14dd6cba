"""Entries of a prompt source become prompts; every field is checked here, for all kinds of sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unirl_env.errors import PromptError
from unirl_env.media.pixels import check_picture, picture_digest
from unirl_env.prompts.chats import check_chat, last_question, read_images, read_messages
from unirl_env.types import Prompt

__all__ = ["MAX_CHARACTERS", "as_prompts", "canonical", "identical", "read_prompts"]

TEXT_KEYS = ("prompt", "text")
FIELDS = ("id", "negative", "metadata", "messages", "images", "image")
"""Keys of an entry that are not metadata."""
MAX_CHARACTERS = 4000
READ = "_read_up_to"
"""What a prompt that was read knows of it: the longest text that was allowed. It goes wherever the prompt
goes, into other processes too, and is not in what `dataclasses.replace` makes of it."""


def as_prompts(
    entries: Sequence[str | Mapping[str, Any] | Prompt],
    *,
    name: str = "prompts",
    column: str | None = None,
    max_characters: int = MAX_CHARACTERS,
    places: Sequence[str] | None = None,
) -> list[Prompt]:
    """The prompts that `entries` state, in their order; a prompt may occur again.

    An entry with a chat or pictures and without an id gets one that derives from all of them, so that one
    question about two pictures is two prompts. A `Prompt` that was read before is not read again.

    Args:
        entries: Each a text, a `Prompt`, or a mapping with `prompt` or `text`, and optionally `id`,
            `negative`, `metadata`, `messages` (chat turns; the text is then by default the last one of the
            user) and `images` or `image` (see `unirl_env.media.pixels`); its other keys join the metadata.
        name: What error messages call these entries.
        column: The key that holds the text; by default the first of `prompt` and `text` that is there.
        max_characters: The longest text that is accepted.
        places: Where each entry stands (`"line 3"`), for error messages.

    Raises:
        PromptError: If an entry is empty, too long or malformed.
    """
    read = read_prompts(entries, name=name, column=column, max_characters=max_characters, places=places)
    return [prompt for prompt, _ in read]


def read_prompts(
    entries: Sequence[str | Mapping[str, Any] | Prompt],
    *,
    name: str,
    column: str | None,
    max_characters: int,
    places: Sequence[str] | None,
) -> list[tuple[Prompt, str | None]]:
    """As `as_prompts`, with each prompt's line (`canonical`), or None where it was read before."""
    if isinstance(entries, str) or not isinstance(entries, Sequence | np.ndarray):
        raise PromptError(f"`prompts` must be a list of prompts, got {type(entries).__name__}; try a list.")
    places = [f"entry {i}" for i in range(len(entries))] if places is None else places
    prompts: list[tuple[Prompt, str | None]] = []
    for entry, place in zip(entries, places, strict=True):
        if type(entry) is Prompt and getattr(entry, READ, max_characters + 1) <= max_characters:
            prompts.append((entry, None))
            continue
        where = f"{name}, {place}"
        prompt, line = _checked(_as_prompt(entry, where, column), where, max_characters)
        object.__setattr__(prompt, READ, max_characters)
        prompts.append((prompt, line))
    return prompts


def _as_prompt(entry: Any, where: str, column: str | None) -> Prompt:
    """Read one entry; every field is checked for its type here, once for all kinds of sources."""
    if isinstance(entry, Prompt):
        return entry
    if isinstance(entry, str):
        return Prompt(entry)
    if not isinstance(entry, Mapping):
        raise PromptError(
            f"An entry must be a text, a mapping or a Prompt, got {type(entry).__name__} ({where})."
        )
    messages, images = read_messages(entry.get("messages"), where), read_images(entry, where)
    key = column or next((name for name in TEXT_KEYS if name in entry), TEXT_KEYS[0])
    if entry.get(key) is None and messages:
        entry = {**entry, key: last_question(messages, where)}
    if key not in entry:
        raise PromptError(
            f"An entry must have the key `{key}`, got {sorted(map(str, entry))} ({where}); "
            f"try `column=` to name the key that holds the text."
        )
    metadata = entry.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise PromptError(f"`metadata` must be a mapping, got {type(metadata).__name__} ({where}).")
    rest = {name: entry[name] for name in entry if name != key and name not in FIELDS}
    identifier = entry.get("id")
    return Prompt(
        text=entry[key],
        id="" if identifier is None else str(identifier),
        negative=entry.get("negative") or "",
        metadata={**rest, **metadata},
        messages=messages,
        images=images,
    )


def _checked(prompt: Prompt, where: str, max_characters: int) -> tuple[Prompt, str]:
    """`prompt` itself and its line, or an error that names its place."""
    for name in ("text", "id", "negative"):
        value = getattr(prompt, name)
        if not isinstance(value, str):
            raise PromptError(f"`{name}` must be a text, got {type(value).__name__} ({where}).")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"`{name}` must be valid Unicode, got {error.reason} ({where}).") from error
        if len(value) > max_characters:
            raise PromptError(
                f"`{name}` must have at most {max_characters} characters, got {len(value)} ({where}); "
                f"try a shorter text or a larger `max_characters`."
            )
    if not prompt.text.strip():
        raise PromptError(f"`text` must not be empty, got {prompt.text!r} ({where}).")
    check_chat(prompt, where, max_characters)
    try:
        for image in prompt.images:
            check_picture(image)
        digests = [picture_digest(image) for image in prompt.images]
        line = _line(prompt, digests)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, PromptError):
            raise PromptError(f"{error} ({where}, the prompt {prompt.text[:60]!r})") from error
        raise PromptError(
            f"`metadata` must have texts as keys and no cycles, got {error} ({where})."
        ) from error
    if prompt.id == prompt.text and (prompt.messages or prompt.images):
        prompt = replace(prompt, id=_derived_id(prompt, digests))
        line = _line(prompt, digests)
    return prompt, line


def canonical(prompt: Prompt, *, strict: bool = False) -> str:
    """A prompt as one line; what JSON cannot express stands there by its type, unless `strict` forbids it."""
    return _line(prompt, [picture_digest(image) for image in prompt.images], strict=strict)


def _line(prompt: Prompt, digests: list[str], *, strict: bool = False) -> str:
    """`canonical`, from the digests of the pictures."""
    row: list[Any] = [prompt.text, prompt.id, prompt.negative, dict(prompt.metadata)]
    if prompt.messages or prompt.images:
        row += [list(prompt.messages), digests]
    return json.dumps(row, sort_keys=True, default=None if strict else _type_name)


def identical(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts are equal in everything; metadata that JSON cannot express counts as different."""
    try:
        return one is other or canonical(one, strict=True) == canonical(other, strict=True)
    except (TypeError, ValueError):
        return False


def _derived_id(prompt: Prompt, digests: list[str]) -> str:
    content = [prompt.text, list(prompt.messages), digests]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=_type_name).encode()).hexdigest()
    return f"{prompt.text[:60]}#{digest[:16]}"


def _type_name(value: Any) -> str:
    return f"<{type(value).__name__}>"
