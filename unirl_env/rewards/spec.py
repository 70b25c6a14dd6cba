"""From the words of a configuration to a scorer, and what they say before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unirl_env.arguments.extras import require_extra
from unirl_env.arguments.signatures import options_of, require_own
from unirl_env.errors import ConfigError
from unirl_env.registry import instance, require_fit
from unirl_env.rewards.scorer_names import SCORERS
from unirl_env.rewards.scoring import checked_scorer
from unirl_env.rewards.secrets import resolved
from unirl_env.types import Scorer

COMPOSITIONS = ("weighted_sum", "product", "minimum")
EXTRAS = {
    "aesthetic": ("open_clip", "open_clip_torch", "clip"),
    "clip": ("open_clip", "open_clip_torch", "clip"),
    "hpsv2": ("open_clip", "open_clip_torch", "clip"),
    "http": ("httpx", "httpx", "remote"),
    "judge": ("httpx", "httpx", "remote"),
    "math": ("math_verify", "math-verify", "math"),
    "remote": ("httpx", "httpx", "remote"),
}
"""By reward: the module that it imports, its package, and the extra that installs it."""


@dataclass(frozen=True)
class RewardSpec:
    """A reward as a configuration names it.

    Attributes:
        name: A registered name or a dotted path.
        target: The class or function that it names.
        options: All but the name.
        inner: The rewards inside it, each with the weight that it has there, by option or by part.
    """

    name: str
    target: Any
    options: Mapping[str, Any]
    inner: Mapping[str, tuple[Any, float]]


def read_spec(spec: str | Mapping[str, Any]) -> RewardSpec:
    """What a name, or a mapping with a name, says.

    Raises:
        ConfigError: If it names nothing, or is a composition without parts.
    """
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"A reward must have a `name`, got {spec!r}; try {{'name': 'shapes'}}.")
    target = SCORERS.get(name)
    if name in COMPOSITIONS:
        return RewardSpec(name, target, options, dict(_parts(name, options)))
    wraps = getattr(target, "wraps", ())
    return RewardSpec(
        name, target, options, {part: (options[part], 1.0) for part in wraps if part in options}
    )


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
    if not isinstance(spec, str | Mapping):
        if callable(spec):
            return checked_scorer(spec)
        raise ConfigError(f"A reward must be a name, a mapping or a callable, got {type(spec).__name__}.")
    words = read_spec(spec)
    _require_inner(words)
    made = {part: build_scorer(inner) for part, (inner, _) in words.inner.items()}
    if words.name == "weighted_sum":
        return words.target({part: (scorer, words.inner[part][1]) for part, scorer in made.items()})
    if words.name in COMPOSITIONS:
        return words.target(made)
    return instance(words.target, {**words.options, **made}, f"reward {words.name!r}")


def check_reward(spec: Any) -> None:
    """Refuse a reward that is unknown, whose options do not fit, or whose package is not installed.

    Nothing is built. What its signature cannot say (one of two options, a file that does not ship) a class
    says by a static method `check_with(**options)`, which raises what its constructor would.

    Args:
        spec: What `build_scorer` understands.

    Raises:
        ConfigError: Naming the reward and the option that is missing or unknown.
        MissingExtra: If its package is missing.
    """
    if not isinstance(spec, str | Mapping):
        if not callable(spec):
            raise ConfigError(
                f"A reward must be a name, a mapping or a callable, got {spec!r}; try 'shapes', or "
                "{'name': 'clip'}."
            )
        return
    words = read_spec(spec)
    if words.name in EXTRAS:
        require_extra(*EXTRAS[words.name])
    for inner, _ in words.inner.values():
        check_reward(inner)
    if words.name not in COMPOSITIONS:
        own = f"The options of reward {words.name!r} must be its own"
        require_own(words.options, options_of(words.target), own)
        _require_inner(words)
        require_fit(words.target, words.options, f"reward {words.name!r}")
    if hasattr(words.target, "check_with"):
        plain = {name: value for name, value in words.options.items() if name not in words.inner}
        words.target.check_with(**resolved(plain, f"reward {words.name!r}"))


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
    if isinstance(spec, str | Mapping):
        words = read_spec(spec)
    else:
        words = RewardSpec("", spec if isinstance(spec, type) else type(spec), {}, {})
    if hasattr(words.target, "needs_with"):
        return dict.fromkeys(words.target.needs_with(**words.options), True)
    found = dict.fromkeys(getattr(words.target, "needs", ()), True)
    for inner, _ in words.inner.values():
        for field, always in needs_of(inner).items():
            found[field] = found.get(field, False) or always
    return found | dict.fromkeys(set(getattr(words.target, "tolerates", ())) & set(found), False)


def for_mode(
    spec: Any, mode: Any, label: str = "reward.train", arguments: Mapping[str, Any] | None = None
) -> Any:
    """The reward as a mode can pay it.

    Where an episode may end without a picture or a clip, a reward of these is paid through `pictured`, under
    which such an episode earns 0.

    Args:
        spec: The reward.
        mode: A `Mode`: its `name`, and what it `gives`.
        label: What the setting is called.
        arguments: The environment's, where what the mode gives depends on its model.

    Raises:
        ConfigError: If the reward looks at something that the mode never makes.
    """
    given = mode.gives if arguments is None else mode.given(arguments)
    needs = needs_of(spec)
    if given is None:
        return spec
    missing = sorted(set(needs) - set(given))
    if missing:
        raise ConfigError(
            f"`{label}` must be a reward of {' or '.join(given)} in mode {mode.name!r}, got one of "
            f"{' and '.join(missing)}; try {_remedy(spec, given, missing)}another reward, or another recipe."
        )
    may_lack = any(needs.get(field) and not given[field] for field in ("image", "video"))
    return {"name": "pictured", "scorer": spec} if may_lack else spec


def _require_inner(words: RewardSpec) -> None:
    """Refuse a reward around others that lacks one of them."""
    for part in getattr(words.target, "wraps", ()):
        if part not in words.inner:
            raise ConfigError(
                f"Reward {words.name!r} must have `{part}`, got {sorted(words.options)}; try "
                f"{{name: {words.name}, {part}: ...}} with the reward that it changes."
            )


def _remedy(spec: Any, given: Mapping[str, bool], missing: list[str]) -> str:
    """How a reward of pictures judges clips."""
    if missing != ["image"] or "video" not in given:
        return ""
    scorer = f"{spec if isinstance(spec, str) else '...'}"
    return f"{{name: over_frames, scorer: {scorer}}}, which judges every frame, "


def _parts(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, float]]]:
    """The rewards of a composition: each goes by the part's name where it has none of its own."""
    parts = options.get("parts")
    if not isinstance(parts, Mapping) or not parts or len(options) > 1:
        others = {key: value for key, value in options.items() if key != "parts"}
        raise ConfigError(f"Reward {name!r} must have `parts: {{name: ...}}` and nothing else, got {others}.")
    for part, own in parts.items():
        weight = 1.0
        if isinstance(own, Mapping):
            own = {"name": part, **own}
            weight = float(own.pop("weight", 1.0)) if name == "weighted_sum" else 1.0
        elif name == "weighted_sum":
            if not isinstance(own, int | float):
                raise ConfigError(
                    f"Part {part!r} of a weighted sum must be a weight or a mapping, got {own!r}."
                )
            own, weight = part, float(own)
        yield part, (own, weight)
