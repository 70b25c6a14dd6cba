"""What a reward asks of a prompt, found out before anything is played.

A scorer says so by `asks`: names such as `"metadata.answer"` or `"images"`, or a function (a method, too)
that is given a prompt and raises where it cannot be judged. A `ContractError` means that scoring would raise
as well, any other error that the score would be invalid. A class whose demands depend on its options says
them by a static method `asks_with(**options)`, so that it need not be built to be asked; a function has the
attribute `asks`. Scorers around others pass on what those ask for; a part of weight 0 asks for nothing.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.rewards.scoring import scorer_name
from unirl_env.rewards.spec import read_spec
from unirl_env.types import Prompt

logger = logging.getLogger(__name__)

Ask = Callable[[Prompt], Any]
"""Raises where a prompt lacks something; what it returns does not matter."""
FIELDS = ("text", "negative", "messages", "images")
SHOWN = 3


def asks_of(spec: Any) -> dict[str, list[Ask]]:
    """What a reward asks of prompts, by the names of the scorers inside it.

    Args:
        spec: A scorer, or the words for one, as `build_scorer` takes them; words are not built.

    Raises:
        ConfigError: If a name is unknown, or an `asks` makes no sense.
    """
    if isinstance(spec, str | Mapping):
        words = read_spec(spec)
        name, target = words.name, words.target
        own = target.asks_with(**words.options) if hasattr(target, "asks_with") else _declared(target)
        inner = [one for one, weight in words.inner.values() if weight]
    else:
        name, own, inner = scorer_name(spec), getattr(spec, "asks", ()), _inside(spec)
    found: dict[str, list[Ask]] = {}
    if asked := _functions(own, name):
        found[str(name)] = asked
    for one in inner:
        for key, several in asks_of(one).items():
            found.setdefault(key, []).extend(several)
    return found


def require_judgeable(
    spec: Any,
    prompts: Iterable[Prompt],
    *,
    reward: str = "scorer",
    source: str = "prompts",
    strict: bool = True,
) -> None:
    """Refuse prompts that lack what a reward asks for, all of them at once.

    Args:
        spec: As for `asks_of`.
        prompts: A `PromptSource`, whose places are named, or any prompts.
        reward: What an error calls the reward.
        source: What it calls the prompts.
        strict: Refuse also what would only give invalid scores; else that is a warning.

    Raises:
        PromptError: Naming the prompts and what they lack.
        ConfigError: As `asks_of`.
    """
    asked = asks_of(spec)
    faults: list[str] = []
    count, stops = 0, False
    for prompt in prompts if asked else ():
        count += 1
        said = _faults(prompt, asked)
        if said:
            place = getattr(prompts, "places", {}).get(prompt.id, "")
            words = "; ".join(words for words, _ in said)
            faults.append(f"{place}{': ' if place else ''}the prompt {prompt.id[:60]!r}: {words}")
            stops = stops or any(stop for _, stop in said)
    if not faults:
        return
    name = getattr(prompts, "name", "")
    shown = [*faults[:SHOWN], *([f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else [])]
    told = (
        f"Every prompt of `{source}`{f' ({name})' if name else ''} must have what `{reward}` asks for, got "
        f"{len(faults)} of {count} that lack it: {' | '.join(shown)}. Try adding it there, leaving these "
        f"prompts out, or another reward{' (scorer=None for none)' if reward == 'scorer' else ''}."
    )
    if not (strict or stops):
        logger.warning("Scores will be invalid. %s", told)
        return
    raise PromptError(told)


def _faults(prompt: Prompt, asked: Mapping[str, Sequence[Ask]]) -> list[tuple[str, bool]]:
    """What a prompt lacks, and whether scoring it would raise."""
    found = []
    for name, several in asked.items():
        for ask in several:
            try:
                ask(prompt)
            except Exception as error:  # a check of somebody's own may raise anything
                kind = "" if isinstance(error, ValueError | ContractError) else f"{type(error).__name__}: "
                found.append((f"`{name}`: {kind}{error}".rstrip("."), isinstance(error, ContractError)))
    return found


def _declared(target: Any) -> Any:
    """What a class or function says; a method is left until there is an object."""
    found = inspect.getattr_static(target, "asks", ())
    if isinstance(found, staticmethod | classmethod):
        return target.asks
    return () if inspect.isclass(target) and callable(found) else found


def _functions(asks: Any, name: Any) -> list[Ask]:
    if callable(asks):
        return [asks]
    names = [asks] if isinstance(asks, str) else asks
    if not isinstance(names, Iterable):
        names = [names]
    return [_has(one, name) for one in names]


def _has(field: Any, name: Any) -> Ask:
    """A check that a prompt has something in a field."""
    head, *keys = field.split(".") if isinstance(field, str) else ("",)
    if not (head in FIELDS and not keys) and not (head == "metadata" and keys and all(keys)):
        raise ConfigError(
            f"`asks` of the reward {name!r} must be names such as 'metadata.answer' or of {list(FIELDS)}, or "
            f"a function of a prompt, got {field!r}."
        )

    def ask(prompt: Prompt) -> None:
        found: Any = getattr(prompt, head)
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None or (isinstance(found, str | Sequence | Mapping) and not len(found)):
            there = f"; there are {sorted(map(str, prompt.metadata))}" if keys else ""
            raise ContractError(f"`{field}` must be there, got {found!r}{there}")

    return ask


def _inside(scorer: Any) -> list[Any]:
    """The scorers inside a composition that is built."""
    parts, weights = getattr(scorer, "parts", None), getattr(scorer, "weights", {})
    if isinstance(parts, Mapping):
        return [part for name, part in parts.items() if callable(part) and weights.get(name, 1.0)]
    named = (getattr(scorer, name, None) for name in getattr(scorer, "wraps", ()))
    return [one for one in named if callable(one)]
