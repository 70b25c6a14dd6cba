"""What a run's settings name, held against what there is: engines, rewards, their options and extras."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from unirl_env.config import RunConfig
from unirl_env.errors import ConfigError, EngineError, MissingExtra
from unirl_env.rewards.names import SCORERS
from unirl_env.rollouts.engines import ENGINES

__all__ = ["check_engine", "check_reward", "first_words"]

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
OF_ENGINES = {"sglang": ("httpx", "httpx", "sglang"), "vllm": ("vllm", "vllm", "vllm")}


def check_engine(cfg: RunConfig) -> None:
    """Refuse an engine that is unknown, not installed, of another mode, or does not take its options.

    Raises:
        ConfigError: Naming the setting.
        MissingExtra: If the engine's package is not installed.
        EngineError: If SGLang is to be started here, and is not installed.
    """
    name, options = cfg.rollout.engine, cfg.rollout.engine_options
    if name not in ENGINES and not ("." in name or ":" in name):
        near = difflib.get_close_matches(name, list(ENGINES), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "try 'local', or 'package.module:attribute'."
        raise ConfigError(f"`rollout.engine` must be one of {', '.join(ENGINES)}, got {name!r}; {hint}")
    if name != "local" and cfg.mode in ("diffusion", "unified_model"):
        raise ConfigError(
            f"`rollout.engine` must be 'local' in mode {cfg.mode!r}, got {name!r}: other engines generate "
            "texts only; try `rollout.engine=local`."
        )
    here = options.get("url") is None
    if name in OF_ENGINES:
        _require(*OF_ENGINES[name])
    elif name == "vllm_server" and here:
        _require(*OF_ENGINES["vllm"])
    if name == "sglang" and here and find_spec("sglang") is None:
        raise EngineError(
            "`rollout.engine_options` must have a `url` where SGLang is not installed, got none; try "
            "`rollout.engine_options.url=http://127.0.0.1:30000` of one that runs."
        )
    known = _options(ENGINES.get(name))
    for option in options if known is not None else ():
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(sorted(known)) or 'none'}."
            raise ConfigError(
                f"`rollout.engine_options` must be options of the engine {name!r}, got {option!r}, which is "
                f"none; {hint}"
            )


def check_reward(spec: Any) -> None:
    """Refuse a reward whose options do not fit, or whose package is not installed; nothing is built.

    Args:
        spec: What `build_scorer` understands.

    Raises:
        ConfigError: Naming the reward and the option.
        MissingExtra: If its package is missing.
    """
    if not isinstance(spec, str | Mapping):
        return
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"A reward must have a `name`, got {spec!r}; try {{name: shapes}}.")
    if name in COMPOSITIONS:
        parts = options.get("parts")
        for part, own in parts.items() if isinstance(parts, Mapping) else ():
            if isinstance(own, Mapping):
                check_reward({"name": part, **{key: v for key, v in own.items() if key != "weight"}})
            elif isinstance(own, int | float) or name != "weighted_sum":
                check_reward(part if isinstance(own, int | float) else own)
        return
    if name in EXTRAS:
        _require(*EXTRAS[name])
    target = SCORERS.get(name)
    inner = [options[part] for part in getattr(target, "wraps", ()) if part in options]
    for part in inner:
        check_reward(part)
    known = _options(target) if inspect.isclass(target) else None
    for option in options if known is not None else ():
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(sorted(known)) or 'none'}."
            raise ConfigError(f"Reward {name!r} must have options that it knows, got {option!r}; {hint}")


def first_words(error: BaseException) -> str:
    """What a library says of a failure, in a line without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")[:200]


def _require(module: str, package: str, extra: str) -> None:
    if find_spec(module) is None:
        raise MissingExtra(package, extra)


def _options(target: Any) -> set[str] | None:
    """The keyword arguments of a class, with those that it passes up; None where it takes any."""
    if not inspect.isclass(target):
        return None
    found: set[str] = set()
    for kind in target.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind.__init__).parameters.values()
        found |= {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return found - {"self", "actor", "pretrained"}
    return None
