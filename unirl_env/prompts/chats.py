"""Chats and pictures of a prompt entry, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unirl_env.errors import PromptError
from unirl_env.media.pixels import as_source
from unirl_env.types import Prompt

EXAMPLE = '{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}'
PARTS = {"text": {"type", "text"}, "image": {"type"}}
"""What a part of a turn may hold, by its type."""


def read_messages(messages: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The chat turns of an entry. Keys whose value is None, as tables have them, are left out.

    Raises:
        PromptError: If they are no list of turns.
    """
    if messages is None:
        return ()
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise PromptError(
            f"`messages` must be a list of turns, got {type(messages).__name__} ({where}); try [{EXAMPLE}]."
        )
    return tuple(_turn(message, where) for message in messages)


def read_images(entry: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """The pictures of an entry, under `images` or `image`.

    Raises:
        PromptError: If they are no pictures, or under both.
    """
    images, image = entry.get("images"), entry.get("image")
    if images is not None and image is not None:
        raise PromptError(f"An entry must have either `images` or `image`, got both ({where}).")
    if image is not None:
        images = [image]
    if images is None:
        return ()
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise PromptError(
            f"`images` must be a list, got {type(images).__name__} ({where}); try `image` for a single one."
        )
    try:
        return tuple(as_source(each) for each in images)
    except PromptError as error:
        raise PromptError(f"{error} ({where})") from error


def last_question(messages: Sequence[Mapping[str, Any]], where: str) -> str:
    """The text of the user's last turn.

    Raises:
        PromptError: If there is none.
    """
    for message in reversed(messages):
        if message["role"] == "user":
            return " ".join(part for part in _texts(message) if part.strip())
    raise PromptError(f"`messages` must have a turn of the user, got none ({where}); try a `prompt` as well.")


def check_chat(prompt: Prompt, where: str, max_characters: int) -> None:
    """Check the turns of a prompt, and that each picture has its place in them.

    Raises:
        PromptError: If a turn is malformed or too long, or pictures and places differ in number.
    """
    places = 0
    for message in read_messages(prompt.messages, where):
        for text in _texts(message):
            if len(text) > max_characters:
                raise PromptError(
                    f"A turn must have at most {max_characters} characters, got {len(text)} ({where}); "
                    "try a shorter chat or a larger `max_characters`."
                )
        if not isinstance(message["content"], str):
            places += sum(part["type"] == "image" for part in message["content"])
    if prompt.messages and places != len(prompt.images):
        raise PromptError(
            f"`messages` must have a place for each of {len(prompt.images)} pictures, got {places} "
            f"({where}); try {EXAMPLE}."
        )


def _turn(message: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(
            f"A turn of `messages` must be a mapping, got {type(message).__name__} ({where}); try {EXAMPLE}."
        )
    turn = {name: value for name, value in message.items() if value is not None}
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not role:
        raise PromptError(f"A turn of `messages` must have a `role`, got {role!r} ({where}); try 'user'.")
    if isinstance(content, str):
        return turn
    if not isinstance(content, Sequence) or not content:
        raise PromptError(
            f"The `content` of a turn must be a text or a list of parts, got {type(content).__name__} "
            f"({where}); try {EXAMPLE}."
        )
    return {**turn, "content": [_part(part, where) for part in content]}


def _part(part: Any, where: str) -> Mapping[str, Any]:
    kept = {k: v for k, v in part.items() if v is not None} if isinstance(part, Mapping) else {}
    kind = kept.get("type")
    if kind not in PARTS or set(kept) != PARTS[kind] or not isinstance(kept.get("text", ""), str):
        shown = sorted(map(str, kept)) if kept else type(part).__name__
        raise PromptError(
            f"A part of a turn must be an image or a text, got type {kind!r} with {shown} ({where}); try "
            f"{EXAMPLE}, with the pictures under `images`."
        )
    return kept


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]
