"""What a run's settings name, held against what there is: engines, their options and their extras."""

from __future__ import annotations

import difflib
from importlib.util import find_spec

from unirl_env.config import RunConfig
from unirl_env.errors import ConfigError, EngineError
from unirl_env.modes import Mode
from unirl_env.rewards.spec_check import options_of, require_extra, require_own
from unirl_env.rollouts.engines import ENGINES

__all__ = ["check_engine"]

OF_ENGINES = {"sglang": ("httpx", "httpx", "sglang"), "vllm": ("vllm", "vllm", "vllm")}


def check_engine(cfg: RunConfig, mode: Mode) -> None:
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
    if name != "local" and not mode.engines:
        raise ConfigError(
            f"`rollout.engine` must be 'local' in mode {mode.name!r}, got {name!r}: other engines generate "
            "texts only; try `rollout.engine=local`."
        )
    here = options.get("url") is None
    if name in OF_ENGINES:
        require_extra(*OF_ENGINES[name])
    elif name == "vllm_server" and here:
        require_extra(*OF_ENGINES["vllm"])
    if name == "sglang" and here and find_spec("sglang") is None:
        raise EngineError(
            "`rollout.engine_options` must have a `url` where SGLang is not installed, got none; try "
            "`rollout.engine_options.url=http://127.0.0.1:30000` of one that runs."
        )
    known = options_of(ENGINES.get(name))
    known = None if known is None else known - {"actor", "pretrained"}
    require_own(options, known, f"`rollout.engine_options` must be options of the engine {name!r}")
