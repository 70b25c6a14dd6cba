"""From the words of a configuration to a scorer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.registry import instance
from unirl_env.rewards.compose import Minimum, Product, WeightedSum
from unirl_env.rewards.names import SCORERS
from unirl_env.rewards.scoring import checked_scorer
from unirl_env.rewards.secrets import resolved
from unirl_env.types import Scorer

__all__ = ["build_scorer", "for_mode", "needs_of"]


def build_scorer(spec: Any) -> Scorer:
    """Make a scorer.

    Args:
        spec: A scorer; a registered name or a dotted path; `{name: ..., option: value}`; or a composition:
            `{name: weighted_sum, parts: {clip: 1.0, sharp: {name: my.module.Sharp, weight: 0.2}}}`,
            `{name: product | minimum, parts: {...}}`,
            `{name: gate, gate: spec, scorer: spec, threshold: 0.5}`,
            `{name: overlong, scorer: spec, mode: zero}`. Options that a class lists in its `wraps` are
            scorers, and built like this one. `env:NAME` stands for what the environment variable NAME holds.

    Raises:
        ConfigError: If the words name nothing, the options do not fit what they name, or a variable is not
            set.
    """
    spec = resolved(spec, "reward")
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


def needs_of(spec: Any) -> dict[str, bool]:
    """What a reward looks at, told without building it.

    A scorer says so by its class's `needs`, names of fields of `Sample`; one whose needs depend on its
    options, by a static method `needs_with(**options)`. Scorers around others need what those need;
    `tolerates` names what they can do without.

    Returns:
        Field to whether every sample must have it; nothing for functions and others that say nothing.

    Raises:
        ConfigError: If a name is unknown.
    """
    if not isinstance(spec, str | Mapping):
        name, options, target = "", {}, spec if isinstance(spec, type) else type(spec)
    else:
        options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
        name = options.pop("name", None)
        target = SCORERS.get(name)
    if hasattr(target, "needs_with"):
        return dict.fromkeys(target.needs_with(**options), True)
    found = dict.fromkeys(getattr(target, "needs", ()), True)
    inner = [options[part] for part in getattr(target, "wraps", ()) if part in options]
    if name in ("weighted_sum", "product", "minimum"):
        for part, own in _parts(name, dict(options)).items():
            own = _named(part, part if isinstance(own, int | float) else own)
            inner.append({k: v for k, v in own.items() if k != "weight"} if isinstance(own, Mapping) else own)
    for part in inner:
        for field, always in needs_of(part).items():
            found[field] = found.get(field, False) or always
    return found | dict.fromkeys(set(getattr(target, "tolerates", ())) & set(found), False)


def for_mode(spec: Any, mode: Any, label: str = "reward.train") -> Any:
    """The reward as a mode can pay it.

    Where an episode may end without a picture, a reward of pictures is paid through `pictured`, under which
    such an episode earns 0.

    Args:
        spec: The reward.
        mode: A `Mode`: its `name`, and what it `gives`.
        label: What the setting is called.

    Raises:
        ConfigError: If the reward looks at something that the mode never makes.
    """
    given, needs = mode.gives, needs_of(spec)
    if given is None:
        return spec
    missing = sorted(set(needs) - set(given))
    if missing:
        raise ConfigError(
            f"`{label}` must be a reward of {' or '.join(given)} in mode {mode.name!r}, got one of "
            f"{' and '.join(missing)}; try another reward, or another recipe."
        )
    return {"name": "pictured", "scorer": spec} if needs.get("image") and not given["image"] else spec


def _instance(name: str, options: dict[str, Any]) -> Scorer:
    target = SCORERS.get(name)
    if inspect.isclass(target):
        for part in getattr(target, "wraps", ()):
            if part not in options:
                raise ConfigError(f"Reward {name!r} must have `{part}`, got {sorted(options)}.")
            options[part] = build_scorer(options[part])
    return instance(target, options, f"reward {name!r}")


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
