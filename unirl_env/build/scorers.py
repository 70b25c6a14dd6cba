"""From the words of a configuration to a scorer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.rewards import SCORERS, Minimum, Product, WeightedSum, checked_scorer
from unirl_env.types import Scorer

__all__ = ["build_scorer"]


def build_scorer(spec: Any) -> Scorer:
    """Make a scorer.

    Args:
        spec: A scorer; a registered name or a dotted path; `{name: ..., option: value}`; or a composition:
            `{name: weighted_sum, parts: {clip: 1.0, sharp: {name: my.module.Sharp, weight: 0.2}}}`,
            `{name: product | minimum, parts: {...}}`,
            `{name: gate, gate: spec, scorer: spec, threshold: 0.5}`,
            `{name: overlong, scorer: spec, mode: zero}`. Options that a class lists in its `wraps` are
            scorers, and built like this one.

    Raises:
        ConfigError: If the words name nothing, or the options do not fit what they name.
    """
    if isinstance(spec, str):
        return _instance(spec, {})
    if isinstance(spec, Mapping):
        options = dict(spec)
        name = options.pop("name", None)
        if not name:
            raise ConfigError(f"A reward must have a `name`, got {dict(spec)!r}.")
        if name == "weighted_sum":
            return WeightedSum({part: _weighted(part, spec) for part, spec in _parts(name, options).items()})
        if name in ("product", "minimum"):
            made = {part: build_scorer(_named(part, spec)) for part, spec in _parts(name, options).items()}
            return (Product if name == "product" else Minimum)(made)
        return _instance(name, options)
    if callable(spec):
        return checked_scorer(spec)
    raise ConfigError(f"A reward must be a name, a mapping or a callable, got {type(spec).__name__}.")


def _instance(name: str, options: dict[str, Any]) -> Scorer:
    target = SCORERS.get(name)
    if inspect.isclass(target):
        for part in getattr(target, "wraps", ()):
            if part not in options:
                raise ConfigError(f"Reward {name!r} must have `{part}`, got {sorted(options)}.")
            options[part] = build_scorer(options[part])
        return _called(target, name, options)
    if options:
        raise ConfigError(f"Reward {name!r} is a function and takes no options, got {sorted(options)}.")
    return target


def _called(target: Any, name: str, options: dict[str, Any]) -> Scorer:
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        raise ConfigError(f"The options of reward {name!r} do not fit: {error}.") from error
    return target(**options)


def _parts(name: str, options: dict[str, Any]) -> dict[str, Any]:
    parts = options.pop("parts", None)
    if not isinstance(parts, Mapping) or not parts or options:
        raise ConfigError(
            f"Reward {name!r} must have `parts: {{name: ...}}` and nothing else, got {options}."
        )
    return dict(parts)


def _named(part: str, spec: Any) -> Any:
    return {"name": part, **spec} if isinstance(spec, Mapping) else spec


def _weighted(part: str, spec: Any) -> tuple[Scorer, float]:
    if isinstance(spec, int | float):
        return build_scorer(part), float(spec)
    if not isinstance(spec, Mapping):
        raise ConfigError(f"Part {part!r} of a weighted sum must be a weight or a mapping, got {spec!r}.")
    options = _named(part, spec)
    weight = options.pop("weight", 1.0)
    return build_scorer(options), float(weight)
