"""Where prompts come from: a list, a file, a data set on disk, or a set that ships with the library.

The order is a pure function of `(seed, position)`: epoch `position // N` visits the N prompts in its own
permutation. A run that stored one integer goes on exactly where it stopped, and no reader holds a cursor.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unirl_env.errors import PromptError
from unirl_env.prompts.entries import (
    MAX_CHARACTERS,
    as_prompts,
    canonical,
    identical,
    read_prompts,
)
from unirl_env.prompts.files import read_entries
from unirl_env.types import Prompt

__all__ = ["MAX_CHARACTERS", "PromptSource", "as_prompts"]

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
