"""How a tokenizer reads and writes a model's texts: which tokens belong to a text and which only frame it.

Two kinds of tokens have a name of their own. *Frames* end, pad or begin a text or a turn (`<|im_end|>`,
`<pad>`, `<s>`): they are no part of what was said, and `text` leaves them out. All others (`<think>`,
`</answer>`, `<|channel|>`, `[TOOL_CALLS]`) are words of the model, whether or not the tokenizer calls them
special, and `text` shows them.

What somebody types is text. A chat reaches the tokenizer as one string, in which a mark that a user typed
looks like the template's own; `quoted` puts a stand-in in its place before the template is applied, and `ids`
spells it out in letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from unirl_env.errors import ConfigError

UNKNOWN = "\ufffd"
"""Shown for a token without a text: networks often have more rows than the tokenizer has tokens."""
_BORDER = "\ue000"
_STAND_IN = re.compile(f"{_BORDER}(\\d+){_BORDER}")
"""The number of a token between two signs that no font and no language uses."""


class Spelling:
    """The reading and writing of one tokenizer.

    Args:
        tokenizer: A tokenizer of transformers.
        frames: Tokens that end, pad or begin a text or a turn. Those that are ordinary words of the
            vocabulary (a line break that ends an answer) stay words.
        places: Tokens that stand for a picture or a video; typed, they are text in every turn.
        rows: How many tokens the network has embeddings for; None for all.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        frames: Iterable[int | None],
        places: Iterable[int | None] = (),
        rows: int | None = None,
    ):
        self._tokenizer = tokenizer
        self._added = dict(tokenizer.added_tokens_decoder)
        special = set(tokenizer.all_special_ids)
        self.frames = frozenset(token for token in frames if token in self._added or token in special)
        self.special = special | {number for number, token in self._added.items() if token.special}
        structure = self.frames | {token for token in places if token in self._added}
        self.beyond = tuple(sorted(n for n in self._known if rows is not None and n >= rows))
        kinds = {
            "user": self.special | structure,
            "assistant": structure,
            "script": structure - self.frames,
            "tool": self.special | structure | set(self.beyond),
        }
        self._marks = {by: _Marks({self._name(n): n for n in sorted(kinds[by])}) for by in kinds}

    def quoted(self, text: str, *, by: str = "user") -> str:
        """`text` with stand-ins for marks that are typed in it; itself where there are none.

        Args:
            text: What somebody said.
            by: Who: of a `"user"`, all special tokens are letters; the `"assistant"` is the model, whose own
                marks (a thought, a call) stay tokens; a `"script"` is written with all marks, and only those
                that stand for pictures are letters; of a `"tool"`, which speaks in the middle of an episode,
                also tokens that the network does not know.
        """
        marks = self._marks[by]
        if _BORDER in text:
            # The sign itself, typed: behind all numbers of tokens, so that it cannot be taken for a border.
            text = "".join(f"{_BORDER}{ord(_BORDER) + 2**32}{_BORDER}" if c == _BORDER else c for c in text)
        found = list(marks.found(text))
        for start, end, number in reversed(found):
            text = f"{text[:start]}{_BORDER}{number}{_BORDER}{text[end:]}"
        return text

    def quoted_turns(self, turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Chat turns whose texts are `quoted`, those of calls and thoughts in fields of their own, too."""
        return [
            self._quoted(turn, "assistant" if turn.get("role") == "assistant" else "user") for turn in turns
        ]

    def ids(self, rendered: str) -> list[int]:
        """The tokens of a rendered text: its marks are tokens, and stand-ins are the letters of theirs."""
        if _BORDER not in rendered:
            return self._tokens(rendered)
        ids, plain = [], ""
        for piece in self._pieces(rendered):
            if _BORDER in piece:
                ids += [*(self._tokens(plain) if plain else []), *self._letters(piece)]
                plain = ""
            else:
                plain += piece
        return ids + (self._tokens(plain) if plain else [])

    def begun(self, rendered: str) -> list[int]:
        """`ids` behind what the tokenizer puts before every text, once, and without what it puts behind.

        The policy goes on from there: a text that the tokenizer closed (an end token, a separator) would be
        over before the model may say anything.
        """
        ids, beginning = self.ids(rendered), self._beginning
        return ids if beginning and ids[: len(beginning)] == beginning else [*beginning, *ids]

    def ended(self, ids: Sequence[int], ends: Iterable[int]) -> bool:
        """Whether `ids`, behind which a text is to go on, end by one of the tokens `ends`.

        What the tokenizer puts before every text is no end, though some models use one token for both.
        """
        return bool(ids) and ids[-1] in self.frames and ids[-1] in set(ends) and list(ids) != self._beginning

    def text(self, tokens: Iterable[int]) -> str:
        """What `tokens` say, without frames; `UNKNOWN` for each that has no text."""
        shown = [number for number in map(int, tokens) if number not in self.frames]
        if self._known.issuperset(shown):
            return self._decoded(shown)
        said, run = "", []
        for number in shown:
            if number in self._known:
                run.append(number)
            else:
                said, run = said + self._decoded(run) + UNKNOWN, []
        return said + self._decoded(run)

    def named(self, tokens: Iterable[int]) -> list[str]:
        """The tokens' names, for messages."""
        return [self._name(number) for number in tokens]

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_vocab().values()) | frozenset(self._added)

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer puts before a text, seen on a short one.

        Raises:
            ConfigError: If it does more than to put tokens before and behind.
        """
        framed, bare = self._tokenizer("a").input_ids, self._tokens("a")
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return list(framed[:start])
        raise ConfigError(
            f"The tokenizer must put its own tokens before or behind a text, got {framed} for a text of "
            f"{bare}; try `chat=True`, whose template says what stands there."
        )

    def _quoted(self, value: Any, by: str) -> Any:
        if isinstance(value, str):
            return self.quoted(value, by=by)
        if isinstance(value, Mapping):
            return {key: self._quoted(inner, by) for key, inner in value.items()}
        return [self._quoted(inner, by) for inner in value] if isinstance(value, list | tuple) else value

    def _pieces(self, rendered: str) -> Iterator[str]:
        """`rendered` cut before and behind each mark, as the tokenizer cuts it."""
        at = 0
        for start, end, _ in self._marks["user"].found(rendered):
            yield rendered[at:start]
            yield rendered[start:end]
            at = end
        yield rendered[at:]

    def _letters(self, piece: str) -> list[int]:
        """The tokens of a piece with stand-ins, in which no mark is a token."""
        ids = self._tokens(
            _STAND_IN.sub(lambda found: self._mark(found[1]), piece), split_special_tokens=True
        )
        if self._marks["tool"].numbers.isdisjoint(ids):
            return ids
        # The tokenizer does not call this mark special and takes it for a token anyway; no half of it is one.
        first, *rest = _STAND_IN.split(piece)
        halves = [first]
        for digits, behind in zip(rest[::2], rest[1::2], strict=True):
            mark = self._mark(digits)
            halves[-1] += mark[:1]
            halves.append(mark[1:] + behind)
        return [n for half in halves if half for n in self._tokens(half, split_special_tokens=True)]

    def _mark(self, digits: str) -> str:
        number = int(digits)
        return chr(number - 2**32) if number >= 2**32 else self._name(number)

    def _name(self, number: int) -> str:
        token = self._added.get(number)
        return str(token if token is not None else self._tokenizer.convert_ids_to_tokens(number))

    def _tokens(self, text: str, **options: Any) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, **options).input_ids)

    def _decoded(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        return self._tokenizer.decode(
            list(tokens),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )


class _Marks:
    """Names of tokens, and where they stand in a text: the longest first, from left to right."""

    def __init__(self, numbers: Mapping[str, int]):
        self._numbers = {name: number for name, number in numbers.items() if name}
        self.numbers = frozenset(self._numbers.values())
        self._lengths = sorted({len(name) for name in self._numbers}, reverse=True)
        # Most texts hold none of the first signs, and a vocabulary may have thousands of marks.
        first = "".join(sorted({re.escape(name[0]) for name in self._numbers}))
        self._first = re.compile(f"[{first}]") if first else None

    def found(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Start, end and number of each mark in `text`."""
        at = 0
        while self._first is not None and (sign := self._first.search(text, at)):
            start = at = sign.start()
            for length in self._lengths:
                number = self._numbers.get(text[start : start + length])
                if number is not None and len(text) >= start + length:
                    yield start, start + length, number
                    at = start + length
                    break
            else:
                at = start + 1
