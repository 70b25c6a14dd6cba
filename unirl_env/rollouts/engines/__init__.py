"""Engines: what generates a policy's text, in this process or on a server."""

from collections.abc import Mapping
from typing import Any

from unirl_env.arguments.signatures import options_of, require_own
from unirl_env.registry import Registry
from unirl_env.rollouts.engines.base import Answer, Engine, Request

__all__ = ["ENGINES", "Answer", "Engine", "Request", "check_engine_options"]

ENGINES = Registry(
    "engine",
    {
        "local": "unirl_env.rollouts.engines.local:LocalEngine",
        "sglang": "unirl_env.rollouts.engines.sglang:SGLangServer",
        "vllm": "unirl_env.rollouts.engines.vllm:VLLMEngine",
        "vllm_server": "unirl_env.rollouts.engines.vllm_server:VLLMServer",
    },
)
"""Names of engines, each imported on first use: an engine's libraries are needed only where it runs."""
OURS = {"actor", "pretrained"}
"""What whoever makes an engine gives it."""


def check_engine_options(engine: str, options: Mapping[str, Any], called: str = "engine_options") -> None:
    """Refuse options that the engine does not take; whether it fits to an environment is not asked.

    Args:
        engine: Its name, or a dotted path.
        options: What it shall be told.
        called: What an error calls them.

    Raises:
        ConfigError: Naming the option, and the nearest that there is.
    """
    known = options_of(ENGINES.get(engine))
    known = None if known is None else known - OURS
    require_own(options, known, f"`{called}` must be options of the engine {engine!r}")
