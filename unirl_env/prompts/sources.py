"""Where prompts come from: a list, a file, a data set on disk, or a set that ships with the library.

Entries of all kinds of sources become prompts by `as_prompts`, which checks every field.

The order is a pure function of `(seed, position)`: epoch `position // N` visits the N prompts in its own
permutation. A run that stored one integer goes on exactly where it stopped, and no reader holds a cursor.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unirl_env.errors import PromptError
from unirl_env.media.pixels import check_picture, picture_digest
from unirl_env.prompts.chats import check_chat, last_question, read_images, read_messages
from unirl_env.prompts.files import read_entries
from unirl_env.types import Prompt

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


logger = logging.getLogger(__name__)


class PromptSource:
    """N distinct prompts and a seeded order over them.

    Identical entries are kept once, so that an epoch never repeats a prompt. Two entries of one id that
    differ in anything are refused: noise, groups and logs are keyed by the id.

    Args:
        entries: As for `as_prompts`.
        name: What error messages and logs call this source.
        column: The key that holds the text; by default the first of `prompt` and `text` that is there.
        max_characters: The longest text that is accepted.
        places: Where each entry stands (`"line 3"`), for error messages.

    Attributes:
        prompts: The prompts, each once.
        places: By id, where each of them stands first.
        fingerprint: SHA-256 of the prompts in their order, taken as they are read. Pictures count by their
            content, metadata that JSON cannot express by its type.

    Raises:
        PromptError: If there is no entry, or an entry is empty, too long, malformed, or reuses an id.
    """

    def __init__(
        self,
        entries: Sequence[str | Mapping[str, Any] | Prompt],
        *,
        name: str = "prompts",
        column: str | None = None,
        max_characters: int = MAX_CHARACTERS,
        places: Sequence[str] | None = None,
    ):
        self.name = name
        kept: dict[str, Prompt] = {}
        self.places: dict[str, str] = {}
        read = read_prompts(entries, name=name, column=column, max_characters=max_characters, places=places)
        digest = hashlib.sha256()
        for i, (prompt, line) in enumerate(read):
            if prompt.id not in kept:
                digest.update((canonical(prompt) if line is None else line).encode() + b"\n")
            self.places.setdefault(prompt.id, places[i] if places is not None else f"entry {i}")
            if not identical(kept.setdefault(prompt.id, prompt), prompt):
                raise PromptError(
                    f"`id` must belong to one prompt only, got {prompt.id[:60]!r} twice with different "
                    f"content in {name}; try giving every prompt an id of its own."
                )
        if not kept:
            raise PromptError(f"`prompts` must hold at least one prompt, got none from {name}.")
        if len(kept) < len(entries):
            logger.warning("%s: %d identical prompts are kept once.", name, len(entries) - len(kept))
        self.prompts: tuple[Prompt, ...] = tuple(kept.values())
        self.fingerprint = digest.hexdigest()
        self._order: tuple[tuple[int, int], list[int]] | None = None

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str] | Sequence[str | Mapping[str, Any] | Prompt] | PromptSource,
        *,
        column: str | None = None,
        split: str | None = None,
        max_characters: int = MAX_CHARACTERS,
    ) -> PromptSource:
        """A source from whatever names one.

        Args:
            source: A list of entries (see the class); a `.txt` file (a prompt per line; empty lines and lines
                that begin with `#` are skipped); a `.jsonl` file (an entry per line; empty lines are
                skipped); a directory written by `datasets.Dataset.save_to_disk`; the name of a shipped
                set, such as `shapes_train`; or a `PromptSource`, which is returned as it is.
            column: The key or column that holds the text.
            split: The split of a data set that has several; by default `train`.
            max_characters: The longest text that is accepted.

        Raises:
            PromptError: If the source cannot be read or holds something that cannot be used.
            MissingExtra: If a data set is named and `datasets` is not installed.
        """
        if isinstance(source, PromptSource):
            return source
        entries: Sequence[Any]
        if isinstance(source, (str, os.PathLike)):
            entries, places = read_entries(source, split)
            name = str(source)
        elif isinstance(source, Sequence):
            entries, places, name = source, None, "the list of prompts"
        else:
            raise PromptError(
                f"`prompts` must be a list, a path or a shipped set's name, got {type(source).__name__}; "
                f"try a list of texts."
            )
        return cls(entries, name=name, column=column, max_characters=max_characters, places=places)

    def __len__(self) -> int:
        return len(self.prompts)

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptSource:
        return self  # Nobody changes it, and its pictures may be many.

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __repr__(self) -> str:
        return f"PromptSource({self.name!r}, {len(self)} prompts, {self.fingerprint[:12]})"

    def take(self, position: int, count: int, seed: int | None = 0) -> list[Prompt]:
        """The `count` prompts from `position` on, in the order that `seed` gives.

        Position p belongs to epoch `p // N`, and each epoch has its own permutation, in which no prompt
        repeats; a call that crosses from one epoch to the next may return a prompt twice.

        Args:
            position: How many prompts were taken before, over all epochs.
            count: How many to take.
            seed: The key of the permutations; `None` keeps the source's own order.

        Raises:
            PromptError: If `position` or `count` is negative.
        """
        if position < 0 or count < 0:
            raise PromptError(f"`position` and `count` must be at least 0, got {position} and {count}.")
        taken = []
        for place in range(position, position + count):
            epoch, offset = divmod(place, len(self))
            taken.append(self.prompts[offset if seed is None else self._permutation(seed, epoch)[offset]])
        return taken

    def _permutation(self, seed: int, epoch: int) -> list[int]:
        # Sorting by hashes, unlike a library's shuffle, gives the same order under every version of it.
        if self._order is None or self._order[0] != (seed, epoch):
            keys = [hashlib.blake2b(f"{seed}/{epoch}/{i}".encode()).digest() for i in range(len(self))]
            self._order = ((seed, epoch), sorted(range(len(self)), key=keys.__getitem__))
        return self._order[1]


def sample_offsets(prompts: Sequence[Prompt], group_size: int) -> list[int]:
    """The sample id of each group's first episode `[P]`; a prompt that occurs again goes on with further ids.

    Args:
        prompts: P prompts, each of a group.
        group_size: G, episodes per group.
    """
    seen: Counter[str] = Counter()
    offsets = []
    for prompt in prompts:
        offsets.append(seen[prompt.id])
        seen[prompt.id] += group_size
    return offsets
