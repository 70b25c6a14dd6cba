"""Engines: what generates a policy's text, in this process or on a server."""

from unirl_env.registry import Registry
from unirl_env.rollouts.engines.base import Answer, Engine, Request

__all__ = ["ENGINES", "Answer", "Engine", "Request"]

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
